"""A kernel that knows nothing of a mesh, run by each device on its own rows and heads."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec

from cpt.models.layout import active_mesh


def per_device(
    kernel: Callable[..., jax.Array],
    q_BxHxLxK: jax.Array,
    k_BxGxLxK: jax.Array,
    v_BxGxLxK: jax.Array,
    segments_BxL: jax.Array | None,
) -> jax.Array:
    """`kernel(q, k, v, segments)` with rows split over `data` and `fsdp`, heads over `tensor`; nothing is summed.

    Where there are fewer heads of keys than devices along `tensor`, each device gets a copy of the one its query heads
    need. What cannot be split evenly is computed by all.
    """
    mesh = active_mesh()
    if mesh is None or mesh.size == 1:
        return kernel(q_BxHxLxK, k_BxGxLxK, v_BxGxLxK, segments_BxL)
    rows = tuple(a for a in ("data", "fsdp") if mesh.shape.get(a, 1) > 1)
    rows = rows if q_BxHxLxK.shape[0] % math.prod(mesh.shape[a] for a in rows) == 0 else ()
    tensor = mesh.shape.get("tensor", 1)
    split = tensor > 1 and q_BxHxLxK.shape[1] % tensor == 0
    if split and (copies := tensor // math.gcd(k_BxGxLxK.shape[1], tensor)) > 1:
        k_BxGxLxK, v_BxGxLxK = (x.repeat(copies, axis=1) for x in (k_BxGxLxK, v_BxGxLxK))
    by_heads = PartitionSpec(rows or None, "tensor" if split else None)
    arrays = (q_BxHxLxK, k_BxGxLxK, v_BxGxLxK) + (() if segments_BxL is None else (segments_BxL,))
    return jax.shard_map(
        lambda *own: kernel(*own, *(None,) * (4 - len(own))),
        mesh=mesh,
        in_specs=(*[by_heads] * 3, *[PartitionSpec(rows or None)] * (len(arrays) - 3)),
        out_specs=by_heads,
        check_vma=False,  # a kernel does not say along which axes what it gives varies
    )(*arrays)
