"""Causal softmax attention on arrays [batch, heads, length, head_dim]: one interface, several ways to compute it.

Heads come before length so that both attention products are plain batched matrix multiplications. A model calls
`attend`; which backend that is follows from `model.attention` and from what is computed where (`choice`), and is the
same in training and evaluation. A backend is a file here, each tested against `reference`, or a function of your own,
`model.attention="package.module:function"`, with the arguments of `attend`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax
from jax.ad_checkpoint import checkpoint_name

from cpt.models.attention.choice import Choice, Work, choose
from cpt.models.attention.cudnn import trial
from cpt.models.attention.reference import softmax_mix
from cpt.models.attention.rotary import rotary_table, rotate
from cpt.models.attention.spread import per_device
from cpt.models.layout import active_mesh
from cpt.registry import find

__all__ = ["Choice", "attend", "chosen", "rotary_table", "rotate", "softmax_mix", "using", "work_of"]

KERNELS = ("cudnn", "splash")
"""Backends that no partitioner can split: each device runs them on what is its own."""

_ASKED: ContextVar[str | None] = ContextVar("attention", default=None)


@contextlib.contextmanager
def using(asked: str) -> Iterator[None]:
    """While this is entered, models that are traced attend as `model.attention` = `asked` says."""
    token = _ASKED.set(asked)
    try:
        yield
    finally:
        _ASKED.reset(token)


def attend(
    q_BxHxLxK: jax.Array, k_BxGxLxK: jax.Array, v_BxGxLxK: jax.Array, segments_BxL: jax.Array | None = None
) -> jax.Array:
    """`softmax(q k^T / sqrt(K) + mask) v`: each token sees itself and earlier tokens of its own segment.

    Args:
      q_BxHxLxK: queries.
      k_BxGxLxK, v_BxGxLxK: keys and values, of the same shape; with fewer heads than queries, each is that of H / G
        query heads in a row (grouped-query attention).
      segments_BxL: integer document ids of packed rows, increasing along a row; None is one document per row.

    Returns:
      [B, H, L, K] in the dtype of `v`, the same for every backend up to rounding; named "mixed" for
      `cpt.models.recomputing`.

    Raises:
      ConfigError: a backend was asked for by name that cannot do this.
    """
    work = work_of(
        active_mesh(), q_BxHxLxK.dtype.name, q_BxHxLxK.shape, k_BxGxLxK.shape[1], packed=segments_BxL is not None
    )
    # Outside of a model's forward pass (decoding, which keeps its keys) there is nothing to choose by.
    asked = _ASKED.get() or ("reference" if work.pieces > 1 else "blocked")
    name = chosen(asked, work).name
    if name in KERNELS and active_mesh() is None and jax.device_count() > 1:
        name = "blocked"  # nobody says which device has what, so the partitioner has to be able to split it
    backend = find("cpt.models.attention", name, "model.attention")
    arrays = q_BxHxLxK, k_BxGxLxK, v_BxGxLxK, segments_BxL
    if name == "blocked":
        return backend(*arrays)  # it names its output where its backward pass reads it
    return checkpoint_name(per_device(backend, *arrays) if name in KERNELS else backend(*arrays), "mixed")


def work_of(mesh: jax.sharding.Mesh | None, dtype: str, shape: tuple[int, ...], kv_heads: int, packed: bool) -> Work:
    """What is computed where.

    Args:
      mesh: devices it is spread over; None is the first one there is.
      dtype, shape: of the queries, [B, H, L, K].
    """
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    _, heads, length, head_dim = shape
    pieces = 1 if mesh is None else mesh.shape.get("sequence", 1)
    capability = getattr(device, "compute_capability", None)
    return Work(
        device.platform, device.device_kind, dtype, heads, kv_heads, head_dim, length, packed, pieces, capability
    )


def chosen(asked: str, work: Work) -> Choice:
    """The backend for `work`; where that is cuDNN, it was tried on the device first (once per process)."""
    return choose(asked, work, trial)
