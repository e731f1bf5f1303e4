"""Perplexity under an n-gram model of a reference corpus, over token ids (strategy II of 2406.14833, without KenLM)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cpt.data.scorers._base import Score, Scorer, ScorerSpec
from cpt.data.store import TokenStore
from cpt.errors import ConfigError, DataError

CHUNK_TOKENS = 1 << 22  # counted at a time
MOST_TOKENS = 2**31 - 1  # counts are int32


def ngram(spec: ScorerSpec) -> Scorer:
    """Train on `reference` and score documents by it.

    Interpolated with Witten and Bell's weights (1991; Chen & Goodman 1998, section 2.5), down to the uniform
    distribution, so that every id has a probability after every history:

        P(w | h) = (c(h w) + T(h) P(w | h')) / (c(h) + T(h)),    h' = h without its first id,

    with c the counts and T(h) the number of different ids seen after h. A history does not reach across the beginning
    of a document.

    Raises:
      ConfigError: no reference, an order or a number that does not fit.
      DataError: the reference was made with another tokenizer, or (when it is read) is empty.
    """
    if spec.reference is None:
        raise ConfigError("--reference: the ngram scorer needs a store of good text to compare with")
    if not 1 <= spec.reference_tokens <= MOST_TOKENS:
        raise ConfigError(f"--reference_tokens: {spec.reference_tokens:,} is out of range (1 to {MOST_TOKENS:,})")
    tokenizer, reference = spec.tokenizer, spec.reference
    made_with = reference.manifest.get("tokenizer", {}).get("hash", tokenizer.hash)
    if made_with != tokenizer.hash:
        raise DataError(
            f"{reference.folder}: made with another tokenizer ({made_with[:8]}) than the store that is scored "
            f"({tokenizer.hash[:8]}); prepare both with the same one"
        )
    model = NGrams(tokenizer.vocab_size, spec.order, spec.max_ngrams)

    def train() -> Score:
        model.count(_spread(reference, spec.reference_tokens))
        if not model.tokens:
            raise DataError(f"{reference.folder}: no documents to learn from")
        return model.score

    names = ("order", "reference_tokens", "max_ngrams")
    return Scorer({"reference": reference.fingerprint, **{k: getattr(spec, k) for k in names}}, train)


def _spread(store: TokenStore, tokens: int) -> Iterator[np.ndarray]:
    """Documents of about so many tokens in all, from everywhere: a store holds one domain after the other."""
    passed = taken = 0
    for _, _, ids in store.documents():
        if taken * store.n_tokens <= passed * tokens:
            yield ids
            taken += len(ids)
        passed += len(ids)


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

    An n-gram is one integer of `order` times as many bits as an id needs, and its counts lie in sorted arrays of 12
    bytes an n-gram. Where there come to be more than `max_ngrams` of an order, the rarest are forgotten, as in lossy
    counting (Manku & Motwani 2002); what is left is again a distribution, which falls back to shorter histories there.

    Args:
      vocab_size: ids are below it.
      order: n.
      max_ngrams: of one order, kept while counting (but never fewer than there are ids).

    Raises:
      ConfigError: an order below 1, n-grams of more than 63 bits, or none to be kept.
    """

    def __init__(self, vocab_size: int, order: int, max_ngrams: int = 1 << 24):
        self.bits = max(1, int(vocab_size - 1).bit_length())
        if not 1 <= order <= 63 // self.bits:
            most = 63 // self.bits
            raise ConfigError(f"--order: {order} is out of range (1 to {most} with {vocab_size:,} ids)")
        if max_ngrams < 1:
            raise ConfigError(f"--max_ngrams: {max_ngrams} is out of range (>= 1)")
        self.vocab_size, self.order, self.max_ngrams = vocab_size, order, max(max_ngrams, vocab_size)
        self.tokens = 0
        self._tables: list[_Table] = []

    def count(self, documents: Iterable[np.ndarray]) -> None:
        """Learn from documents; what was counted before is forgotten."""
        self.tokens = 0
        merged = [(np.zeros(0, np.int64), np.zeros(0, np.int32)) for _ in range(self.order)]
        for ids_T, place_T in _chunks(documents):
            self.tokens += len(ids_T)
            for n, keys_T in enumerate(self._keys(ids_T), 1):
                more = np.unique(keys_T[place_T >= n - 1], return_counts=True)
                # In two statements: the second runs when the table before the first is gone from memory.
                merged[n - 1] = _merge(*merged[n - 1], *more)
                merged[n - 1] = _commonest(*merged[n - 1], self.max_ngrams)
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
            # Sorted questions walk once through a table that is far larger than a cache; so do their histories.
            known = np.flatnonzero(place_T >= n - 1)
            known = known[np.argsort(keys_T[known])]
            seen = _lookup(table.histories, keys_T[known] >> self.bits)
            known, seen = known[seen >= 0], seen[seen >= 0]
            at = _lookup(table.keys, keys_T[known])
            counts = np.where(at >= 0, table.counts[at], 0)
            total, distinct = table.totals[seen], table.distinct[seen]
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
        histories = keys >> self.bits
        new = np.concatenate([[True], histories[1:] != histories[:-1]])[: len(keys)]
        first = np.flatnonzero(new)
        totals = np.add.reduceat(counts, first, dtype=np.int64) if len(keys) else counts
        return _Table(keys, counts, histories[first], totals, np.diff(first, append=len(keys)))


def _lookup(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Place of each key in a sorted array, -1 where it is not there."""
    if not len(keys):
        return np.full(len(wanted), -1)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, at, -1)


def _merge(
    keys: np.ndarray, counts: np.ndarray, more: np.ndarray, more_counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Two sorted tables as one, without sorting the large one again; `counts` is added to in place."""
    more_counts = more_counts.astype(counts.dtype)
    at = _lookup(keys, more)
    counts[at[at >= 0]] += more_counts[at >= 0]
    new, new_counts = more[at < 0], more_counts[at < 0]
    places = np.searchsorted(keys, new)
    return np.insert(keys, places, new), np.insert(counts, places, new_counts)


def _commonest(keys: np.ndarray, counts: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` n-grams; if there are more, three quarters of it, so that this is done now and then only."""
    if len(keys) <= most:
        return keys, counts
    keep = max(1, 3 * most // 4)
    least = np.partition(counts, -keep)[-keep]
    chosen = counts > least
    # Of equally rare ones some, evenly over the histories: all of them would often be nearly everything.
    ties = np.flatnonzero(counts == least)
    chosen[ties[np.linspace(0, len(ties) - 1, keep - int(chosen.sum())).astype(np.int64)]] = True
    return keys[chosen], counts[chosen]


def _chunks(documents: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
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
