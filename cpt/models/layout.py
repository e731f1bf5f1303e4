"""Where activations lie on the devices: split over tokens, whole in width.

Parameters say where they lie themselves. Activations must be told: a kernel [embed, mlp] split over `fsdp` meets rows
that are split over the same devices, and left alone the partitioner may as well move the rows of the whole batch to the
kernel's parts as gather the kernel, which is what FSDP means.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "sequence", "tensor")
PARAMETER_RULES = {
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",  # whole where `tensor` does not divide them: fewer heads of keys than devices is usual
    "mlp": "tensor",
    "embed": "fsdp",
    "head_dim": None,
}
"""Mesh axis of each logical axis of a parameter; a name that is not here is not split."""

TOKEN_AXES = ("data", "fsdp", "sequence")

_MESH: ContextVar[Mesh | None] = ContextVar("mesh", default=None)


@contextlib.contextmanager
def over(mesh: Mesh | None) -> Iterator[None]:
    """While this is entered, models that are traced split their activations over `mesh`; None leaves them alone."""
    token = _MESH.set(mesh)
    try:
        yield
    finally:
        _MESH.reset(token)


def by_token(x_NxD: jax.Array) -> jax.Array:
    """The residual stream [B * L, d], split over its tokens: each device holds some, and the width of each is whole.

    Rows are next to each other in N, so a part is whole rows where there are enough of them for all devices, and a
    piece of one row where `sequence` has to split it. Left as it is where N cannot be split evenly.
    """
    mesh = _MESH.get()
    axes = tuple(a for a in TOKEN_AXES if mesh is not None and mesh.shape.get(a, 1) > 1)
    if mesh is None or mesh.size == 1 or x_NxD.shape[0] % math.prod(mesh.shape[a] for a in axes):
        return x_NxD
    return jax.lax.with_sharding_constraint(x_NxD, NamedSharding(mesh, PartitionSpec(axes or None)))


def gathered(table_VxD: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """A table that is looked up, with its width whole: gathered over `fsdp`, still split over its `tensor` axes.

    Without it the rows that were looked up, those of the whole batch, are what is moved.

    Args:
      axes: logical names of its dimensions.
    """
    mesh = _MESH.get()
    if mesh is None or mesh.size == 1:
        return table_VxD
    spec = [PARAMETER_RULES.get(name or "") for name in axes]
    kept = [
        a if a == "tensor" and n % mesh.shape.get(a, 1) == 0 else None
        for a, n in zip(spec, table_VxD.shape, strict=True)
    ]
    return jax.lax.with_sharding_constraint(table_VxD, NamedSharding(mesh, PartitionSpec(*kept)))


def active_mesh() -> Mesh | None:
    """The mesh that `over` was entered with."""
    return _MESH.get()


def alone_on_cpu(mesh: Mesh | None) -> bool:
    """Whether what is computed on `mesh` is computed by one CPU device; None is the first device there is.

    There products and sums may take the form that this compiler is fast with. Where arrays are split over devices, a
    form is also what decides how they are moved.
    """
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    return device.platform == "cpu" and (mesh is None or mesh.size == 1)
