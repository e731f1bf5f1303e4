"""Composition: segments laid end to end become one schedule, `step -> lr`.

`lr(t)` is the learning rate of update t, where t counts the updates already done (0-based, as in optax and GPT-NeoX).
A schedule of n steps is defined on 0..n; `lr(n)` is its end value, which no update of this schedule uses and from
which the next segment, or the next phase, begins. At a joint the later segment speaks.
"""

from __future__ import annotations

import bisect
import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from cpt.errors import ConfigError
from cpt.schedules.segments import Part, Ramp, Segment
from cpt.units import compact

MOST_SHOWN = 6  # segments in a line of the plan's table


@dataclass(frozen=True)
class _Piece:
    first: int
    begin: float
    segment: Segment


class Schedule:
    """A composed schedule; build it with `compose`. Calling it with a step gives a Python float (computed in float64).

    Attributes:
      segments: the segments it was composed of, those of zero steps included.
      steps: length n in updates.
      start: learning rate before the first segment (the end of the previous phase; 0 when there was none).
      end: `lr(n)`.
    """

    def __init__(self, segments: tuple[Segment, ...], pieces: list[_Piece], start: float, end: float):
        self.segments = segments
        self.start = start
        self.end = end
        self.steps = sum(s.steps for s in segments)
        self._pieces = pieces
        self._firsts = [p.first for p in pieces]

    def __call__(self, step: int) -> float:
        """Learning rate of update `step`; beyond the last step the end value, as in optax. Inactive segments never run.

        Raises:
          ValueError: `step` is negative.
        """
        step = operator.index(step)
        if step < 0:
            raise ValueError(f"step {step}: a schedule begins at step 0")
        if step >= self.steps:
            return self.end
        piece = self._pieces[bisect.bisect_right(self._firsts, step) - 1]
        return piece.segment.at(step - piece.first, piece.begin)

    def values(self, first: int, last: int) -> np.ndarray:
        """float64 `[last - first]`: the same numbers for the steps `first <= step < last`, one array per segment.

        Raises:
          ValueError: `first` is negative.
        """
        if first < 0:
            raise ValueError(f"step {first}: a schedule begins at step 0")
        out_T = np.full(max(0, last - first), self.end)
        for piece in self._pieces:
            low, high = max(first, piece.first), min(last, piece.first + piece.segment.steps)
            if low < high:
                t_T = np.arange(low - piece.first, high - piece.first, dtype=np.float64)
                out_T[low - first : high - first] = piece.segment.curve(t_T, piece.begin)
        return out_T

    def slice(self, first: int, last: int) -> Schedule:
        """The steps `first..last` as a schedule of their own, so that several phases can share one trajectory.

        Raises:
          ValueError: not `0 <= first <= last <= steps`.
        """
        if not 0 <= first <= last <= self.steps:
            raise ValueError(f"steps {first} to {last} of a schedule of {self.steps}")
        pieces = []
        for piece in self._pieces:
            low, high = max(first, piece.first), min(last, piece.first + piece.segment.steps)
            if low >= high:
                continue
            if high - low == piece.segment.steps:
                pieces.append(_Piece(low - first, piece.begin, piece.segment))
            else:
                part = Part(piece.segment, piece.begin, low - piece.first, high - low)
                pieces.append(_Piece(low - first, part.stated, part))
        start = self._before(first)
        end = self.end if last == self.steps and pieces else self._before(last)
        return Schedule(tuple(p.segment for p in pieces), pieces, start, end)

    def branch(self, at: int, segments: Iterable[Segment], where: str = "lr") -> Schedule:
        """A child: this schedule up to step `at`, then `segments` (a cooldown), which begin at the rate reached there.

        Raises:
          ConfigError: as `compose`.
          ValueError: `at` is not a step of this schedule.
        """
        trunk, tail = self.slice(0, at), compose(segments, self._before(at), where)
        moved = [_Piece(p.first + at, p.begin, p.segment) for p in tail._pieces]
        return Schedule((*trunk.segments, *tail.segments), [*trunk._pieces, *moved], self.start, tail.end)

    def first_below(self, lr: float) -> int | None:
        """The first step from which the learning rate stays at or below `lr` (a data switch by rate: Parmar et al.
        2024, arXiv 2407.07263); None if it ends above.
        """
        if self.end > lr:
            return None
        step = self.steps
        # From the end backwards in blocks: long schedules are rarely looked through whole.
        while step > 0:
            low = max(0, step - (1 << 20))
            above = np.flatnonzero(self.values(low, step) > lr)
            if len(above):
                return low + int(above[-1]) + 1
            step = low
        return 0

    @property
    def joints(self) -> list[int]:
        """The steps at which its segments begin."""
        return list(self._firsts)

    @property
    def last_fall(self) -> int:
        """The step at which its last decay begins; its length where nothing decays."""
        return next((p.first for p in reversed(self._pieces) if p.segment.falls), self.steps)

    @property
    def highest(self) -> float:
        """The highest learning rate, its end included; `start` where it has no steps."""
        return max((p.segment.highest(p.begin) for p in self._pieces), default=self.start)

    def _before(self, step: int) -> float:
        """The level that the segment before `step` reaches there: not that of a later one that jumps."""
        piece = next((p for p in reversed(self._pieces) if p.first < step), None)
        return self.start if piece is None else piece.segment.at(step - piece.first, piece.begin)

    def describe(self) -> str:
        """One line such as `ramp 3 > cosine 1e-3..1e-4`; a ramp after an earlier phase is called `re-warm`. Of more
        than `MOST_SHOWN` segments only the first ones and the last are told.
        """
        words = []
        shown = self._pieces if len(self._pieces) <= MOST_SHOWN else [*self._pieces[: MOST_SHOWN - 2], self._pieces[-1]]
        for p in shown:
            text = p.segment.describe(p.begin)
            if isinstance(p.segment, Ramp):
                text = text.replace("ramp", "re-warm", 1) if self.start > 0 and p.first == 0 else text
                # The segment after a ramp shows where the ramp led; the last one must say it itself.
                text += f" to {compact(self.end)}" if p is self._pieces[-1] else ""
            words.append(text)
        if len(shown) < len(self._pieces):  # many cycles
            words.insert(-1, f"... {len(self._pieces) - len(shown)} more")
        return " > ".join(words) if words else f"nothing at {compact(self.end)}"


def compose(segments: Iterable[Segment], start: float = 0.0, where: str = "lr") -> Schedule:
    """The schedule that runs `segments` one after the other.

    A segment of zero steps is skipped and changes nothing, with one exception: a `Ramp` of zero steps means "no
    warm-up", so the segment after it begins at the ramp's `to`. This is the only jump that needs no `jump=True`.

    Args:
      segments: the pieces in order.
      start: learning rate before the first of them: the end of the previous phase, 0 when there was none.
      where: config path, for errors.

    Raises:
      ConfigError: a segment states a beginning other than the previous end without `jump=True`, or its shape is not
        defined between its two levels.
    """
    segments = tuple(segments)
    pieces: list[_Piece] = []
    first, level = 0, float(start)
    for number, segment in enumerate(segments, start=1):
        if segment.steps == 0:
            level = segment.end(level) if isinstance(segment, Ramp) else level
            continue
        begin = _begin(segment, level, f"{where}: segment {number} of {len(segments)}")
        pieces.append(_Piece(first, begin, segment))
        first, level = first + segment.steps, segment.end(begin)
    return Schedule(segments, pieces, float(start), level)


def _begin(segment: Segment, previous: float, where: str) -> float:
    name = type(segment).__name__
    begin = previous if segment.stated is None else float(segment.stated)
    if not segment.jump and not math.isclose(begin, previous, rel_tol=segment.tolerance):
        raise ConfigError(
            f"{where} ({name}) begins at {begin:g}, but the one before it ends at {previous:g}; "
            "begin where that one ends, or say jump=True"
        )
    try:
        # The two ends are where a shape that needs positive levels would fail.
        ends = segment.at(0, begin), segment.at(segment.steps, begin)
    except ValueError as e:
        raise ConfigError(f"{where} ({name}): {e}") from e
    if not all(map(math.isfinite, ends)):
        raise ConfigError(f"{where} ({name}): the learning rate is not finite at its ends (got {ends[0]}, {ends[1]})")
    if min(ends) < 0:
        raise ConfigError(f"{where} ({name}): the learning rate is below 0 at its ends (got {ends[0]:g}, {ends[1]:g})")
    return begin
