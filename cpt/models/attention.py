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
    q_BxHxLxK: jax.Array, k_BxHxLxK: jax.Array, v_BxHxLxK: jax.Array, segments_BxL: jax.Array | None = None
) -> jax.Array:
    """`softmax(q k^T / sqrt(K) + mask) v`: each token sees itself and earlier tokens of its own segment.

    Logits and softmax are float32 whatever the inputs are; the probabilities meet `v` in its own dtype.

    Args:
      q_BxHxLxK, k_BxHxLxK, v_BxHxLxK: queries, keys and values of equal shape.
      segments_BxL: integer document ids of packed rows; None is one document per row.

    Returns:
      [B, H, L, K] in the dtype of `v`.
    """
    length, head_dim = q_BxHxLxK.shape[-2:]
    logits = jnp.einsum("bhqk,bhsk->bhqs", q_BxHxLxK, k_BxHxLxK, preferred_element_type=jnp.float32)
    position_L = jnp.arange(length)
    visible = position_L[:, None] >= position_L[None, :]
    if segments_BxL is not None:
        visible = visible & (segments_BxL[:, None, :, None] == segments_BxL[:, None, None, :])
    weights = jax.nn.softmax(jnp.where(visible, logits / np.sqrt(head_dim), HIDDEN), axis=-1)
    return jnp.einsum("bhqs,bhsk->bhqk", weights.astype(v_BxHxLxK.dtype), v_BxHxLxK)
