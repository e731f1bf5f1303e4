"""Splash attention, the Pallas kernel for TPUs that comes with JAX: blocks above the diagonal are left out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

LANES = 128
BLOCKS = (512, 256, 128)
"""Queries, and keys, per block: the largest that divides the row."""


def splash(
    q_BxHxLxK: jax.Array,
    k_BxGxLxK: jax.Array,
    v_BxGxLxK: jax.Array,
    segments_BxL: jax.Array | None = None,
    interpret: bool = False,
) -> jax.Array:
    """As `cpt.models.attention.attend`.

    Rows are filled up to a multiple of 128 tokens: what is behind a token it does not see.

    Args:
      interpret: run the kernel's program with plain operations, on any device, for tests.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        BlockSizes,
        CausalMask,
        MultiHeadMask,
        SegmentIds,
        make_splash_mha_single_device,
    )

    _, heads, length, channels = q_BxHxLxK.shape
    padding = -length % LANES
    if padding:
        fill = [(0, 0), (0, 0), (0, padding), (0, 0)]
        q_BxHxLxK, k_BxGxLxK, v_BxGxLxK = (jnp.pad(x, fill) for x in (q_BxHxLxK, k_BxGxLxK, v_BxGxLxK))
        segments_BxL = None if segments_BxL is None else jnp.pad(segments_BxL, [(0, 0), (0, padding)], mode="edge")
    filled = length + padding
    block = next(b for b in BLOCKS if filled % b == 0)
    names = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
    kernel = make_splash_mha_single_device(
        MultiHeadMask([CausalMask((filled, filled))] * heads),
        block_sizes=BlockSizes(**dict.fromkeys(names, block)),
        interpret=interpret,
    )
    scaled = q_BxHxLxK * np.asarray(channels**-0.5, q_BxHxLxK.dtype)
    if segments_BxL is None:
        mixed_BxHxLxK = jax.vmap(lambda q, k, v: kernel(q, k, v))(scaled, k_BxGxLxK, v_BxGxLxK)
    else:
        with_ids = lambda q, k, v, ids_L: kernel(q, k, v, segment_ids=SegmentIds(ids_L, ids_L))  # noqa: E731
        mixed_BxHxLxK = jax.vmap(with_ids)(scaled, k_BxGxLxK, v_BxGxLxK, segments_BxL)
    return mixed_BxHxLxK[:, :, :length].astype(v_BxGxLxK.dtype)
