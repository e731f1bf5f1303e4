"""Ask a model about texts of many lengths through a function of few shapes: likelihoods and greedy continuations.

A request is padded to one of a few lengths and a pass to a fixed number of rows, so that the model compiles once per
length. Padding lies behind what is asked about, where a causal model cannot see it, so it needs no mask. A continuation
is made with kept keys and values where the model has them, else by running the whole prefix again for each token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from cpt.data.tokenizers._base import Tokenizer
from cpt.models.base import Model
from cpt.models.generation import can_generate, generate, padded
from cpt.objectives.cross_entropy import LOGITS_AT_ONCE

Scores = Callable[[np.ndarray], tuple[Any, Any]]
"""int32 windows `[R, L + 1]` -> (nats, best): float32 `[R, L]`, the nats of all but the first token of each row, and
int32 `[R, L]`, the likeliest token in the place of each of them. The last token of a row is only a target."""

Request = tuple[Sequence[int], Sequence[int]]
"""(context, continuation): ids that are given, at least one, and ids that are scored."""

Follow = Callable[[Sequence[Sequence[int]], Sequence[int]], Iterator[np.ndarray]]
"""Prompts and how many tokens each wants -> the likeliest next id of each, int32 `[R]`, one after the other; what a row
gets beyond what it wants has no meaning."""


def model_scores(model: Model, params: Any, sharding: Sharding | None = None) -> Scores:
    """The `Scores` of a model; compiles once for each shape of windows.

    Args:
      params: of the model, on the devices that compute.
      sharding: of the windows, where the rows are to be split over devices; their number must fit.
    """

    @jax.jit
    def run(params: Any, windows_RxM: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden_RxLxD = model.apply(params, windows_RxM[:, :-1])
        head_DxV = model.head(params).astype(hidden_RxLxD.dtype)

        def row(pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            hidden_LxD, targets_L = pair
            logits_LxV = jnp.dot(hidden_LxD, head_DxV, preferred_element_type=jnp.float32)
            target_L = jnp.take_along_axis(logits_LxV, targets_L[:, None], axis=1)[:, 0]
            return jax.nn.logsumexp(logits_LxV, axis=1) - target_L, logits_LxV.argmax(axis=1).astype(jnp.int32)

        rows, length = windows_RxM.shape[0], windows_RxM.shape[1] - 1
        at_once = max(1, min(rows, LOGITS_AT_ONCE // (length * head_DxV.shape[1])))
        return jax.lax.map(row, (hidden_RxLxD, windows_RxM[:, 1:]), batch_size=at_once)

    def scores(windows_RxM: np.ndarray) -> tuple[jax.Array, jax.Array]:
        return run(params, windows_RxM if sharding is None else jax.device_put(windows_RxM, sharding))

    return scores


def model_follow(model: Model, params: Any, sharding: Sharding | None = None) -> Follow | None:
    """The `Follow` of a model, None of one whose family keeps no keys and values; arguments as of `model_scores`."""
    if not can_generate(model):
        return None
    return lambda prompts, tokens: generate(model, params, prompts, tokens, sharding=sharding)


@dataclass(frozen=True)
class HarnessModel:
    """A model that can be asked, and nothing of where it comes from.

    Attributes:
      scores: see `Scores`; a causal model.
      tokenizer: of the model; its `eod_id` stands before a text that nothing else stands before.
      context: longest row that `scores` takes, in tokens.
      rows: of a pass.
      follow: see `Follow`; without it `scores` are asked for each token of a continuation.
    """

    scores: Scores
    tokenizer: Tokenizer
    context: int
    rows: int = 16
    follow: Follow | None = None

    def loglikelihoods(
        self, requests: Sequence[Request], progress: Callable[[int], Any] = lambda n: None
    ) -> list[tuple[float, bool]]:
        """For each request `log p(continuation | context)` in nats, and whether each token of it is the likeliest.

        What is too long is cut on the left; a continuation longer than the context is scored in windows, each token
        once and with as much before it as fits beside the tokens that are scored with it.

        Args:
          progress: receives how many windows more are done.
        """
        pieces = [
            (i, *piece) for i, (given, asked) in enumerate(requests) for piece in windows(given, asked, self.context)
        ]
        nats, greedy = np.zeros(len(requests)), np.ones(len(requests), bool)
        pieces.sort(key=lambda piece: -len(piece[1]))  # the longest first: what runs out of memory does so at once
        for group in self._groups(pieces):
            scored_RxL, best_RxL = self._pass([ids for _, ids, _ in group])
            for (i, ids, n), row_L, best_L in zip(group, scored_RxL, best_RxL, strict=False):
                asked = slice(len(ids) - 1 - n, len(ids) - 1)
                nats[i] += row_L[asked].astype(np.float64).sum()
                greedy[i] &= bool((best_L[asked] == np.asarray(ids[-n:])).all())
            progress(len(group))
        return [(0.0 - float(n), bool(g)) for n, g in zip(nats, greedy, strict=True)]

    def continuations(self, prompts: Sequence[Sequence[int]], wanted: Sequence[Stop]) -> list[str]:
        """The greedy continuation of each prompt, of one id at least.

        A prompt is cut on the left to what fits beside the tokens that are asked for.
        """
        texts = [""] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        for group in self._groups(order):
            limits = [min(wanted[i].tokens, self.context - 1) for i in group]
            ids = [list(prompts[i][limit - self.context :]) for i, limit in zip(group, limits, strict=True)]
            new: list[list[int]] = [[] for _ in group]
            going = [r for r, limit in enumerate(limits) if limit > 0]
            for next_R in self._following(ids, limits) if going else ():
                still = []
                for r in going:
                    new[r].append(int(next_R[r]))
                    ended, stop = new[r][-1] == self.tokenizer.eod_id, wanted[group[r]]
                    texts[group[r]] = text = self.tokenizer.decode(new[r][:-1] if ended else new[r])
                    if not (ended or len(new[r]) >= limits[r] or any(s in text for s in stop.strings)):
                        still.append(r)
                if not (going := still):
                    break
        return [wanted[i].cut(text) for i, text in enumerate(texts)]

    def _following(self, prompts: list[list[int]], limits: list[int]) -> Iterator[np.ndarray]:
        """The next id of each row of a group, over and over."""
        if self.follow is not None:
            empty = self.rows - len(prompts)  # a smaller last group would be a shape of its own
            return self.follow([*prompts, *[[self.tokenizer.eod_id]] * empty], [*limits, *[1] * empty])
        return self._rerun(prompts, limits)

    def _rerun(self, prompts: list[list[int]], limits: list[int]) -> Iterator[np.ndarray]:
        """`follow` of a model of which only `scores` are known."""
        ids, ends = [list(p) for p in prompts], [len(p) + n for p, n in zip(prompts, limits, strict=True)]
        for _ in range(max(limits)):
            # One more id at the end: of a window the last is a target only.
            _, best_RxL = self._pass([[*row, 0] for row in ids])
            next_R = np.array([best_L[len(row) - 1] for row, best_L in zip(ids, best_RxL, strict=False)])
            for row, end, best in zip(ids, ends, next_R.tolist(), strict=True):
                row += [best] if len(row) < end else []
            yield next_R

    def _groups(self, items: list[Any]) -> Iterator[list[Any]]:
        return (items[i : i + self.rows] for i in range(0, len(items), self.rows))

    def _pass(self, rows: list[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """nats and best of some rows, padded to one of the shapes."""
        length = padded(max(len(ids) for ids in rows) - 1, self.context)
        windows_RxM = np.full((self.rows, length + 1), self.tokenizer.eod_id, np.int32)
        for row_M, ids in zip(windows_RxM, rows, strict=False):
            row_M[: len(ids)] = ids
        nats_RxL, best_RxL = self.scores(windows_RxM)
        return np.asarray(nats_RxL), np.asarray(best_RxL)


@dataclass(frozen=True)
class Stop:
    """Where a continuation ends: after so many tokens, or before the first of some strings."""

    tokens: int
    strings: tuple[str, ...] = ()

    def cut(self, text: str) -> str:
        """`text` before the first of the strings."""
        return text[: min((at for s in self.strings if (at := text.find(s)) >= 0), default=len(text))]


def windows(given: Sequence[int], asked: Sequence[int], context: int) -> Iterator[tuple[list[int], int]]:
    """Windows of at most `context + 1` ids, each with how many of its last ids are scored in it.

    Each id of `asked` is scored once, in order; each window reaches back as far as it may.
    """
    ids = [*given, *asked]
    for first in range(len(given), len(ids), context):
        end = min(first + context, len(ids))
        yield ids[max(0, end - context - 1) : end], end - first
