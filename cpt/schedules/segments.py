"""Segments: the pieces a learning-rate schedule is made of.

A segment lasts `steps` updates and moves the learning rate from the level at which it begins to the level at which it
ends. It knows its own length and target only; where it begins is the end of the segment before it, so a list of
segments is continuous by construction. A segment may state its own beginning (`start`, or `value` of a `Hold`); where
that differs from the previous end the segment must also say `jump=True`, so that no discontinuity goes unnoticed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from cpt.errors import nearest
from cpt.units import compact, human

Shape = Callable[[float, float, float], float]


def _between(f: Callable[[float], float]) -> Shape:
    """The shape that moves from `start` to `to` as `f` falls from `f(0) = 1` to `f(1) = 0`; exact at both ends."""

    def shape(start: float, to: float, u: float) -> float:
        return start * f(u) + to * (1.0 - f(u))

    return shape


def _geometric(start: float, to: float, u: float) -> float:
    """`start * (to / start)**u`, written so that it is exact at both ends."""
    return start ** (1.0 - u) * to**u


_linear = _between(lambda u: 1.0 - u)

# `(start, to, u) -> lr` for the elapsed share u of the segment. To add a shape, add a line.
SHAPES: dict[str, Shape] = {
    "linear": _linear,
    "cosine": _between(lambda u: (1.0 + math.cos(math.pi * u)) / 2.0),
    "1-sqrt": _between(lambda u: 1.0 - math.sqrt(u)),  # Hagele et al. 2024, arXiv 2405.18392
    "exp": _geometric,
}
# A geometric path cannot leave or reach 0.
POSITIVE_SHAPES = frozenset({"exp"})


class Segment:
    """What every segment answers. `t` counts updates from the segment's own beginning, 0..steps; rates are floats."""

    steps: int
    jump: bool
    # How far (relative) a stated beginning may lie from the previous end and still count as the same number.
    tolerance: ClassVar[float] = 1e-9

    @property
    def stated(self) -> float | None:
        """The level this segment states that it begins at; None = the end of the one before."""
        raise NotImplementedError

    def end(self, begin: float) -> float:
        """Learning rate after the last step, for a segment that begins at `begin`."""
        raise NotImplementedError

    def at(self, t: int, begin: float) -> float:
        """Learning rate `t` updates into the segment.

        Raises:
          ValueError: the shape is not defined for these two levels (`exp` from or to 0).
        """
        raise NotImplementedError

    def describe(self, begin: float) -> str:
        """A few words for the plan's table."""
        raise NotImplementedError


@dataclass(frozen=True)
class Ramp(Segment):
    """Linear change to `to`: the warm-up, or the re-warming of a later phase.

    Attributes:
      to: learning rate after the last step, >= 0.
      steps: length in updates; 0 means no warm-up: the next segment begins at `to`.
      start: level to begin at; None = the previous end.
      jump: `start` is meant to differ from the previous end.
    """

    to: float
    steps: int
    start: float | None = None
    jump: bool = False

    def __post_init__(self) -> None:
        _check(self.steps, to=self.to, start=self.start)

    @property
    def stated(self) -> float | None:
        return self.start

    def end(self, begin: float) -> float:
        return float(self.to)

    def at(self, t: int, begin: float) -> float:
        return _linear(begin, self.to, t / self.steps)

    def describe(self, begin: float) -> str:
        return f"ramp {human(self.steps)}"


@dataclass(frozen=True)
class Hold(Segment):
    """A constant learning rate.

    Attributes:
      steps: length in updates.
      value: level to hold; None = the previous end.
      jump: `value` is meant to differ from the previous end.
    """

    steps: int
    value: float | None = None
    jump: bool = False

    def __post_init__(self) -> None:
        _check(self.steps, value=self.value)

    @property
    def stated(self) -> float | None:
        return self.value

    def end(self, begin: float) -> float:
        return begin

    def at(self, t: int, begin: float) -> float:
        return begin

    def describe(self, begin: float) -> str:
        return f"hold {human(self.steps)} at {compact(begin)}"


@dataclass(frozen=True)
class Decay(Segment):
    """A fall (or rise) to `to` along a shape: `lr = to + (start - to) * f(u)`, or `start * (to / start)**u` for `exp`.

    Attributes:
      to: learning rate after the last step, >= 0 (> 0 for `exp`).
      steps: length in updates.
      shape: a name in `SHAPES`.
      start: level to begin at; None = the previous end.
      jump: `start` is meant to differ from the previous end.
    """

    to: float
    steps: int
    shape: str = "cosine"
    start: float | None = None
    jump: bool = False

    def __post_init__(self) -> None:
        _check(self.steps, to=self.to, start=self.start)
        if self.shape not in SHAPES:
            raise ValueError(f"no shape '{self.shape}'{nearest(self.shape, SHAPES)}  (there are: {', '.join(SHAPES)})")
        if self.shape in POSITIVE_SHAPES and not self.to > 0:
            raise ValueError(f"shape '{self.shape}' cannot reach {self.to}; it needs an end above 0")

    @property
    def stated(self) -> float | None:
        return self.start

    def end(self, begin: float) -> float:
        return float(self.to)

    def at(self, t: int, begin: float) -> float:
        if self.shape in POSITIVE_SHAPES and not begin > 0:
            raise ValueError(f"shape '{self.shape}' cannot begin at {begin}; it needs a start above 0")
        return SHAPES[self.shape](begin, self.to, t / self.steps)

    def describe(self, begin: float) -> str:
        return f"{self.shape} {compact(begin)}..{compact(self.to)}"


@dataclass(frozen=True)
class Custom(Segment):
    """Any `step -> lr` callable, such as an optax schedule, on its own clock that begins at 0.

    Attributes:
      fn: called with the int t in 0..steps; returns a number.
      steps: length in updates.
      jump: `fn(0)` is meant to differ from the previous end.
    """

    fn: Callable[[int], float]
    steps: int
    jump: bool = False
    # optax computes in float32.
    tolerance: ClassVar[float] = 1e-6

    def __post_init__(self) -> None:
        _check(self.steps)

    @property
    def stated(self) -> float | None:
        return float(self.fn(0))

    def end(self, begin: float) -> float:
        return float(self.fn(self.steps))

    def at(self, t: int, begin: float) -> float:
        return float(self.fn(t))

    def describe(self, begin: float) -> str:
        return f"{getattr(self.fn, '__name__', type(self.fn).__name__)} {human(self.steps)}"


def _check(steps: int, **levels: float | None) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"steps must be a whole number >= 0, got {steps!r}")
    for name, level in levels.items():
        if level is not None and not (math.isfinite(level) and level >= 0):
            raise ValueError(f"{name} must be a finite learning rate >= 0, got {level!r}")
