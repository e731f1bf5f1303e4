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
    half, channels = cos_LxR.shape[-1], x.shape[-1]
    if half == 0:
        return x
    if channels % (2 * half):
        turned = rotate(x[..., : 2 * half], cos_LxR, sin_LxR)
        return jnp.concatenate([turned, x[..., 2 * half :]], axis=-1)
    # Each channel next to its partner and by numbers of its own, 1 and 0 where nothing turns: with halves taken apart
    # and joined again XLA on CPU decides for every number where it comes from.
    wide = x.astype(jnp.float32)
    partner = jnp.flip(wide.reshape(*x.shape[:-1], -1, 2, half), axis=-2).reshape(x.shape)
    rest = [(0, 0)] * (cos_LxR.ndim - 1) + [(0, channels - 2 * half)]
    own = jnp.pad(jnp.concatenate([cos_LxR, cos_LxR], axis=-1), rest, constant_values=1)
    other = jnp.pad(jnp.concatenate([-sin_LxR, sin_LxR], axis=-1), rest)
    return (wide * own + partner * other).astype(x.dtype)
