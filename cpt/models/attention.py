"""Causal softmax attention and rotary positions, on arrays [batch, heads, length, head_dim].

Heads come before length so that both attention products are plain batched matrix multiplications.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

HIDDEN = float(jnp.finfo(jnp.float32).min)  # not -inf: it keeps max, exp and their gradients finite


def rotary_table(length: int, rotary_dim: int, base: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of RoPE for positions 0..length-1, each float32 [length, rotary_dim / 2].

    Channel pair i of position p turns by `p * base^(-2 i / rotary_dim)` (Su et al. 2021, arXiv 2104.09864, eq. 15).
    The angles are formed on the host in float64: an angle of 2047 radians leaves bfloat16 no digit after the point.
    """
    frequency_R = base ** (-np.arange(0, rotary_dim, 2) / rotary_dim) if rotary_dim else np.zeros(0)
    angle_LxR = np.arange(length)[:, None] * frequency_R
    return jnp.asarray(np.cos(angle_LxR), jnp.float32), jnp.asarray(np.sin(angle_LxR), jnp.float32)


def rotate(x: jax.Array, cos_LxR: jax.Array, sin_LxR: jax.Array) -> jax.Array:
    """Rotates the first 2R channels of `x` [..., length, head_dim] and passes the others through.

    Channel i is paired with channel i + R (half-split, as in GPT-NeoX), not with its neighbour. Computed in float32,
    returned in the dtype of `x`.
    """
    half = cos_LxR.shape[-1]
    if half == 0:
        return x
    first, second = x[..., :half].astype(jnp.float32), x[..., half : 2 * half].astype(jnp.float32)
    turned = (first * cos_LxR - second * sin_LxR, second * cos_LxR + first * sin_LxR)
    return jnp.concatenate([*(t.astype(x.dtype) for t in turned), x[..., 2 * half :]], axis=-1)


def attend(
    q_BxHxLxK: jax.Array,
    k_BxHxLxK: jax.Array,
    v_BxHxLxK: jax.Array,
    segments_BxL: jax.Array | None = None,
    block: int | None = None,
) -> jax.Array:
    """`softmax(q k^T / sqrt(K) + mask) v`: each token sees itself and earlier tokens of its own segment.

    Queries are taken in blocks, each against the keys up to its own end only, so that of the masked upper triangle just
    the blocks on the diagonal are computed. Logits and softmax are float32 whatever the inputs are; the probabilities
    meet `v` in its own dtype.

    Args:
      q_BxHxLxK, k_BxHxLxK, v_BxHxLxK: queries, keys and values of equal shape.
      segments_BxL: integer document ids of packed rows; None is one document per row.
      block: queries per block; L is the plain masked square. None takes an eighth of the row, at least 128: on CPU that
        saves a fifth of the step at L = 1024 and nothing below 256, and compile time grows with the number of blocks.

    Returns:
      [B, H, L, K] in the dtype of `v`, the same for every `block` up to rounding.
    """
    length = q_BxHxLxK.shape[2]
    block = block or max(128, -(-length // 8))
    rows = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        # jnp, not np: the mask is to be computed where it is used, not stored in the program once per block and layer.
        visible = jnp.arange(start, stop)[:, None] >= jnp.arange(stop)[None, :]
        if segments_BxL is not None:
            same = segments_BxL[:, None, start:stop, None] == segments_BxL[:, None, None, :stop]
            visible = visible & same
        rows.append(_softmax_mix(q_BxHxLxK[:, :, start:stop], k_BxHxLxK[:, :, :stop], v_BxHxLxK[:, :, :stop], visible))
    return rows[0] if len(rows) == 1 else jnp.concatenate(rows, axis=2)


def _softmax_mix(q_BxHxQxK: jax.Array, k_BxHxSxK: jax.Array, v_BxHxSxK: jax.Array, visible: jax.Array) -> jax.Array:
    logits = jnp.einsum("bhqk,bhsk->bhqs", q_BxHxQxK, k_BxHxSxK, preferred_element_type=jnp.float32)
    logits = jnp.where(visible, logits / np.sqrt(q_BxHxQxK.shape[-1]), HIDDEN)
    weights = jax.nn.softmax(logits, axis=-1).astype(v_BxHxSxK.dtype)
    return jnp.einsum("bhqs,bhsk->bhqk", weights, v_BxHxSxK)
