"""Exact allocation: how many rows of each batch come from which source.

A mix asks for real numbers (5 % of 1,104 rows is 55.2) and a batch holds whole rows. Rounding each batch alone is
wrong for ever: 0.4 rows round to none. So the remainder is carried: with W[s, k] the rows that source k should have
had after s batches, its count C[s, k] stays within one row of W[s, k] at every s, while every batch is exactly full.
Tijdeman 1980 ("The chairman assignment problem") proved that this is possible for any weights, also when they change
over time.

Why, and how: think of row number n of source k as a unit job. It may start once W[., k] exceeds n - 1 and must be
done when W[., k] reaches n; its fractions in between are a fractional timetable in which every batch is full, and
where there is a fractional timetable there is a whole one (bipartite flows are integral). Jobs whose window lies
inside one batch are certain. Of the others, a batch takes those with the earliest deadline.

Earliest deadline first finds the timetable when every window is an interval. It need not when a source pauses or
ends: a share of 0 must give no rows, so a pause leaves a hole in the window of the row that was under way, and a rule
that looks at deadlines alone can then be wrong. When a batch comes out with a row too many or too few, an exchange
along earlier batches (an augmenting path) mends it; that one exists follows from the same flow argument.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from functools import cached_property
from math import lcm
from typing import NamedTuple

import numpy as np

from cpt.errors import ConfigError

# A cumulative target this close to a whole number is that number: 0.05 * 20 rows are 1 row.
SNAP = 1e-6


class Allocation:
    """Rows per source and step, exact within one row at all times.

    For all steps s and sources k, with W[s, k] = batch * (sum of the shares of k over the first s steps):
    floor(W) <= C <= ceil(W); the rows of a step sum to `batch`; a share of 0 at a step gives 0 rows at that step.

    The answer is a pure function of the arguments, ties going to the first column. It looks ahead, so for varying
    shares a change of later ones can move single rows of earlier steps; constant shares give the same counts whatever
    the number of steps.

    Args:
      shares: `[S, K]`, or `[K]` for constant shares: token shares >= 0, each step's sum 1.
      batch: rows per step, >= 1.
      steps: S; required for constant shares.
      where: config path, for errors.

    Raises:
      ConfigError: shares that are negative, not finite, do not sum to 1, or do not match `steps`.
    """

    def __init__(self, shares: np.ndarray, batch: int, steps: int | None = None, where: str = "mix"):
        shares = np.asarray(shares, dtype=np.float64)
        self.constant = shares.ndim == 1
        if shares.ndim not in (1, 2) or shares.shape[-1] == 0:
            raise ConfigError(f"{where}: shares must have the shape [steps, sources] or [sources], got {shares.shape}")
        if self.constant and steps is None:
            raise ConfigError(f"{where}: constant shares need the number of steps")
        if not self.constant and steps not in (None, len(shares)):
            raise ConfigError(f"{where}: shares for {len(shares)} steps, but the phase has {steps}")
        if batch < 1:
            raise ConfigError(f"{where}: a batch needs at least 1 row, got {batch}")
        table = np.atleast_2d(shares)
        totals = table.sum(axis=1)
        # One comparison finds NaN too.
        wrong = np.flatnonzero(~((table >= 0).all(axis=1) & (np.abs(totals - 1) <= 1e-9)))
        if wrong.size:
            raise ConfigError(
                f"{where}: shares must be >= 0 and sum to 1; at step {wrong[0]} they are "
                f"{table[wrong[0]].tolist()} with the sum {totals[wrong[0]]:.9g}"
            )
        self._shares = table / totals[:, None]
        self.batch, self.sources = int(batch), table.shape[1]
        self.steps = int(len(table) if steps is None else steps)

    def counts_before(self, step: int | np.ndarray) -> np.ndarray:
        """int64 `[K]`: rows of each source in the steps 0..step-1 together; `counts_before(steps)` is the total.

        Args:
          step: one, or an array of them `[S]`, which gives `[S, K]`.

        Raises:
          IndexError: step outside 0..steps.
        """
        check_steps(step, self.steps)
        rounds, rest = divmod(step, self._period) if self._period else (0, step)
        return np.multiply.outer(rounds, self._counts[-1]) + self._counts[rest]

    def counts_at(self, step: int | np.ndarray) -> np.ndarray:
        """int64 `[K]`: rows of each source in step `step`; they sum to `batch`. An array gives `[S, K]`.

        Raises:
          IndexError: step outside 0..steps-1.
        """
        check_steps(step, self.steps - 1)
        return self.counts_before(step + 1) - self.counts_before(step)

    @cached_property
    def _period(self) -> int:
        """Steps after which constant shares repeat, all targets being whole; 0 if that is not before the last step."""
        if not self.constant:
            return 0
        period = 1
        for share in self._shares[0].tolist():
            ratio = Fraction(share).limit_denominator(10**6)
            if abs(float(ratio) - share) > 4 * np.finfo(float).eps * share:
                return 0
            period = lcm(period, (ratio * self.batch).denominator)
        return period if period < self.steps else 0

    @cached_property
    def _counts(self) -> np.ndarray:
        """int64 `[T + 1, K]` cumulative counts, T = the period or all steps; computed at the first query."""
        return _Timetable(self._shares, self.batch, self._period or self.steps).fill()


def check_steps(step: int | np.ndarray, last: int) -> None:
    """Raises IndexError where a step, or one of an array, lies outside 0..last."""
    low, high = (step.min(), step.max()) if isinstance(step, np.ndarray) else (step, step)
    if not 0 <= low <= high <= last:
        raise IndexError(f"step {low if low < 0 else high}: the allocation has the steps 0..{last}")


class _Job(NamedTuple):
    """A row that may go into more than one batch: row number `n` (counted from 1) of source `k`."""

    k: int
    n: int


class _Timetable:
    """The counts C = whole + extra, where `whole` = floor(W) and `extra` says whose next row is already done.

    All tables are [T + 1, K]; row s belongs to the moment after s batches. `started` marks the sources with a row
    under way (W not whole), `live` those with a share above 0 in batch s (counted from 1); `seats[s]` is the sum of
    `extra[s]` that makes the batches so far full.
    """

    def __init__(self, shares: np.ndarray, batch: int, steps: int):
        self.steps = steps
        self.rates = shares[-1] * batch
        self.whole, self.started, self.final = _targets(shares, batch, steps)
        self.live = np.zeros_like(self.started)
        self.live[1:] = shares > 0
        self.extra = np.zeros_like(self.started)
        self.seats = np.arange(steps + 1) * batch - self.whole.sum(axis=1)

    def fill(self) -> np.ndarray:
        """int64 `[T + 1, K]`: C, after placing all rows batch by batch."""
        for first in range(1, self.steps + 1, 8192):
            last = min(first + 8192, self.steps + 1)
            started, whole = self.started[first:last], self.whole[first:last]
            order = np.argsort(self._deadlines(first, last), axis=1, kind="stable")
            free = started & self.live[first:last]
            same = started & (whole == self.whole[first - 1 : last - 1])
            seats = self.seats[first:last].tolist()
            for i in range(last - first):
                self._batch(first + i, seats[i], same[i], free[i], order[i])
        return self.whole + self.extra

    def _batch(self, s: int, seats: int, same: np.ndarray, free: np.ndarray, order: np.ndarray) -> None:
        """Who is ahead after batch s: those who were and whose row is still under way, then the earliest deadlines."""
        ahead = self.extra[s]
        np.logical_and(self.extra[s - 1], same, out=ahead)
        need = seats - int(np.count_nonzero(ahead))
        if need > 0:
            picks = order[(free & ~ahead)[order]][:need]
            ahead[picks] = True
            need -= len(picks)
        while need:
            self._exchange(s, surplus=need < 0)
            need = seats - int(np.count_nonzero(ahead))

    def _deadlines(self, first: int, last: int) -> np.ndarray:
        """int64 `[last - first, K]`: the batch in which W reaches its next whole number.

        Beyond the last batch the last shares are taken to go on, so constant shares do not depend on the horizon.
        """
        out = np.full((last - first, self.whole.shape[1]), np.iinfo(np.int64).max)
        for k, rate in enumerate(self.rates.tolist()):
            target = self.whole[first:last, k] + 1
            due = np.searchsorted(self.whole[:, k], target)
            known = due <= self.steps
            out[known, k] = due[known]
            # A rate so small that its row is not due within 2**53 batches is as good as none.
            if rate > 1e-15:
                out[~known, k] = self.steps + np.ceil((target[~known] - self.final[k] - SNAP) / rate)
        return out

    @cached_property
    def _reached(self) -> np.ndarray:
        """ceil(W), `[T + 1, K]`."""
        return self.whole + self.started

    def _window(self, job: _Job) -> tuple[int, int]:
        """First and last batch that may hold the row; a last of T + 1 means that it need not be done at all."""
        first = np.searchsorted(self._reached[:, job.k], job.n)
        return int(first), int(np.searchsorted(self.whole[:, job.k], job.n))

    def _done_in(self, job: _Job, s: int) -> int | None:
        """The batch, among those up to s, that holds the row."""
        first, last = self._window(job)
        stop = min(last, s + 1)
        early = first + int(np.searchsorted(self.extra[first:stop, job.k], True))
        return early if early < stop else last if last <= s else None

    def _put(self, job: _Job, t: int | None, s: int) -> None:
        """Move the row into batch t, or out of the batches up to s."""
        first, last = self._window(job)
        stop = min(last, s + 1)
        self.extra[first:stop, job.k] = False
        if t is not None:
            self.extra[t:stop, job.k] = True

    def _moves(self, t: int, s: int, surplus: bool) -> Iterator[tuple[_Job, int | None]]:
        """Rows that can leave batch t (surplus) or enter it, and the batch up to s they would go to or come from."""
        for k in np.flatnonzero(self.live[t]).tolist():
            # Between the first and the last row that batch t touches, rows have no other batch.
            for n in sorted({int(self.whole[t - 1, k]) + 1, int(self._reached[t, k])}):
                job = _Job(k, n)
                first, last = self._window(job)
                now = self._done_in(job, s)
                if not first <= t <= last or first == last or (now == t) != surplus:
                    continue
                if not surplus:
                    yield job, now
                    continue
                if last > s:
                    yield job, None
                others = first + np.flatnonzero(self.live[first : min(last, s) + 1, k])
                yield from ((job, other) for other in others.tolist() if other != t)

    def _exchange(self, s: int, surplus: bool) -> None:
        """Take one row out of the batches up to s, or add one, so that only batch s changes its size.

        Breadth-first search for the shortest chain: a row leaves batch s for an earlier batch, a row of that one leaves
        for another, and so on up to a row that need not be done yet; or the same the other way round.
        """
        came_from: dict[int, tuple[int, _Job]] = {}
        queue = deque([s])
        while queue:
            t = queue.popleft()
            for job, other in self._moves(t, s, surplus):
                if other is None:
                    self._put(job, None if surplus else t, s)
                    while t != s:
                        neighbour, job = came_from[t]
                        self._put(job, t if surplus else neighbour, s)
                        t = neighbour
                    return
                if other != s and other not in came_from:
                    came_from[other] = (t, job)
                    queue.append(other)
        raise RuntimeError(
            f"no exact allocation after {s} batches: shares too small to tell apart from rounding errors"
        )


def _targets(shares: np.ndarray, batch: int, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """floor(W) int64 `[T + 1, K]`, whether W is above it (bool, same shape), and the last row of W (float64 `[K]`).

    Constant shares (`[1, K]`) are multiplied, not summed. Varying ones are summed as whole rows and fractions apart, so
    that the float sum stays small: its error is below 1e-8 rows after 10^5 steps, where SNAP is 1e-6.
    """
    whole = np.zeros((steps + 1, shares.shape[1]), np.int64)
    started = np.zeros(whole.shape, bool)
    final = np.zeros(shares.shape[1])
    for k in range(shares.shape[1]):
        rate = shares[:, k] * batch
        if len(rate) == 1:
            sure, rest = np.zeros(steps, np.int64), np.arange(1, steps + 1) * rate
        else:
            sure, rest = np.cumsum(np.floor(rate).astype(np.int64)), np.cumsum(rate - np.floor(rate))
        down = np.floor(rest + SNAP)
        whole[1:, k] = sure + down.astype(np.int64)
        started[1:, k] = rest - down > SNAP
        if steps:
            final[k] = float(sure[-1]) + rest[-1]
    return whole, started, final
