"""Copying from the context: a random sequence twice in a row, which only attention to what was read can predict."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from cpt.errors import ConfigError
from cpt.evaluators.probes._base import Probe, ProbeContext
from cpt.evaluators.probes._rows import count, in_passes, rows_per_pass
from cpt.models.base import Params
from cpt.objectives.cross_entropy import automatic_rows, cross_entropy

LONGEST = 64  # of a sequence, by default


def copy(context: ProbeContext) -> Probe:
    """Loss on the first and on the second occurrence of random sequences.

    What induction heads do (Olsson et al. 2022, arXiv 2209.11895). Under continual pre-training this ability can
    collapse within the first hundreds of updates, long before a loss on text shows it (2506.00288).

    A sequence has `length` ids that occur in the evaluation set, each once where there are enough; the end of a
    document is not among them. The first token of either occurrence is not scored: nothing in the row announces it. So
    both sums are over the same tokens, and a model that does not look back has a gain of 0 on average.

    Options:
      set: evaluation set that gives the ids; the first by default.
      length: tokens of a sequence; 64, or half the context where that is less.
      sequences: how many; 32.
      seed: of the sequences; 0.

    Values: `first_nats`, `repeat_nats` per token, `gain` = first - repeat, `accuracy` of the most likely token in the
    second occurrence.

    Raises:
      ConfigError: no such set, fewer than two ids, or sequences that do not fit twice into `model.context`.
    """
    options = context.read(set=None, length=None, sequences=32, seed=0)
    where, model = f"{context.where}.options", context.model
    fits = (model.spec.context + 1) // 2  # the last token of a row is a target only
    length = min(LONGEST, fits) if options["length"] is None else count(options["length"], f"{where}.length", 2)
    if not 2 <= length <= fits:
        raise ConfigError(
            f"{where}.length: two sequences of {length} tokens do not fit model.context={model.spec.context}"
        )
    ids = np.unique(context.windows_of(options["set"]))
    if context.tokenizer is not None:
        ids = ids[ids != context.tokenizer.eod_id]
    if len(ids) < 2:
        raise ConfigError(f"{where}.set: its rows hold fewer than two ids, too few to copy")
    seed = count(options["seed"], f"{where}.seed", 0)
    rows_RxM = doubled(ids, count(options["sequences"], f"{where}.sequences"), length, seed)
    arrays = {"row": rows_RxM, "scored": np.ones(len(rows_RxM), np.float32)}

    @jax.jit
    def measured(params: Params, placed: dict[str, jax.Array]) -> dict[str, jax.Array]:
        def one_pass(rows: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
            tokens_RxL, targets_RxL = rows["row"][:, :-1], rows["row"][:, 1:]
            hidden_RxLxD = model.apply(params, tokens_RxL)
            chunk = automatic_rows(tokens_RxL.size, model.spec.vocab_size)
            nll_RxL = cross_entropy(hidden_RxLxD, model.head(params), targets_RxL, chunk)
            likeliest_RxK = _likeliest(hidden_RxLxD[:, length:], model.head(params))
            hit_RxK = (likeliest_RxK == targets_RxL[:, length:]).astype(jnp.float32)
            scored_R = rows["scored"]
            # Target j is token j + 1 of the row: [:length - 1] and [length:] are the same tokens.
            means = (nll_RxL[:, : length - 1], nll_RxL[:, length:], hit_RxK)
            return tuple((x.mean(axis=1) * scored_R).sum() for x in means)

        first, repeat, hits = (x.sum() / len(rows_RxM) for x in jax.lax.map(one_pass, placed))
        # A NaN is no wrong answer.
        accuracy = jnp.where(jnp.isnan(repeat), jnp.nan, hits)
        return {"first_nats": first, "repeat_nats": repeat, "gain": first - repeat, "accuracy": accuracy}

    return lambda params, step: measured(params, in_passes(params, rows_per_pass(context), arrays))


def doubled(ids: np.ndarray, rows: int, length: int, seed: int) -> np.ndarray:
    """int32 `[rows, 2 * length]`, each row a random sequence of `ids` and the same once more."""
    rng = np.random.default_rng([seed, 0xC0B1])
    once_RxN = np.stack([rng.choice(ids, length, replace=len(ids) < length) for _ in range(rows)])
    return np.concatenate([once_RxN, once_RxN], axis=1).astype(np.int32)


def _likeliest(hidden_RxKxD: jax.Array, head_DxV: jax.Array) -> jax.Array:
    """The most likely id at each position; the logits of one position of all rows exist at once."""
    head_DxV = head_DxV.astype(hidden_RxKxD.dtype)

    def at_position(hidden_RxD: jax.Array) -> jax.Array:
        return jnp.dot(hidden_RxD, head_DxV, preferred_element_type=jnp.float32).argmax(axis=-1)

    return jax.lax.map(at_position, hidden_RxKxD.swapaxes(0, 1)).T
