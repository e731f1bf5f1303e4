"""Next-token cross-entropy in nats of each token, from hidden states, without ever holding the logits of a whole batch.

Logits are the largest array by far (65,536 tokens x 50,304 ids are 13 GB in float32). The batch is therefore cut into
chunks of tokens; each chunk forms its logits, reduces them to one number per token, and forms them again in a backward
pass, if there is one. Training has `linear_cross_entropy`, which forms them once.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from cpt.objectives.tiles import LOGITS_AT_ONCE


def cross_entropy(
    hidden_BxLxD: jax.Array,
    head_DxV: jax.Array,
    targets_BxL: jax.Array,
    rows_per_chunk: int | None = None,
) -> jax.Array:
    """`-log softmax(hidden head)[target]` of every token. Padding is the caller's: give it weight 0 afterwards.

    Args:
      hidden_BxLxD: states after the final norm; their dtype is the dtype of the product, sums are float32.
      head_DxV: output matrix; cast to the dtype of `hidden_BxLxD`.
      targets_BxL: int ids in [0, V).
      rows_per_chunk: tokens whose logits exist at once, all devices together, rounded to whole columns of the batch;
        None takes `automatic_rows` for one device. B * L or more is the whole batch in one piece.

    Returns:
      nll_BxL, float32, nats per token; the same values and gradients for every `rows_per_chunk`.
    """
    batch, length, width = hidden_BxLxD.shape
    if rows_per_chunk is None:
        rows_per_chunk = automatic_rows(batch * length, head_DxV.shape[1])
    head_DxV = head_DxV.astype(hidden_BxLxD.dtype)
    if rows_per_chunk >= batch * length:
        return _nll(hidden_BxLxD.reshape(-1, width), head_DxV, targets_BxL.reshape(-1)).reshape(batch, length)

    # Chunks are columns of the batch, never rows: each device keeps its own rows of every chunk, nothing moves.
    columns = max(1, rows_per_chunk // batch)
    padding = -length % columns
    hidden_BxPxD = jnp.pad(hidden_BxLxD, ((0, 0), (0, padding), (0, 0)))
    targets_BxP = jnp.pad(targets_BxL, ((0, 0), (0, padding)))
    hidden_CxBxKxD = hidden_BxPxD.reshape(batch, -1, columns, width).swapaxes(0, 1)
    targets_CxBxK = targets_BxP.reshape(batch, -1, columns).swapaxes(0, 1)

    nll_CxBxK = _nll_of_chunks(hidden_CxBxKxD, head_DxV, targets_CxBxK)
    return nll_CxBxK.swapaxes(0, 1).reshape(batch, -1)[:, :length]


def _nll_of_chunks(hidden_CxBxKxD: jax.Array, head_DxV: jax.Array, targets_CxBxK: jax.Array) -> jax.Array:
    _, batch, columns, width = hidden_CxBxKxD.shape

    @jax.checkpoint
    def chunk(hidden_BxKxD: jax.Array, targets_BxK: jax.Array) -> jax.Array:
        return _nll(hidden_BxKxD.reshape(-1, width), head_DxV, targets_BxK.reshape(-1)).reshape(batch, columns)

    return jax.lax.map(lambda piece: chunk(*piece), (hidden_CxBxKxD, targets_CxBxK))


def automatic_rows(tokens: int, vocab_size: int, devices: int = 1) -> int:
    """Tokens per chunk that keep each device's logits under `LOGITS_AT_ONCE`; all `tokens` where they fit.

    Args:
      tokens: B * L of the global batch.
      vocab_size: V.
      devices: devices that the logits are spread over.
    """
    return min(tokens, max(1, LOGITS_AT_ONCE * devices // vocab_size))


def _nll(hidden_NxD: jax.Array, head_DxV: jax.Array, targets_N: jax.Array) -> jax.Array:
    logits_NxV = jnp.dot(hidden_NxD, head_DxV, preferred_element_type=jnp.float32)
    target_N = jnp.take_along_axis(logits_NxV, targets_N[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(logits_NxV, axis=1) - target_N


def weighted_sums(
    nll_BxL: jax.Array, weights_BxL: jax.Array, source_B: jax.Array, n_sources: int
) -> tuple[jax.Array, jax.Array]:
    """Weighted nats and weights of each source, so that means are formed once, after every sum is complete.

    Args:
      nll_BxL: nats per token.
      weights_BxL: weight of each token: 0 for padding, 1 for a plain token.
      source_B: int index of each row's source, in [0, n_sources).
      n_sources: number of sources S.

    Returns:
      (nats_S, tokens_S), float32.
    """
    weights_BxL = weights_BxL.astype(jnp.float32)
    nats_B, tokens_B = (nll_BxL * weights_BxL).sum(1), weights_BxL.sum(1)
    return tuple(jax.ops.segment_sum(x, source_B, num_segments=n_sources) for x in (nats_B, tokens_B))
