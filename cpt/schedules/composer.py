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
from cpt.schedules.segments import Ramp, Segment
from cpt.units import compact


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
        """float64 `[last - first]`: the same numbers, bit for bit, for the steps `first <= step < last`."""
        return np.array([self(step) for step in range(first, last)], dtype=np.float64)

    def describe(self) -> str:
        """One line such as `ramp 3 > cosine 1e-3..1e-4`; a ramp after an earlier phase is called `re-warm`."""
        words = []
        for p in self._pieces:
            text = p.segment.describe(p.begin)
            if isinstance(p.segment, Ramp):
                text = text.replace("ramp", "re-warm", 1) if self.start > 0 and p.first == 0 else text
                # The segment after a ramp shows where the ramp led; the last one must say it itself.
                text += f" to {compact(self.end)}" if p is self._pieces[-1] else ""
            words.append(text)
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
    return begin
