"""The mesh as JAX has it, and where parameters, moments and batches lie on it; the same code on one CPU and on a pod.

`cpt.training.mesh` says how many devices lie along each axis, `cpt.models.layout` which axis splits what.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from cpt.config import BatchSpec, MeshSpec, RunSpec
from cpt.models.attention import chosen, work_of
from cpt.models.layout import AXES, PARAMETER_RULES
from cpt.training.mesh import Devices, Sizes, across_slices, check_rows, choose, mesh_line, solve

BATCH = PartitionSpec(("data", "fsdp"))
TOKENS = PartitionSpec(("data", "fsdp"), "sequence")


def describe(devices: Sequence[Any]) -> Devices:
    """What a choice of mesh may depend on."""
    return Devices(len(devices), devices[0].device_kind, len({slice_of(d) for d in devices}))


def slice_of(device: Any) -> int:
    """The TPU slice or GPU node that a device lies in; 0 where the backend does not say."""
    index = getattr(device, "slice_index", None)
    return 0 if index is None else index


def run_mesh(spec: RunSpec, devices: Sequence[Any] | None = None, described: Devices | None = None) -> Mesh:
    """The mesh of a run; raises as `cpt.training.mesh.choose` does.

    Args:
      devices: all there are by default.
      described: what the choice depends on, where the devices do not say it themselves.
    """
    devices = jax.devices() if devices is None else devices
    return device_mesh(choose(spec, described or describe(devices)).sizes, devices)


def run_mesh_line(spec: RunSpec) -> str:
    """What the launch says of the mesh and of the memory it leaves; starts the backend."""
    return mesh_line(spec, describe(jax.devices()))


def run_attention_line(spec: RunSpec, mesh: Mesh | None = None) -> str:
    """What the launch says of attention: the backend of the training step, and why; on a GPU it is tried first.

    Args:
      mesh: in place of the one that the run has on the devices that are there.

    Raises:
      ConfigError: `model.attention` names a backend that cannot do it.
    """
    model, batch = spec.model, spec.batch
    shape = batch.sequences // batch.accumulate, model.heads, batch.length, model.head_dim
    mesh = run_mesh(spec) if mesh is None else mesh
    work = work_of(mesh, model.compute_dtype, shape, model.kv_heads, batch.mask_documents)
    return chosen(model.attention, work).line()


def make_mesh(spec: MeshSpec, rows: int) -> Mesh:
    """A mesh over all devices without regard to a model: where `data` and `fsdp` are open, `fsdp` takes what is left.

    Args:
      spec: sizes of the axes; a 0 takes the devices that are left.
      rows: rows of a micro-batch, which `data * fsdp` must divide.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices, or do not divide the rows.
    """
    sizes = solve(spec, describe(jax.devices()))
    check_rows(BatchSpec(sequences=rows, length=1), sizes)
    return device_mesh(sizes, jax.devices())


def device_mesh(sizes: Sizes, devices: Sequence[Any]) -> Mesh:
    """The mesh with these sizes; over several slices `data` (then `fsdp`) is what crosses the network between them."""
    shape, slices = [sizes[axis] for axis in AXES], len({slice_of(d) for d in devices})
    kinds = (AxisType.Auto,) * len(AXES)
    if slices == 1:
        return jax.make_mesh(shape, AXES, axis_types=kinds, devices=devices)
    between = [across_slices(sizes, slices)[axis] for axis in AXES]
    within = [n // m for n, m in zip(shape, between, strict=True)]
    array = mesh_utils.create_hybrid_device_mesh(within, between, devices, allow_split_physical_axes=True)
    return Mesh(array, AXES, axis_types=kinds)


def parameter_shardings(mesh: Mesh | AbstractMesh, axes: Any, abstract: Any) -> Any:
    """A `NamedSharding` per parameter.

    Args:
      axes: tree of tuples of logical names (`Model.logical_axes`).
      abstract: tree of `ShapeDtypeStruct` of the same structure.

    Vectors (biases, norm scales) are not split over `fsdp`: gathering them would cost more than their memory. A bias
    lies with the heads or the MLP channels that it is added to. A dimension that its mesh axis does not divide stays
    whole.
    """

    def one(leaf: jax.ShapeDtypeStruct, names: tuple[str | None, ...]) -> NamedSharding:
        spec = [PARAMETER_RULES.get(n or "") for n in names]
        if leaf.ndim < 2:
            spec = [None if axis == "fsdp" else axis for axis in spec]
        spec = [a if a and size % mesh.shape.get(a, 1) == 0 else None for a, size in zip(spec, leaf.shape, strict=True)]
        return NamedSharding(mesh, PartitionSpec(*spec) if any(spec) else PartitionSpec())

    return jax.tree.map(one, abstract, axes)


def optimizer_shardings(tx: optax.GradientTransformation, abstract: Any, shardings: Any, mesh: Mesh) -> Any:
    """Moments lie where their parameters lie; counters are replicated."""
    return optax.tree.map_params(
        tx,
        lambda _, sharding: sharding,
        jax.eval_shape(tx.init, abstract),
        shardings,
        transform_non_params=lambda _: NamedSharding(mesh, PartitionSpec()),
    )


def shard_bytes(abstract: Any) -> int:
    """Bytes that each device holds of a tree of `ShapeDtypeStruct`s with shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(abstract))


def batch_sharding(mesh: Mesh, name: str) -> NamedSharding:
    """Where an array of a batch lies: rows over `data` and `fsdp`, the length of `..._BxL` over `sequence`."""
    return NamedSharding(mesh, TOKENS if name.endswith("_BxL") and mesh.shape.get("sequence", 1) > 1 else BATCH)


def host_rows(mesh: Mesh, sequences: int) -> np.ndarray:
    """Numbers of the rows of a batch that the devices of this process hold, increasing.

    Processes hold the same rows where the axes that split rows do not tell them apart.
    """
    indices = NamedSharding(mesh, BATCH).addressable_devices_indices_map((sequences,)).values()
    return np.unique(np.concatenate([np.arange(sequences)[rows] for (rows,) in indices]))


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray], sequences: int) -> dict[str, Any]:
    """This process's rows (`host_rows`) of a batch of `sequences`, as the compiled update takes them.

    A process alone hands over what it read: the update puts it where it belongs, which on one device costs the host a
    tenth of what `device_put` does. Several processes make global arrays of their parts.
    """
    if jax.process_count() == 1:
        return batch
    mine = host_rows(mesh, sequences)
    return {name: from_rows(batch_sharding(mesh, name), rows, mine, sequences) for name, rows in batch.items()}


def from_rows(sharding: NamedSharding, rows: np.ndarray, numbers: np.ndarray, count: int) -> jax.Array:
    """The global array of `count` rows of which this process has those with these `numbers` (increasing).

    Its devices hold whole rows of them, or parts of rows.
    """

    def part(index: tuple[slice, ...]) -> np.ndarray:
        own = np.searchsorted(numbers, np.arange(count)[index[0]])
        return rows[own][(slice(None), *index[1:])]

    # JAX takes this for a transfer that nobody asked for.
    with jax.transfer_guard_host_to_device("allow"):
        return jax.make_array_from_callback((count, *rows.shape[1:]), sharding, part)


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Host data that is the same in every process, as the compiled update takes it; see `put_batch`."""
    if jax.process_count() == 1:
        return tree
    sharding = NamedSharding(mesh, PartitionSpec())
    # Not `device_put`: over several processes it compares what each of them gave, which costs a collective.
    with jax.transfer_guard_host_to_device("allow"):
        put = lambda x: jax.make_array_from_callback(np.shape(x), sharding, lambda _: np.asarray(x))  # noqa: E731
        return jax.tree.map(put, tree)
