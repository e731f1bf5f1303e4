"""Batches by step, on Grain's random-access core; the state of the loader is the step.

One element of the Grain data set is one batch, so order and content cannot depend on threads, workers or hosts, and a
resumed run starts at its step in constant time.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Iterator, Mapping

import grain
import numpy as np

from cpt.data.mix import MixPlan
from cpt.data.store import TokenStore
from cpt.errors import DataError


class Batches:
    """Random access to the batches of a run: `self[step]`.

    Args:
      mix: the data plan.
      stores: training store of each source.
      rows: numbers of the rows of each batch that this process reads; all by default.
      end_of_document: id that ends a document; given, `segments_BxL` numbers the documents of each row for masking.
      vocab_size: the model's; a larger id in a batch is an error. What is beyond it in a store is found before the run
        where that takes seconds, but nobody reads a terabyte first.

    Attributes:
      bytes: that each batch takes: ids, which targets share, and segments.
    """

    def __init__(
        self,
        mix: MixPlan,
        stores: Mapping[str, TokenStore],
        rows: np.ndarray | slice | None = None,
        end_of_document: int | None = None,
        vocab_size: int | None = None,
    ):
        self.mix, self.stores, self.end_of_document = mix, dict(stores), end_of_document
        self.vocab_size = np.iinfo(np.int32).max if vocab_size is None else vocab_size
        self.mine = slice(None) if rows is None else rows
        self.length = mix.plan.spec.batch.length
        rows = len(np.arange(mix.batch)[self.mine])
        self._ones_BxL = np.ones((rows, self.length), np.float32)  # weights, of all batches
        self._ones_BxL.flags.writeable = False
        self.bytes = 4 * rows * self.length * (1 if end_of_document is None else 2)

    def __len__(self) -> int:
        return self.mix.plan.total_steps

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        (batch,) = self.read(range(int(step), int(step) + 1))
        return batch

    def read(self, steps: range) -> list[dict[str, np.ndarray]]:
        """The batches of some steps, for little more than what one of them costs a thread that runs Python.

        Raises:
          DataError, IndexError: one of them cannot be read.
        """
        column_SxB, source_SxB, row_SxB = self.mix.batches_at(np.array(steps), self.mine)
        window_SxBxM = np.empty((*row_SxB.shape, self.length + 1), np.int32)
        for i in np.unique(source_SxB).tolist():
            mine = source_SxB == i
            window_SxBxM[mine] = self.stores[self.mix.sources[i]].read_rows(row_SxB[mine], self.length)
        if window_SxBxM.size and not 0 <= window_SxBxM.min() <= window_SxBxM.max() < self.vocab_size:
            self._refuse(window_SxBxM, source_SxB, row_SxB)
        arrays = {
            "tokens_BxL": window_SxBxM[:, :, :-1],
            "targets_BxL": window_SxBxM[:, :, 1:],
            "weights_BxL": [self._ones_BxL] * len(steps),
            "source_B": column_SxB.astype(np.int32),
        }
        if self.end_of_document is not None:
            ends_SxBxL = arrays["tokens_BxL"] == self.end_of_document
            arrays["segments_BxL"] = np.cumsum(ends_SxBxL, axis=2, dtype=np.int32) - ends_SxBxL
        return [{name: of_S[s] for name, of_S in arrays.items()} for s in range(len(steps))]

    def _refuse(self, window_SxBxM: np.ndarray, source_SxB: np.ndarray, row_SxB: np.ndarray) -> None:
        wrong_SxB = ((window_SxBxM < 0) | (window_SxBxM >= self.vocab_size)).any(axis=2)
        at = tuple(np.argwhere(wrong_SxB)[0])
        name, low, high = self.mix.sources[source_SxB[at]], int(window_SxBxM[at].min()), int(window_SxBxM[at].max())
        raise DataError(
            f"sources.{name}: row {row_SxB[at]:,} holds the token id {low if low < 0 else high}, "
            f"model.vocab_size={self.vocab_size}; prepare the store with the model's tokenizer"
        )


READ_AHEAD_S = 10.0  # of updates: a pause of the disk that is shorter is waited out
READ_AHEAD, READ_AHEAD_BYTES = (4, 64), 2**28  # and in batches; in bytes, where that is not fewer than four
PACE = 16  # updates that tell how long one takes
READS, READ = 4, 16  # what is read ahead comes in so many reads, each of at most so many batches
STEP_BACK_S = 0.005  # for whoever asked for a read ahead to dispatch an update first


class Reads:
    """Several batches as one element of a Grain data set: the first one alone, and then lists of `size` of them.

    A thread that reads Python's way keeps the one that trains from going on for as long as that takes and, where all
    cores compute, until it gets a core again. So it reads now and then, several batches at a time.

    Args:
      step, stop: the first one, and where they end.
    """

    def __init__(self, batches: Batches, step: int, stop: int, size: int):
        self._batches, self._steps, self._size = batches, range(step, stop), size

    def __len__(self) -> int:
        return 1 + -(-(len(self._steps) - 1) // self._size) if self._steps else 0

    def __getitem__(self, i: int) -> list[dict[str, np.ndarray] | Exception]:
        """The batches; where one cannot be read, its error in its place: those before it can be trained on."""
        if i == 0:
            return self._as_far_as_possible(self._steps[:1])
        time.sleep(STEP_BACK_S)
        steps = self._steps[1 + (int(i) - 1) * self._size :][: self._size]
        try:
            return self._batches.read(steps)
        except Exception:
            return self._as_far_as_possible(steps)

    def _as_far_as_possible(self, steps: range) -> list[dict[str, np.ndarray] | Exception]:
        out: list[dict[str, np.ndarray] | Exception] = []
        for step in steps:
            try:
                out += self._batches.read(range(step, step + 1))
            except Exception as e:
                return [*out, e]
        return out


def read_ahead(batches: Batches, update_s: float | None) -> int:
    """How many batches are read ahead: those of ten seconds of updates, within limits of number and memory.

    A number alone is wrong somewhere: 32 batches are a second of a small model's updates, and 32 GB of a large one's.

    Args:
      update_s: seconds from one batch to the next; None where nobody knows yet, which reads the fewest.
    """
    fewest, most = READ_AHEAD
    if update_s is None:
        return fewest
    memory = READ_AHEAD_BYTES // batches.bytes
    return max(fewest, min(math.ceil(READ_AHEAD_S / max(update_s, 1e-9)), most, memory))


def start_at(
    batches: Batches,
    step: int,
    prefetch: int | None = None,
    stop: int | None = None,
    used_s: deque[float] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """The batches from `step` to `stop` (the end of the plan), some of them read ahead by threads.

    Args:
      prefetch: how many; by default half as many as `read_ahead` says at least, once it is seen how soon they are used.
        Besides those, what is left of the read before is held: a quarter of them at most.
      used_s: seconds that each batch was used for, up to now; those of these batches are added.
    """
    end = len(batches) if stop is None else min(stop, len(batches))
    used_s = deque() if used_s is None else used_s
    ahead = wanted = read_ahead(batches, pace(used_s)) if prefetch is None else prefetch
    while step < end:
        for batch in _reading(batches, step, end, ahead):
            began = time.monotonic()
            yield batch
            step += 1
            if prefetch is not None:
                continue
            used_s.append(time.monotonic() - began)
            if step % PACE == 0:
                wanted = read_ahead(batches, pace(used_s))
                if wanted >= 2 * ahead:
                    break  # what was read ahead so far is read again: little, and seldom
        ahead = wanted


def pace(used_s: deque[float]) -> float | None:
    """Median of the last `PACE` of them; None where there are fewer. Older ones are dropped."""
    while len(used_s) > PACE:
        used_s.popleft()
    return statistics.median(used_s) if len(used_s) == PACE else None


def _reading(batches: Batches, step: int, end: int, ahead: int) -> Iterator[dict[str, np.ndarray]]:
    size = min(max(1, ahead // READS), READ)
    reads = grain.MapDataset.source(Reads(batches, step, end, size))
    options = grain.ReadOptions(num_threads=min(ahead // size, 2), prefetch_buffer_size=ahead // size)
    for read in reads.to_iter_dataset(options):
        for batch in read:
            if isinstance(batch, Exception):
                raise batch
            yield batch
