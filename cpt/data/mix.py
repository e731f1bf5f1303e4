"""Which row of which source is row `b` of batch `t`: a pure function of the plan, the store sizes and the step.

Three layers, each exact and each random-access:
  1. `Allocation` turns the shares of a phase into whole rows per batch, never more than one row away from the shares'
     sum.
  2. Every column (a source, or a replay) has a cursor: how many of its rows came before. It follows from the counts,
     so a source goes on in a later phase where it stopped, on any machine, after any restart.
  3. A cursor is mapped to a row: for a source by a keyed permutation per epoch, for replay by going back to the row
     that the replayed phase read at that place of its stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from cpt.data.allocation import Allocation
from cpt.data.decisions import Rounds, rounds
from cpt.data.permutation import KeyedPermutation
from cpt.errors import ConfigError, DataError
from cpt.plan import Column, Phase, RunPlan


class MixPlan:
    """The data of a run, by step.

    Args:
      plan: the run.
      rows: number of training rows in each source's store.
      epochs: passes allowed over each source; 1.0 where not named.

    Raises:
      DataError: a source runs out before the plan ends.
      ConfigError: a replay would repeat its range, or an outside store, more often than `max_repeats`.
    """

    def __init__(self, plan: RunPlan, rows: Mapping[str, int], epochs: Mapping[str, float] | None = None):
        self.plan, self.rows = plan, dict(rows)
        self.batch = plan.spec.batch.sequences
        self.allocations = [row_counts(p) for p in plan.phases]
        self._last: tuple[int, tuple[np.ndarray, list[str], np.ndarray]] | None = None
        self._cursor_at_phase: list[dict[str, int]] = []
        cursor: dict[str, int] = dict.fromkeys(self.rows, 0)
        replayed, passed = [], {}
        for phase, allocation in zip(plan.phases, self.allocations, strict=True):
            self._cursor_at_phase.append(dict(cursor))
            for column, count in zip(phase.columns, allocation.counts_before(phase.steps), strict=True):
                stream = _stream_name(phase, column)
                cursor[stream] = cursor.get(stream, 0) + int(count)
                if column.source is None or _is_outside(column):
                    # Whichever way it is read, what is read again counts against the cap.
                    span = (column.of, column.source, phase.spec.replay.range, self.range_size(phase, column))
                    passed[span] = passed.get(span, 0) + int(count)
                    replayed.append((phase, column, passed[span], int(count)))
        self.consumed = {name: cursor[name] for name in self.rows}
        self._check_sources(epochs or {})
        for use in replayed:
            self._check_replay(*use)

    def batch_at(self, step: int, rows: np.ndarray | slice | None = None) -> tuple[np.ndarray, list[str], np.ndarray]:
        """The batch of update `step`.

        Args:
          rows: numbers of those of its rows that are wanted, all by default: no host pays for the rows of the others.

        Returns:
          column_B: index of each row's column in the phase; names: the source each row lies in; row_B: its row there.
        """
        phase = self.plan.phase_at(step)
        inside = step - phase.first_step
        allocation = self.allocations[phase.index]
        before, counts = allocation.counts_before(inside), allocation.counts_at(inside)
        # Rows lie in the batch in a shuffled order, so that each host and micro-batch gets the same mixture.
        number_B = np.arange(self.batch) if rows is None else np.arange(self.batch)[rows]
        slot_B = KeyedPermutation(self.batch, f"{self.plan.spec.seed}/batch/{step}")(number_B)
        ends = np.cumsum(counts)
        column_B = np.searchsorted(ends, slot_B, side="right")
        place_B = before[column_B] + slot_B - (ends - counts)[column_B]
        row_B, names = np.zeros(len(slot_B), np.int64), np.empty(len(slot_B), object)
        for k, column in enumerate(phase.columns):
            mine = np.flatnonzero(column_B == k)
            if len(mine):
                names[mine], row_B[mine] = self._rows_of(phase, column, place_B[mine])
        return column_B, list(names), row_B

    def counts(self, phase: Phase, step_in_phase: int) -> np.ndarray:
        """Rows of each column consumed in `phase` before its step `step_in_phase`."""
        return self.allocations[phase.index].counts_before(step_in_phase)

    def first_reads(self, phase: Phase, column: Column, rows: int) -> int:
        """How many of the first `rows` rows that `phase` takes from a column had not been read from it before.

        Every epoch reads each row of the range once, so what lies beyond the first epoch is a repeat. The rows of a
        replayed range are the places of the old stream: had the old phase itself read a row twice, it has two places.
        """
        begin = self._cursor_at_phase[phase.index].get(_stream_name(phase, column), 0)
        return min(rows, max(0, self.range_size(phase, column) - begin))

    def range_size(self, phase: Phase, column: Column) -> int:
        """Distinct rows that a column can read: the source's store, or the replayed range."""
        if column.source is not None:
            return self.rows[column.source]
        seen = self._new_rows(self.plan.phases[self._index(column.of)])
        replay = phase.spec.replay
        if replay.range == "reservoir":
            return min(seen, max(1, (replay.reservoir or 0) // self.plan.spec.batch.length))
        return seen

    def _rows_of(self, phase: Phase, column: Column, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Source names and rows for places in a column of a phase."""
        seed = self.plan.spec.seed
        cursor = self._cursor_at_phase[phase.index].get(_stream_name(phase, column), 0) + place
        if column.source is not None:
            size = self.rows[column.source]
            shuffled = self.plan.spec.sources[column.source].order == "shuffled"
            row = _shuffled(size, f"{seed}/source/{column.source}", cursor) if shuffled else cursor % size
            return np.full(len(place), column.source, object), row
        replay, old = phase.spec.replay, self.plan.phases[self._index(column.of)]
        size, key = self.range_size(phase, column), f"{seed}/replay/{column.of}"
        if replay.range == "reservoir":
            # The first `size` places of a shuffle of everything seen are a uniform sample without replacement.
            return self._stream(old, _permutation(self._new_rows(old), key)(cursor % size))
        return self._stream(old, _shuffled(size, key, cursor) if replay.order == "shuffled" else cursor % size)

    def _stream(self, phase: Phase, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows at these places of the new data of a phase, in the order in which the phase read it."""
        allocation, is_new = self.allocations[phase.index], np.array([c.role == "new" for c in phase.columns])
        names, rows = np.empty(len(place), object), np.zeros(len(place), np.int64)
        for i, n in enumerate(place):
            low, high = 0, phase.steps - 1  # the step whose batch holds new row n
            while low < high:
                middle = (low + high + 1) // 2
                if allocation.counts_before(middle)[is_new].sum() <= n:
                    low = middle
                else:
                    high = middle - 1
            column_B, names_B, row_B = self._cached_batch(phase.first_step + low)
            which = np.flatnonzero(is_new[column_B])[int(n - allocation.counts_before(low)[is_new].sum())]
            names[i], rows[i] = names_B[which], row_B[which]
        return names, rows

    def _cached_batch(self, step: int) -> tuple[np.ndarray, list[str], np.ndarray]:
        # Replay in the original order reads the same old batch many times in a row. The loader asks from several
        # threads, so the pair is taken as a whole: between a check and a second look another thread may replace it.
        known = self._last
        if known is None or known[0] != step:
            known = self._last = (step, self.batch_at(step))
        return known[1]

    def _index(self, name: str) -> int:
        return next(p.index for p in self.plan.phases if p.name == name)

    def _new_rows(self, phase: Phase) -> int:
        counts = self.allocations[phase.index].counts_before(phase.steps)
        return int(sum(c for c, column in zip(counts, phase.columns, strict=True) if column.role == "new"))

    def _check_sources(self, epochs: Mapping[str, float]) -> None:
        length = self.plan.spec.batch.length
        outside = {c.source for phase in self.plan.phases for c in phase.columns if _is_outside(c)}
        for source, used in self.consumed.items():
            if source in outside:
                continue  # capped by the replays that read it
            allowed, size = epochs.get(source, 1.0), self.rows[source]
            # 4.64 epochs of 25 rows are 116 rows, in floats a little less.
            if used and (not size or used > allowed * size * (1 + 1e-9)):
                needed = used / size if size else float("inf")
                enough = f"allow epochs={np.ceil(needed * 100) / 100:.12g}" if size else "give it more data"
                raise DataError(
                    f"sources.{source}: runs out: the plan reads {used * length:,} tokens of it, its store has "
                    f"{size * length:,} ({needed:.3g} epochs, sources.{source}.epochs allows {allowed:g}); "
                    f"lower the phase's tokens or {enough}"
                )

    def _check_replay(self, phase: Phase, column: Column, consumed: int, count: int) -> None:
        """That a replay column which reads `count` rows, `consumed` with the phases before, has them to read."""
        where, replay = f"phases.{phase.name}.replay", phase.spec.replay
        if replay.range == "reservoir" and not replay.reservoir:
            raise ConfigError(f"{where}.reservoir: give its size in tokens")
        if count and column.source is None and not self._new_rows(self.plan.phases[self._index(column.of)]):
            raise ConfigError(f"{where}.of: '{column.of}' read no new data that could be replayed")
        size, length = self.range_size(phase, column), self.plan.spec.batch.length
        if count and not size:
            raise DataError(
                f"sources.{column.source}: {where} reads it, but its store has not one row of {length} tokens"
            )
        repeats = consumed / max(1, size)
        if repeats > replay.max_repeats:
            before = "" if consumed == count else ", with the phases before it"
            read = f"the store '{column.source}'" if column.of is None else f"its range of '{column.of}'"
            raise ConfigError(
                f"{where}.max_repeats: the plan replays {read} {repeats:.3g} times{before}; "
                f"{replay.max_repeats:g} allowed"
            )


def _is_outside(column: Column) -> bool:
    """Whether it replays a store that no phase learns."""
    return column.role == "replay" and column.of is None


def _stream_name(phase: Phase, column: Column) -> str:
    """What a column reads on in: phases that share it go on where the one before stopped."""
    if column.source is not None:
        return column.source
    replay = phase.spec.replay
    how = replay.reservoir if replay.range == "reservoir" else replay.order
    return f"replay({column.of}), {replay.range}, {how}"


def row_counts(phase: Phase) -> Allocation | Rounds:
    """Whole rows per column and batch of a phase; shares that are constant need no table."""
    where = f"phases.{phase.name}.mix"
    if every := phase.decides_every:
        first = list(rounds(every, phase.steps))
        # What is not decided yet is taken to stay as it is.
        return Rounds(first, [np.array(phase.shares(s)) for s in first], phase.sequences, phase.steps, where)
    return Allocation(phase.share_table(), batch=phase.sequences, steps=phase.steps, where=where)


@lru_cache(maxsize=64)
def _permutation(n: int, key: str) -> KeyedPermutation:
    return KeyedPermutation(n, key)


def _shuffled(size: int, key: str, cursor: np.ndarray) -> np.ndarray:
    """Cursors into an endless stream of shuffled epochs -> row numbers; each epoch has its own order."""
    epoch, place = np.divmod(cursor, size)
    out = np.empty(len(cursor), np.int64)
    for e in np.unique(epoch):
        out[epoch == e] = _permutation(size, f"{key}/{e}")(place[epoch == e])
    return out
