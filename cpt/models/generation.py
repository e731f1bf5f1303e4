"""Continuing prompts token by token: one compiled pass over the prompts, then one compiled step per token."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from cpt.errors import ConfigError
from cpt.models.base import Model, Params
from cpt.models.cache import Cache

SHORTEST = 32  # tokens; shorter rows would save nothing and be one more shape to compile


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
      temperature: divides the logits; 0 takes the likeliest token.
      top_p: draw from the likeliest tokens only, as few as have this probability together (Holtzman et al. 2020, arXiv
        1904.09751); 1 draws from all.
      seed: of the draws. A row's depend on it, on the row's place among the prompts and on the token's in the row.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ConfigError for the first field that is out of range."""
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(f"temperature: {self.temperature} must be 0 (the likeliest token) or above")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p: {self.top_p} must be above 0 and at most 1")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed: {self.seed} must be at least 0 and below 2^32")


GREEDY = Sampling()


def generate(
    model: Model,
    params: Params,
    prompts: Sequence[Sequence[int]],
    tokens: Sequence[int],
    sampling: Sampling = GREEDY,
    sharding: Sharding | None = None,
) -> Iterator[np.ndarray]:
    """Continue prompts, all of them a token at a time.

    Nothing ends a row: whoever reads stops reading. Programs are compiled for lengths of 32, 64, 128, ... tokens and
    kept, so that later prompts of about the same length start at once.

    Args:
      params: of `model`, on the devices that compute.
      prompts: ids of each row, at least one.
      tokens: how many each row wants; what a row yields after that has no meaning.
      sharding: of the rows [R, L], where they are to be split over devices; their number must fit.

    Returns:
      The next id of each row, int32 [R], `max(tokens)` times.

    Raises:
      ConfigError: a row and what it wants do not fit in `model.spec.context`, an empty prompt, a family that keeps no
        keys and values.
    """
    if not can_generate(model):
        raise ConfigError(f"model.family: '{model.spec.family}' has no method `decode`, which continues a text")
    for prompt, wanted in zip(prompts, tokens, strict=True):
        if not len(prompt):
            raise ConfigError("prompt: no token in it; begin with the one that ends documents")
        check_fits(len(prompt), wanted, model.spec.context)
    return _generate(model, params, prompts, tokens, sampling, sharding)


def can_generate(model: Model) -> bool:
    """Whether its family has the method `decode`; one of a user's own may not. And an attention of a user's own may be
    another function than the one that looks back at what is kept."""
    return hasattr(model.family, "decode") and ":" not in model.spec.attention


def check_fits(prompt: int, wanted: int, context: int) -> None:
    """Raises ConfigError where a prompt of so many tokens and those it wants are more than the context."""
    if prompt + wanted > context:
        left = max(0, context - prompt)
        raise ConfigError(
            f"tokens: {wanted:,} after a prompt of {prompt:,} do not fit in the model's context of {context:,}; "
            + (f"ask for at most {left:,}, or shorten the prompt" if left else "shorten the prompt")
        )


def padded(length: int, context: int) -> int:
    """The smallest of 32, 64, 128, ..., `context` that holds `length`."""
    size = SHORTEST
    while size < length:
        size *= 2
    return min(size, context)


def choose(
    logits_RxV: jax.Array, temperature: jax.Array, top_p: jax.Array, seed: jax.Array, at_R: jax.Array
) -> jax.Array:
    """A token of each row, int32 [R], drawn as `Sampling` says with a temperature above 0.

    Args:
      at_R: the place of the token in its row: with the seed and the number of the row, it decides the draw.
    """
    ids_RxV = jnp.argsort(-logits_RxV, axis=-1, stable=True)
    sorted_RxV = jnp.take_along_axis(logits_RxV, ids_RxV, axis=-1) / temperature
    p_RxV = jax.nn.softmax(sorted_RxV, axis=-1)
    # A token is in if those before it do not suffice, so that the likeliest always is.
    enough_RxV = jnp.cumsum(p_RxV, axis=-1) - p_RxV >= top_p
    kept_RxV = jnp.where(enough_RxV.at[:, 0].set(False), -jnp.inf, sorted_RxV)

    def draw(row: jax.Array, at: jax.Array, kept_V: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), row), at)
        return jax.random.categorical(key, kept_V)

    drawn_R = jax.vmap(draw)(jnp.arange(len(at_R)), at_R, kept_RxV)
    return jnp.take_along_axis(ids_RxV, drawn_R[:, None], axis=-1)[:, 0].astype(jnp.int32)


def _generate(
    model: Model,
    params: Params,
    prompts: Sequence[Sequence[int]],
    tokens: Sequence[int],
    sampling: Sampling,
    sharding: Sharding | None,
) -> Iterator[np.ndarray]:
    lengths_R = np.array([len(p) for p in prompts], np.int32)
    longest, context = int(lengths_R.max()), model.spec.context
    capacity = padded(max(len(p) + n for p, n in zip(prompts, tokens, strict=True)), context)
    tokens_RxL = np.zeros((len(prompts), padded(longest, capacity)), np.int32)
    for row_L, prompt in zip(tokens_RxL, prompts, strict=True):
        row_L[: len(prompt)] = prompt
    first = tokens_RxL if sharding is None else jax.device_put(tokens_RxL, sharding)
    draw = (sampling.temperature, sampling.top_p, np.uint32(sampling.seed)) if sampling.temperature else None
    next_R, cache = _advance(model, params, first, lengths_R, Cache.empty(len(prompts), capacity), draw)
    ones_R = np.ones_like(lengths_R)
    for _ in range(max(tokens) - 1):
        # The next step is under way while this one's tokens are looked at.
        told_R = next_R
        next_R, cache = _advance(model, params, next_R[:, None], ones_R, cache, draw)
        yield np.asarray(told_R)
    yield np.asarray(next_R)


@partial(jax.jit, static_argnums=0, donate_argnums=4)
def _advance(
    model: Model, params: Params, tokens_RxT: jax.Array, lengths_R: jax.Array, cache: Cache, draw: Any
) -> tuple[jax.Array, Cache]:
    """The id that follows the first `lengths_R` of some tokens, and the cache with these in it."""
    hidden_RxTxD, cache = model.decode(params, tokens_RxT, cache)
    hidden_RxD = jnp.take_along_axis(hidden_RxTxD, lengths_R[:, None, None] - 1, axis=1)[:, 0]
    head_DxV = model.head(params).astype(hidden_RxD.dtype)
    logits_RxV = jnp.dot(hidden_RxD, head_DxV, preferred_element_type=jnp.float32)
    cache.used_B = cache.used_B + lengths_R
    next_R = logits_RxV.argmax(-1).astype(jnp.int32) if draw is None else choose(logits_RxV, *draw, cache.used_B)
    if model.mesh is not None:  # every process is to see all rows
        next_R = jax.lax.with_sharding_constraint(next_R, NamedSharding(model.mesh, PartitionSpec()))
    return next_R, cache
