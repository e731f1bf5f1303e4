"""cuDNN's flash attention, on NVIDIA GPUs in bfloat16, after it was tried on the device.

Packed documents go through offsets of their sequences, which JAX has in a private module only. What it gives there was
wrong in silence in some versions, so nothing of this is used before it agrees with `reference` on the device at hand.
"""

from __future__ import annotations

from functools import cache, partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cpt.models.attention.blocked import blocked
from cpt.models.attention.choice import Work
from cpt.models.attention.reference import reference

MOST_ELEMENTS = 2**31
"""Numbers of queries in one call; beyond it cuDNN 9.27 gives wrong gradients and no error."""

TOKENS_PER_DOCUMENT = 32
"""Shortest mean document of a row that goes through offsets: their number has to be known when a program is made."""

AGREES = 0.03
"""Largest difference to the reference, over the largest number in it: bfloat16 has a step of 0.004 to 0.008."""


def cudnn(
    q_BxHxLxK: jax.Array,
    k_BxGxLxK: jax.Array,
    v_BxGxLxK: jax.Array,
    segments_BxL: jax.Array | None = None,
    implementation: Any = "cudnn",
) -> jax.Array:
    """As `cpt.models.attention.attend`.

    Args:
      implementation: of `jax.nn.dot_product_attention`; another than cuDNN where there is no GPU to check the rest on.
    """
    rows = q_BxHxLxK.shape[0]
    calls = min(rows, -(-q_BxHxLxK.size // MOST_ELEMENTS))
    if calls > 1:
        edges = [rows * i // calls for i in range(calls + 1)]
        parts = [slice(a, b) for a, b in pairwise(edges)]
        own = lambda part: None if segments_BxL is None else segments_BxL[part]  # noqa: E731
        several = [cudnn(q_BxHxLxK[p], k_BxGxLxK[p], v_BxGxLxK[p], own(p), implementation) for p in parts]
        return jnp.concatenate(several)
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q_BxHxLxK, k_BxGxLxK, v_BxGxLxK))
    if segments_BxL is None:
        mixed_BxLxHxK = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=implementation)
        return mixed_BxLxHxK.transpose(0, 2, 1, 3)
    most = max(2, q.shape[1] // TOKENS_PER_DOCUMENT)
    starts_BxM, lengths_BxM, fits = documents(segments_BxL, most)
    return jax.lax.cond(
        fits,
        lambda: _packed(q, k, v, starts_BxM, lengths_BxM).transpose(0, 2, 1, 3),
        lambda: blocked(q_BxHxLxK, k_BxGxLxK, v_BxGxLxK, segments_BxL),
    )


def documents(segments_BxL: jax.Array, most: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where the documents of packed rows begin and how long they are, at most `most` of them in a row.

    Returns:
      starts_BxM, lengths_BxM: int32, M = `most`; -1 behind the last document of a row.
      fits: whether no row has more documents.
    """
    length = segments_BxL.shape[1]
    first_BxL = jnp.pad(segments_BxL[:, 1:] != segments_BxL[:, :-1], [(0, 0), (1, 0)], constant_values=True)
    starts_BxN = jnp.sort(jnp.where(first_BxL, jnp.arange(length, dtype=jnp.int32), length), axis=1)
    edges_BxN = jnp.pad(starts_BxN, [(0, 0), (0, max(0, most + 1 - length))], constant_values=length)[:, : most + 1]
    there = edges_BxN[:, :-1] < length
    starts_BxM = jnp.where(there, edges_BxN[:, :-1], -1)
    lengths_BxM = jnp.where(there, edges_BxN[:, 1:] - edges_BxN[:, :-1], -1)
    return starts_BxM, lengths_BxM, (first_BxL.sum(axis=1) <= most).all()


def _packed(q: jax.Array, k: jax.Array, v: jax.Array, starts_BxM: jax.Array, lengths_BxM: jax.Array) -> jax.Array:
    from jax._src.cudnn.fused_attention_stablehlo import MaskType, dot_product_attention

    # Offsets of keys were counted in heads of queries (until July 2026), so each query head gets keys of its own.
    k, v = (x.repeat(q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    offsets = jnp.pad(starts_BxM, [(0, 0), (0, 1)], constant_values=-1)
    return dot_product_attention(
        q,
        k,
        v,
        q_seqlen=lengths_BxM,
        kv_seqlen=lengths_BxM,
        q_offsets=offsets,
        kv_offsets=offsets,
        scale=q.shape[-1] ** -0.5,
        mask_type=MaskType.PADDING_CAUSAL,
        qkv_layout="BTNH",
    )


def trial(work: Work) -> str:
    """What is wrong with cuDNN's attention for such heads on this device; "" where it agrees with the reference.

    Output and all three gradients of two short rows are compared, packed if `work` is; once per process and kind of
    heads.
    """
    return _tried(work.heads // work.kv_heads, work.head_dim, work.dtype, work.packed)


@cache
def _tried(group: int, head_dim: int, dtype: str, packed: bool) -> str:
    try:
        # This may first be asked while a model is traced, in a loop that moves nothing unasked; the numbers are wanted
        # now.
        with jax.transfer_guard("allow"), jax.ensure_compile_time_eval():
            return disagreement(cudnn, group, head_dim, dtype, packed)
    except Exception as e:  # whatever cuDNN, XLA or a changed private function have to say
        return f"it fails on this device ({(str(e) or type(e).__name__).splitlines()[0][:160]})"


def disagreement(kernel: Any, group: int, head_dim: int, dtype: str, packed: bool) -> str:
    """Where `kernel(q, k, v, segments)` and `reference` differ by more than `AGREES`; "" where they do not."""
    rng, rows, kv_heads, length = np.random.default_rng(0), 2, 2, 256
    shapes = [(rows, heads, length, head_dim) for heads in (group * kv_heads, kv_heads, kv_heads, group * kv_heads)]
    q, k, v, weight = (jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)
    at = np.arange(length)
    segments = jnp.asarray(np.stack([at // 100, (at >= 1) + (at >= 7) + (at >= 200)]), jnp.int32) if packed else None

    @partial(jax.jit, static_argnums=0)
    def mixed_and_gradients(attend: Any, *inputs: jax.Array) -> tuple[jax.Array, ...]:
        mixed, pull = jax.vjp(lambda *qkv: attend(*qkv, segments), *inputs)
        return mixed, *pull(weight)

    got, wanted = (mixed_and_gradients(attend, q, k, v) for attend in (kernel, reference))
    for name, ours, theirs in zip(("output", "dq", "dk", "dv"), got, wanted, strict=True):
        ours, theirs = (np.asarray(x, np.float32) for x in (ours, theirs))
        apart = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
        if not apart <= AGREES:
            return f"its {name} is {apart:.1%} off the reference on this device"
    return ""
