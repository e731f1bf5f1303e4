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
from typing import NamedTuple

import numpy as np

from cpt.data.allocation import Allocation
from cpt.data.decisions import Rounds, rounds
from cpt.data.permutation import KeyedPermutation, KeyedPermutations
from cpt.errors import ConfigError, DataError
from cpt.plan import Column, Phase, RunPlan

OLD_ROWS = 2**18  # of old batches, looked at together where a replay goes back to them


class BatchRows(NamedTuple):
    """Where the rows of some batches lie, int64 each.

    Attributes:
      column_SxB: index of each row's column in its phase.
      source_SxB: the source it lies in, as an index of `MixPlan.sources`.
      row_SxB: its row there.
    """

    column_SxB: np.ndarray
    source_SxB: np.ndarray
    row_SxB: np.ndarray


class MixPlan:
    """The data of a run, by step.

    Attributes:
      sources: names of the sources, as they are numbered.

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
        self.batch, self.sources = plan.spec.batch.sequences, tuple(self.rows)
        self.allocations = [row_counts(p) for p in plan.phases]
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
        (column_B,), (source_B,), (row_B,) = self.batches_at(np.array([step]), rows)
        return column_B, [self.sources[i] for i in source_B], row_B

    def batches_at(self, steps: np.ndarray, rows: np.ndarray | slice | None = None) -> BatchRows:
        """The batches of some updates, for little more than what one of them costs.

        Args:
          steps: `[S]`, in any order.
          rows: as for `batch_at`.
        """
        number_B = np.arange(self.batch) if rows is None else np.arange(self.batch)[rows]
        out = BatchRows(*(np.zeros((len(steps), len(number_B)), np.int64) for _ in BatchRows._fields))
        phase_S = np.array([self.plan.phase_at(step).index for step in steps.tolist()])
        for index in dict.fromkeys(phase_S.tolist()):
            phase, mine = self.plan.phases[index], phase_S == index
            column_SxB, place_SxB = self._places(phase, steps[mine] - phase.first_step, number_B)
            source_SxB, row_SxB = self._rows_of(phase, column_SxB, place_SxB)
            out.column_SxB[mine], out.source_SxB[mine], out.row_SxB[mine] = column_SxB, source_SxB, row_SxB
        return out

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

    def _places(self, phase: Phase, inside_S: np.ndarray, number_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The column of each row of batches of a phase, and the row's place among all that the phase takes from it."""
        allocation, n_columns = self.allocations[phase.index], len(phase.columns)
        counts_SxK = allocation.counts_at(inside_S)
        before_SxK = allocation.counts_before(inside_S)
        # Rows lie in the batch in a shuffled order, so that each host and micro-batch gets the same mixture.
        keys = [f"{self.plan.spec.seed}/batch/{step}" for step in (inside_S + phase.first_step).tolist()]
        slot_SxB = KeyedPermutations(self.batch, keys)(np.broadcast_to(number_B, (len(inside_S), len(number_B))))
        ends_SxK = np.cumsum(counts_SxK, axis=1)
        batch_Sx1 = np.arange(len(inside_S))[:, None]  # one search for all: slots and ends of batch after batch
        ends = (ends_SxK + batch_Sx1 * self.batch).ravel()
        column_SxB = np.searchsorted(ends, slot_SxB + batch_Sx1 * self.batch, side="right") - batch_Sx1 * n_columns
        first_SxK = before_SxK + counts_SxK - ends_SxK
        return column_SxB, np.take_along_axis(first_SxK, column_SxB, axis=1) + slot_SxB

    def _rows_of(self, phase: Phase, columns: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sources (by number) and rows for places in columns of a phase, of any shape."""
        sources, rows = np.zeros_like(places), np.zeros_like(places)
        for k, column in enumerate(phase.columns):
            mine = columns == k
            if mine.any():
                sources[mine], rows[mine] = self._rows_of_column(phase, column, places[mine])
        return sources, rows

    def _rows_of_column(self, phase: Phase, column: Column, place_N: np.ndarray) -> tuple[np.ndarray | int, np.ndarray]:
        seed = self.plan.spec.seed
        cursor_N = self._cursor_at_phase[phase.index].get(_stream_name(phase, column), 0) + place_N
        if column.source is not None:
            size = self.rows[column.source]
            shuffled = self.plan.spec.sources[column.source].order == "shuffled"
            row_N = _shuffled(size, f"{seed}/source/{column.source}", cursor_N) if shuffled else cursor_N % size
            return self.sources.index(column.source), row_N
        replay, old = phase.spec.replay, self.plan.phases[self._index(column.of)]
        size, key = self.range_size(phase, column), f"{seed}/replay/{column.of}"
        if replay.range == "reservoir":
            # The first `size` places of a shuffle of everything seen are a uniform sample without replacement.
            return self._stream(old, _permutation(self._new_rows(old), key)(cursor_N % size))
        return self._stream(old, _shuffled(size, key, cursor_N) if replay.order == "shuffled" else cursor_N % size)

    def _stream(self, phase: Phase, place_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows at these places of the new data of a phase, in the order in which the phase read it."""
        counts = self.allocations[phase.index].counts_before
        is_new_K = np.array([column.role == "new" for column in phase.columns])
        low_N, high_N = np.zeros_like(place_N), np.full_like(place_N, phase.steps - 1)
        while (low_N < high_N).any():  # the step whose batch holds new row n
            middle_N = (low_N + high_N + 1) // 2
            later_N = counts(middle_N)[:, is_new_K].sum(axis=1) <= place_N
            low_N, high_N = np.where(later_N, middle_N, low_N), np.where(later_N, high_N, middle_N - 1)
        nth_N = place_N - counts(low_N)[:, is_new_K].sum(axis=1)
        column_N, there_N = np.zeros_like(place_N), np.zeros_like(place_N)
        steps_U, which_N = np.unique(low_N, return_inverse=True)
        together = max(1, OLD_ROWS // self.batch)
        for u in range(0, len(steps_U), together):
            mine = (which_N >= u) & (which_N < u + together)
            column_UxB, place_UxB = self._places(phase, steps_U[u : u + together], np.arange(self.batch))
            new_first_UxB = np.argsort(~is_new_K[column_UxB], axis=1, kind="stable")
            at = which_N[mine] - u, new_first_UxB[which_N[mine] - u, nth_N[mine]]
            column_N[mine], there_N[mine] = column_UxB[at], place_UxB[at]
        return self._rows_of(phase, column_N, there_N)

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
