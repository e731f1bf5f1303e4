"""Causal softmax attention and rotary positions, on arrays [batch, heads, length, head_dim].

Heads come before length so that both attention products are plain batched matrix multiplications.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from cpt.models.layout import length_is_split
from cpt.models.rope import PLAIN, RopeSpec, frequencies

HIDDEN = float(jnp.finfo(jnp.float32).min)  # not -inf: it keeps max, exp and their gradients finite


def rotary_table(length: int, rotary_dim: int, base: float, rope: RopeSpec = PLAIN) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of RoPE for positions 0..length-1, each float32 [length, rotary_dim / 2].

    Channel pair i of position p turns by `p * base^(-2 i / rotary_dim)` (Su et al. 2021, arXiv 2104.09864, eq. 15),
    or as `rope` scales it. The angles are formed on the host in float64: an angle of 2047 radians leaves bfloat16 no
    digit after the point.
    """
    frequency_R = frequencies(rope, rotary_dim, base) if rotary_dim else np.zeros(0)
    angle_LxR = np.arange(length)[:, None] * frequency_R
    return tuple(jnp.asarray(rope.scale * turn(angle_LxR), jnp.float32) for turn in (np.cos, np.sin))


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
      q_BxHxLxK: queries.
      k_BxHxLxK, v_BxHxLxK: keys and values, of the same shape; with fewer heads, G times fewer, each is that of G query
        heads in a row (grouped-query attention), and none is copied.
      segments_BxL: integer document ids of packed rows; None is one document per row.
      block: queries per block; L is the plain masked square. None takes an eighth of the row, at least 128: on CPU that
        saves a fifth of the step at L = 1024 and nothing below 256, and compile time grows with the number of blocks.

    Returns:
      [B, H, L, K] in the dtype of `v`, the same for every `block` up to rounding.
    """
    length = q_BxHxLxK.shape[2]
    # A block of a row whose length is split would lie on some of the devices only, and the others would wait for them.
    block = length if length_is_split() else block or max(128, -(-length // 8))
    rows = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        # jnp, not np: the mask is to be computed where it is used, not stored in the program once per block and layer.
        visible = jnp.arange(start, stop)[:, None] >= jnp.arange(stop)[None, :]
        if segments_BxL is not None:
            same = segments_BxL[:, None, start:stop, None] == segments_BxL[:, None, None, :stop]
            visible = visible & same
        rows.append(softmax_mix(q_BxHxLxK[:, :, start:stop], k_BxHxLxK[:, :, :stop], v_BxHxLxK[:, :, :stop], visible))
    return rows[0] if len(rows) == 1 else jnp.concatenate(rows, axis=2)


def softmax_mix(q_BxHxQxK: jax.Array, k_BxHxSxK: jax.Array, v_BxHxSxK: jax.Array, visible: jax.Array) -> jax.Array:
    """One block of `attend`: queries against keys, of which each sees those where `visible` [Q, S] or [B, 1, Q, S]."""
    if grouped := q_BxHxQxK.shape[1] != k_BxHxSxK.shape[1]:
        shape = q_BxHxQxK.shape
        q_BxHxQxK = q_BxHxQxK.reshape(shape[0], k_BxHxSxK.shape[1], -1, *shape[2:])
    query = "bhgqk" if grouped else "bhqk"
    score = query.replace("k", "s")
    logits = jnp.einsum(f"{query},bhsk->{score}", q_BxHxQxK, k_BxHxSxK, preferred_element_type=jnp.float32)
    if grouped and visible.ndim == 4:
        visible = visible[:, :, None]
    logits = jnp.where(visible, logits / np.sqrt(q_BxHxQxK.shape[-1]), HIDDEN)
    weights = jax.nn.softmax(logits, axis=-1).astype(v_BxHxSxK.dtype)
    mixed = jnp.einsum(f"{score},bhsk->{query}", weights, v_BxHxSxK)
    return mixed.reshape(shape) if grouped else mixed
