"""Rotary positions: the table of angles, and queries and keys turned by it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from cpt.models.rope import PLAIN, RopeSpec, frequencies


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
