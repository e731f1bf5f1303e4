"""Perplexity under an n-gram model of a reference corpus, over token ids (strategy II of 2406.14833, without KenLM)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cpt.data.scorers._base import Scorer, ScorerSpec
from cpt.errors import ConfigError, DataError

CHUNK_TOKENS = 1 << 22  # counted at a time


def ngram(spec: ScorerSpec) -> Scorer:
    """Train on `reference` and score documents by it.

    Interpolated with Witten and Bell's weights (1991; Chen & Goodman 1998, section 2.5), down to the uniform
    distribution, so that every id has a probability after every history:

        P(w | h) = (c(h w) + T(h) P(w | h')) / (c(h) + T(h)),    h' = h without its first id,

    with c the counts and T(h) the number of different ids seen after h. A history does not reach across the beginning
    of a document.

    Raises:
      ConfigError: no reference, an order that does not fit.
      DataError: the reference was made with another tokenizer, or is empty.
    """
    if spec.reference is None:
        raise ConfigError("--reference: the ngram scorer needs a store of good text to compare with")
    tokenizer = spec.tokenizer
    made_with = spec.reference.manifest.get("tokenizer", {}).get("hash", tokenizer.hash)
    if made_with != tokenizer.hash:
        raise DataError(
            f"{spec.reference.folder}: made with another tokenizer ({made_with[:8]}) than the store that is scored "
            f"({tokenizer.hash[:8]}); prepare both with the same one"
        )
    model = NGrams(tokenizer.vocab_size, spec.order)
    model.count(ids for _, _, ids in _first(spec.reference.documents(), spec.reference_tokens))
    if not model.tokens:
        raise DataError(f"{spec.reference.folder}: no documents to learn from")
    return model.score


def _first(documents: Iterator, tokens: int) -> Iterator:
    for document in documents:
        if tokens <= 0:
            return
        tokens -= len(document[2])
        yield document


@dataclass(frozen=True)
class _Table:
    """Counts of the n-grams of one order, and of their histories, by sorted key."""

    keys: np.ndarray
    counts: np.ndarray
    histories: np.ndarray
    totals: np.ndarray
    distinct: np.ndarray


class NGrams:
    """An n-gram model over ids; `count` first, then ask.

    An n-gram is one integer of `order` times as many bits as an id needs, so its counts lie in sorted arrays, exactly.

    Args:
      vocab_size: ids are below it.
      order: n.

    Raises:
      ConfigError: an order below 1, or n-grams of more than 63 bits.
    """

    def __init__(self, vocab_size: int, order: int):
        self.bits = max(1, int(vocab_size - 1).bit_length())
        if not 1 <= order <= 63 // self.bits:
            most = 63 // self.bits
            raise ConfigError(f"--order: {order} is out of range (1 to {most} with {vocab_size:,} ids)")
        self.vocab_size, self.order, self.tokens = vocab_size, order, 0
        self._tables: list[_Table] = []

    def count(self, documents: Iterator[np.ndarray]) -> None:
        """Learn from documents; what was counted before is forgotten."""
        merged = [(np.zeros(0, np.int64), np.zeros(0, np.int64)) for _ in range(self.order)]
        for ids_T, place_T in _chunks(documents):
            self.tokens += len(ids_T)
            for n, keys_T in enumerate(self._keys(ids_T), 1):
                keys, counts = np.unique(keys_T[place_T >= n - 1], return_counts=True)
                merged[n - 1] = _merge(*merged[n - 1], keys, counts)
        self._tables = [self._table(*m) for m in merged]

    def score(self, documents: Sequence[np.ndarray]) -> np.ndarray:
        """Mean nats per token of each document, float64; NaN for an empty one."""
        sizes = np.array([len(ids) for ids in documents], np.int64)
        if not sizes.sum():
            return np.full(len(sizes), np.nan)
        ids_T, place_T = _joined(documents)
        nats_T = -np.log(self.probability(ids_T, place_T))
        document_T = np.repeat(np.arange(len(sizes)), sizes)
        with np.errstate(invalid="ignore"):
            return np.bincount(document_T, nats_T, len(sizes)) / sizes

    def probability(self, ids_T: np.ndarray, place_T: np.ndarray) -> np.ndarray:
        """P of each id after those before it, of which `place_T` say how many belong to its document."""
        p_T = np.full(len(ids_T), 1.0 / self.vocab_size)
        for n, (keys_T, table) in enumerate(zip(self._keys(ids_T), self._tables, strict=True), 1):
            seen = _lookup(table.histories, keys_T >> self.bits)
            known = (seen >= 0) & (place_T >= n - 1)
            at, history = _lookup(table.keys, keys_T[known]), seen[known]
            counts = np.where(at >= 0, table.counts[at], 0)
            total, distinct = table.totals[history], table.distinct[history]
            p_T[known] = (counts + distinct * p_T[known]) / (total + distinct)
        return p_T

    def _keys(self, ids_T: np.ndarray) -> Iterator[np.ndarray]:
        """For n = 1, 2, ...: the n ids that end at each place, as one integer (of the array's start: as many)."""
        ids_T = ids_T.astype(np.int64)
        keys_T = ids_T.copy()
        yield keys_T
        for n in range(1, self.order):
            keys_T = keys_T.copy()
            keys_T[n:] |= ids_T[:-n] << (n * self.bits)
            yield keys_T

    def _table(self, keys: np.ndarray, counts: np.ndarray) -> _Table:
        # The history is in the high bits: n-grams of one history lie together.
        histories, first, distinct = np.unique(keys >> self.bits, return_index=True, return_counts=True)
        totals = np.add.reduceat(counts, first) if len(keys) else counts
        return _Table(keys, counts, histories, totals, distinct)


def _lookup(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Place of each key in a sorted array, -1 where it is not there."""
    if not len(keys):
        return np.full(len(wanted), -1)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, at, -1)


def _merge(
    keys: np.ndarray, counts: np.ndarray, more: np.ndarray, more_counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    both, inverse = np.unique(np.concatenate([keys, more]), return_inverse=True)
    return both, np.bincount(inverse, np.concatenate([counts, more_counts]), len(both)).astype(np.int64)


def _chunks(documents: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    waiting, tokens = [], 0
    for ids in documents:
        waiting.append(ids)
        tokens += len(ids)
        if tokens >= CHUNK_TOKENS:
            yield _joined(waiting)
            waiting, tokens = [], 0
    if tokens:
        yield _joined(waiting)


def _joined(documents: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(ids, place of each in its document)."""
    sizes = np.array([len(ids) for ids in documents], np.int64)
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.concatenate(documents), np.arange(len(starts)) - starts
