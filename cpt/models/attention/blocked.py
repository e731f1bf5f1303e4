"""Causal attention in blocks of queries, the upper triangle left out, with a backward pass by hand.

Kept for the backward pass are queries, keys, values and the logarithm of each softmax's denominator; the probabilities,
[heads, L, L] of them, are computed again, as in FlashAttention (Dao et al. 2022, arXiv 2205.14135, algorithm 4). Its
five products are each a plain `A @ B` of rows that lie as they are: derived automatically, the gradients of keys and
values are products with the transpose of a block of logits, for which XLA on CPU can take five times as long. So the
block is made transposed, [keys, queries], and small operands are transposed instead.

A model of 4 layers of 256 channels takes for its gradient (float32, 2 CPU cores with AVX2) 0.74 of the time at 2,048
tokens that it takes with the plain square, 0.80 at 512, 0.91 at 256 and the same at 128. The backward pass that JAX
derives from the same blocks is as fast there (with AVX-512 it took 1.06 to 1.16 times as long from 256 tokens on), but
keeps [heads, L, L] numbers.

Letters of shapes: G heads of keys and values, R query heads to each of them, S keys, Q queries of a block, M = R Q.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from cpt.models.attention.reference import HIDDEN
from cpt.models.spec import BY_HAND_FROM

Saved = tuple[jax.Array, jax.Array, jax.Array, jax.Array | None, jax.Array, jax.Array]


def blocked(
    q_BxHxLxK: jax.Array,
    k_BxGxLxK: jax.Array,
    v_BxGxLxK: jax.Array,
    segments_BxL: jax.Array | None = None,
    block: int | None = None,
    by_hand: bool | None = None,
) -> jax.Array:
    """As `cpt.models.attention.attend`: each block of queries against the keys up to its own end only.

    Of the masked upper triangle just the blocks on the diagonal are computed. Logits and softmax are float32 whatever
    the inputs are; probabilities and their gradients meet the other operand of a product in its own dtype. Grouped
    heads are not copied: the queries that share keys are rows of one product.

    Args:
      block: queries per block; None is `block_of(L)`. The result is the same for each, up to rounding.
      by_hand: the backward pass by hand; None where it pays, from `BY_HAND_FROM` tokens on.
    """
    length = q_BxHxLxK.shape[2]
    by_hand = length >= BY_HAND_FROM if by_hand is None else by_hand
    mix = _attend if by_hand else lambda *given: _forward(*given)[0]
    return mix(block or block_of(length), q_BxHxLxK, k_BxGxLxK, v_BxGxLxK, segments_BxL)


def block_of(length: int) -> int:
    """Queries per block for rows of `length`: all up to 128, then 64, from 512 on an eighth but at least 128.

    Compile time grows with the number of blocks, so long rows have eight. At 128 tokens blocks save nothing.
    """
    if length <= 128:
        return length
    return 64 if length < 512 else max(128, -(-length // 8))


def _blocks(length: int, block: int) -> Iterator[slice]:
    return (slice(start, min(start + block, length)) for start in range(0, length, block))


def _visible(at: slice, segments_BxL: jax.Array | None, keys_first: bool) -> jax.Array:
    """What the queries `at` see, with the dimensions of logits [B, G, R, Q, S], or [B, G, S, R, Q]."""
    # jnp, not np: the mask is to be computed where it is used, not stored in the program once per block and layer.
    visible = jnp.arange(at.start, at.stop)[:, None] >= jnp.arange(at.stop)[None, :]
    visible = visible[None]
    if segments_BxL is not None:
        visible &= segments_BxL[:, at, None] == segments_BxL[:, None, : at.stop]
    return visible.mT[:, None, :, None, :] if keys_first else visible[:, None, None]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(block: int, q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array | None) -> jax.Array:
    return _forward(block, q, k, v, segments)[0]


def _forward(
    block: int, q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array | None
) -> tuple[jax.Array, Saved]:
    batch, heads, length, _ = q.shape
    shared = k.shape[1]
    q_scaled = q * np.asarray(q.shape[-1] ** -0.5, q.dtype)
    mixed, log_sums = [], []
    for at in _blocks(length, block):
        q_BxGxMxK = q_scaled[:, :, at].reshape(batch, shared, -1, q.shape[-1])
        k_BxGxSxK, v_BxGxSxK = k[:, :, : at.stop], v[:, :, : at.stop]
        logits = jnp.einsum("bgmk,bgsk->bgms", q_BxGxMxK, k_BxGxSxK, preferred_element_type=jnp.float32)
        logits = logits.reshape(batch, shared, heads // shared, -1, at.stop)
        logits = jnp.where(_visible(at, segments, False), logits, HIDDEN)
        top = logits.max(-1, keepdims=True)
        weights = jnp.exp(logits - top)
        sums = weights.sum(-1, keepdims=True)
        weights = weights.astype(v.dtype).reshape(batch, shared, -1, at.stop)
        out = jnp.einsum("bgms,bgsk->bgmk", weights, v_BxGxSxK, preferred_element_type=jnp.float32)
        out = out.reshape(batch, shared, heads // shared, -1, v.shape[-1]) / sums
        mixed.append(out.astype(v.dtype).reshape(batch, heads, -1, v.shape[-1]))
        log_sums.append((top + jnp.log(sums)).reshape(batch, heads, -1))
    # With both kept (`cpt.models.recomputing`) the backward pass needs nothing of the forward pass again.
    log_sums_BxHxL = checkpoint_name(jnp.concatenate(log_sums, axis=2), "attention_sums")
    mixed_BxHxLxK = checkpoint_name(jnp.concatenate(mixed, axis=2), "mixed")
    return mixed_BxHxLxK, (q, k, v, segments, mixed_BxHxLxK, log_sums_BxHxL)


def _backward(block: int, saved: Saved, d_mixed: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q, k, v, segments, mixed, log_sums = saved
    batch, heads, length, channels = q.shape
    shared, scale = k.shape[1], np.asarray(channels**-0.5, q.dtype)
    dot = partial(jnp.einsum, preferred_element_type=jnp.float32)
    q_scaled, k_BxGxKxL = q * scale, jax.lax.optimization_barrier(k.mT)
    # The softmax's denominator: what passes through it is the same for all keys of a query (its appendix B.2, eq. 4).
    through_sums = (d_mixed.astype(jnp.float32) * mixed.astype(jnp.float32)).sum(-1)
    blocks = list(_blocks(length, block))
    dq, dk, dv = [], [], []
    for at in blocks:
        seen = slice(at.stop)
        q_BxGxMxK, do_BxGxMxK = (x[:, :, at].reshape(batch, shared, -1, channels) for x in (q_scaled, d_mixed))
        of_query = lambda x_BxHxL: x_BxHxL[:, :, at].reshape(batch, shared, 1, -1)  # noqa: B023, E731
        logits = dot("bgsk,bgkm->bgsm", k[:, :, seen], q_BxGxMxK.mT) - of_query(log_sums)
        apart = logits.reshape(batch, shared, at.stop, heads // shared, -1)
        weights = jnp.exp(jnp.where(_visible(at, segments, True), apart, HIDDEN)).reshape(logits.shape)
        d_weights = dot("bgsk,bgkm->bgsm", v[:, :, seen], do_BxGxMxK.mT)
        d_logits = (weights * (d_weights - of_query(through_sums))).astype(q.dtype)
        dv.append(dot("bgsm,bgmk->bgsk", weights.astype(v.dtype), do_BxGxMxK))
        dk.append(dot("bgsm,bgmk->bgsk", d_logits, q_BxGxMxK))
        dq_BxGxKxM = jax.lax.optimization_barrier(dot("bgks,bgsm->bgkm", k_BxGxKxL[..., seen], d_logits))
        dq.append((dq_BxGxKxM.mT * scale).astype(q.dtype).reshape(batch, heads, -1, channels))

    def whole(parts: list[jax.Array]) -> jax.Array:
        """The sum of gradients by the first keys, by fewer of them in the first part than in the last."""
        sums = [sum(part[:, :, at] for part in parts[i:]) for i, at in enumerate(blocks)]
        return jnp.concatenate(sums, axis=2)

    return jnp.concatenate(dq, axis=2), whole(dk).astype(k.dtype), whole(dv).astype(v.dtype), None


_attend.defvjp(_forward, _backward)
