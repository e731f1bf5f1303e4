"""The masked square, all at once: what every other backend is tested against, and what a partitioner can split."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

HIDDEN = float(jnp.finfo(jnp.float32).min)  # not -inf: it keeps max, exp and their gradients finite


def reference(
    q_BxHxLxK: jax.Array, k_BxGxLxK: jax.Array, v_BxGxLxK: jax.Array, segments_BxL: jax.Array | None = None
) -> jax.Array:
    """`softmax(q k^T / sqrt(K) + mask) v` with the whole [L, L] of logits at once; as `cpt.models.attention.attend`."""
    at = jnp.arange(q_BxHxLxK.shape[2])
    # jnp, not np: the mask is to be computed where it is used, not stored in the program once per layer.
    visible = at[:, None] >= at[None, :]
    if segments_BxL is not None:
        visible = visible & (segments_BxL[:, None, :, None] == segments_BxL[:, None, None, :])
    return softmax_mix(q_BxHxLxK, k_BxGxLxK, v_BxGxLxK, visible)


def softmax_mix(q_BxHxQxK: jax.Array, k_BxGxSxK: jax.Array, v_BxGxSxK: jax.Array, visible: jax.Array) -> jax.Array:
    """Queries against keys, of which each sees those where `visible` [Q, S] or [B, 1, Q, S].

    Logits and softmax are float32 whatever the inputs are; the probabilities meet `v` in its own dtype.
    """
    if grouped := q_BxHxQxK.shape[1] != k_BxGxSxK.shape[1]:
        shape = q_BxHxQxK.shape
        q_BxHxQxK = q_BxHxQxK.reshape(shape[0], k_BxGxSxK.shape[1], -1, *shape[2:])
    query = "bhgqk" if grouped else "bhqk"
    score = query.replace("k", "s")
    logits = jnp.einsum(f"{query},bhsk->{score}", q_BxHxQxK, k_BxGxSxK, preferred_element_type=jnp.float32)
    if grouped and visible.ndim == 4:
        visible = visible[:, :, None]
    logits = jnp.where(visible, logits / np.sqrt(q_BxHxQxK.shape[-1]), HIDDEN)
    weights = jax.nn.softmax(logits, axis=-1).astype(v_BxGxSxK.dtype)
    mixed = jnp.einsum(f"{score},bhsk->{query}", weights, v_BxGxSxK)
    return mixed.reshape(shape) if grouped else mixed
