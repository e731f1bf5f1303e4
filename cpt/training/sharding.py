"""One mesh, three axes, and a rule per logical axis; the same code on one CPU and on a pod.

`data` replicates parameters, `fsdp` shards them and the batch with them, `tensor` splits heads, MLP and vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cpt.config import MeshSpec
from cpt.errors import ConfigError

RULES = {"vocab": "tensor", "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor", "embed": "fsdp"}
BATCH = PartitionSpec(("data", "fsdp"))


def make_mesh(spec: MeshSpec, rows: int) -> Mesh:
    """The mesh over all devices.

    Args:
      spec: sizes of the axes; a 0 takes the devices that are left.
      rows: rows of a micro-batch, which `data * fsdp` must divide.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices, or do not divide the rows.
    """
    sizes = {"data": spec.data, "fsdp": spec.fsdp, "tensor": spec.tensor}
    devices, fixed = jax.device_count(), math.prod(n for n in sizes.values() if n)
    sizes = {axis: n or devices // fixed for axis, n in sizes.items()}
    shape = " x ".join(f"{axis} {n}" for axis, n in sizes.items())
    if math.prod(sizes.values()) != devices:
        raise ConfigError(f"mesh: {shape} is not the number of devices, {devices}")
    if rows % (sizes["data"] * sizes["fsdp"]):
        raise ConfigError(
            f"mesh: {rows} rows per micro-batch cannot be split over {shape}; choose batch.sequences (and accumulate) "
            f"so that {sizes['data'] * sizes['fsdp']} divides it, or use fewer devices"
        )
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * 3)


def parameter_shardings(mesh: Mesh, axes: Any, abstract: Any) -> Any:
    """A `NamedSharding` per parameter.

    Args:
      axes: tree of tuples of logical names (`Model.logical_axes`).
      abstract: tree of `ShapeDtypeStruct` of the same structure.

    Vectors (biases, norm scales) are replicated: gathering them would cost more than their memory. A dimension that its
    mesh axis does not divide stays whole.
    """

    def one(leaf: jax.ShapeDtypeStruct, names: tuple[str | None, ...]) -> NamedSharding:
        if leaf.ndim < 2:
            return NamedSharding(mesh, PartitionSpec())
        spec = [RULES.get(n) if n else None for n in names]
        spec = [a if a and size % mesh.shape[a] == 0 else None for a, size in zip(spec, leaf.shape, strict=True)]
        return NamedSharding(mesh, PartitionSpec(*spec))

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


def host_rows(mesh: Mesh, sequences: int) -> np.ndarray:
    """Numbers of the rows of a batch that the devices of this process hold, increasing.

    Processes hold the same rows where the axes that split rows do not tell them apart.
    """
    indices = NamedSharding(mesh, BATCH).addressable_devices_indices_map((sequences,)).values()
    return np.unique(np.concatenate([np.arange(sequences)[rows] for (rows,) in indices]))


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray], sequences: int) -> dict[str, jax.Array]:
    """This process's rows (`host_rows`) of a batch of `sequences`, as global arrays split over `data` and `fsdp`."""
    sharding = NamedSharding(mesh, BATCH)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return {name: from_local(sharding, rows, (sequences, *rows.shape[1:])) for name, rows in batch.items()}


def from_local(sharding: NamedSharding, rows: np.ndarray, shape: tuple[int, ...]) -> jax.Array:
    """The global array of `shape` whose rows on the devices of this process are `rows`."""
    # JAX takes this for a transfer that nobody asked for.
    with jax.transfer_guard_host_to_device("allow"):
        return jax.make_array_from_process_local_data(sharding, rows, shape)


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Host data that is the same in every process, on all devices."""
    sharding = NamedSharding(mesh, PartitionSpec())
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    # Not `device_put`: over several processes it compares what each of them gave, which costs a collective.
    with jax.transfer_guard_host_to_device("allow"):
        put = lambda x: jax.make_array_from_callback(np.shape(x), sharding, lambda _: np.asarray(x))  # noqa: E731
        return jax.tree.map(put, tree)
