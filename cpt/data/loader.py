"""Batches by step, on Grain's random-access core; the state of the loader is the step.

One element of the Grain data set is one batch, so order and content cannot depend on threads, workers or hosts, and a
resumed run starts at its step in constant time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import grain
import numpy as np

from cpt.data.mix import MixPlan
from cpt.data.store import TokenStore
from cpt.errors import DataError
from cpt.plan import RunPlan


class Batches:
    """Random access to the batches of a run: `self[step]`.

    Args:
      mix: the data plan.
      stores: training store of each source.
      rows: numbers of the rows of each batch that this process reads; all by default.
      end_of_document: id that ends a document; given, `segments_BxL` numbers the documents of each row for masking.
      vocab_size: the model's; a larger id in a batch is an error. What is beyond it in a store is found before the run
        where that takes seconds, but nobody reads a terabyte first.
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

    def __len__(self) -> int:
        return self.mix.plan.total_steps

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        column_B, names, row_B = self.mix.batch_at(int(step), self.mine)
        names = np.array(names, object)
        window_BxM = np.empty((len(row_B), self.length + 1), np.int32)
        for name in dict.fromkeys(names):
            mine = names == name
            window_BxM[mine] = self.stores[name].read_rows(row_B[mine], self.length)
        if window_BxM.size and not 0 <= window_BxM.min() <= window_BxM.max() < self.vocab_size:
            self._refuse(window_BxM, names, row_B)
        batch = {
            "tokens_BxL": window_BxM[:, :-1],
            "targets_BxL": window_BxM[:, 1:],
            "weights_BxL": np.ones((len(row_B), self.length), np.float32),
            "source_B": column_B.astype(np.int32),
        }
        if self.end_of_document is not None:
            ends_BxL = window_BxM[:, :-1] == self.end_of_document
            batch["segments_BxL"] = (np.cumsum(ends_BxL, axis=1) - ends_BxL).astype(np.int32)
        return batch

    def _refuse(self, window_BxM: np.ndarray, names: np.ndarray, row_B: np.ndarray) -> None:
        i = np.flatnonzero(((window_BxM < 0) | (window_BxM >= self.vocab_size)).any(axis=1))[0]
        low, high = int(window_BxM[i].min()), int(window_BxM[i].max())
        raise DataError(
            f"sources.{names[i]}: row {row_B[i]:,} holds the token id {low if low < 0 else high}, "
            f"model.vocab_size={self.vocab_size}; prepare the store with the model's tokenizer"
        )


READ_AHEAD_BYTES, READ_AHEAD = 2**26, (4, 64)
READS = 4  # the batches that are read ahead come in so many reads
STEP_BACK_S = 0.005  # for whoever asked for a read ahead to dispatch an update first


class Reads:
    """Several batches as one element of a Grain data set: `self[i]` is the `i`-th list of `size` of them.

    A thread that reads Python's way keeps the one that trains from going on for as long as that takes and, where all
    cores compute, until it gets a core again. So it reads now and then, several batches at a time.

    Args:
      step, stop: the first one, and where they end.
    """

    def __init__(self, batches: Batches, step: int, stop: int, size: int):
        self._batches, self._steps, self._size = batches, range(step, stop), size

    def __len__(self) -> int:
        return -(-len(self._steps) // self._size)

    def __getitem__(self, i: int) -> list[dict[str, np.ndarray] | Exception]:
        """The batches; where one cannot be read, its error in its place: those before it can be trained on."""
        if i:
            time.sleep(STEP_BACK_S)
        out: list[dict[str, np.ndarray] | Exception] = []
        for step in self._steps[int(i) * self._size :][: self._size]:
            try:
                out.append(self._batches[step])
            except Exception as e:
                return [*out, e]
        return out


def read_ahead(plan: RunPlan) -> int:
    """How many batches are read ahead: 64 MB of them, at least 4 and at most 64.

    A pause of the disk is waited out if it is shorter than the updates that take, and of small batches, whose updates
    are short, there are more.
    """
    batch = 12 * plan.spec.batch.length * plan.spec.batch.sequences  # ids, targets and weights of 4 bytes
    return min(max(READ_AHEAD_BYTES // batch, READ_AHEAD[0]), READ_AHEAD[1])


def start_at(
    batches: Batches, step: int, prefetch: int | None = None, stop: int | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """The batches from `step` to `stop` (the end of the plan), `prefetch` (`read_ahead`) of them read ahead by threads.

    Besides those, what is left of the read before is held: a quarter of them at most.
    """
    prefetch = read_ahead(batches.mix.plan) if prefetch is None else prefetch
    size = max(1, prefetch // READS)
    end = len(batches) if stop is None else min(stop, len(batches))
    reads = grain.MapDataset.source(Reads(batches, step, end, size))
    ahead = prefetch // size
    for read in reads.to_iter_dataset(grain.ReadOptions(num_threads=min(ahead, 2), prefetch_buffer_size=ahead)):
        for batch in read:
            if isinstance(batch, Exception):
                raise batch
            yield batch
