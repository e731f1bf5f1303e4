"""Segments: the pieces a learning-rate schedule is made of.

A segment lasts `steps` updates and moves the learning rate from the level at which it begins to the level at which it
ends. It knows its own length and target only; where it begins is the end of the segment before it, so a list of
segments is continuous by construction. A segment may state its own beginning (`start`, or `value` of a `Hold`); where
that differs from the previous end the segment must also say `jump=True`, so that no discontinuity goes unnoticed.

Every segment is written once, for an array of steps; a single step is an array of one, so that a trajectory of ten
million steps and the loop that asks for one at a time see the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cpt.schedules.shapes import POSITIVE_SHAPES, Shape, shape_named
from cpt.units import compact, human


class Segment:
    """What every segment answers. `t` counts updates from the segment's own beginning, 0..steps; rates are floats."""

    steps: int
    jump: bool
    # How far (relative) a stated beginning may lie from the previous end and still count as the same number.
    tolerance: ClassVar[float] = 1e-9
    # Whether the learning rate falls along a shape to a level: what a cooldown is.
    falls: ClassVar[bool] = False

    @property
    def stated(self) -> float | None:
        """The level this segment states that it begins at; None = the end of the one before."""
        raise NotImplementedError

    def end(self, begin: float) -> float:
        """Learning rate after the last step, for a segment that begins at `begin`."""
        raise NotImplementedError

    def curve(self, t_T: np.ndarray, begin: float) -> np.ndarray:
        """Learning rates float64 [T], `t_T` updates (float64, 0..steps) into the segment.

        Raises:
          ValueError: the shape is not defined for these two levels (`exp` from or to 0).
        """
        raise NotImplementedError

    def at(self, t: int, begin: float) -> float:
        """Learning rate `t` updates into the segment; raises as `curve`."""
        return float(self.curve(np.array([t], np.float64), begin)[0])

    def highest(self, begin: float) -> float:
        """The highest learning rate of the segment, its end included."""
        return max(begin, self.end(begin))  # most go straight from one level to another

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

    def curve(self, t_T: np.ndarray, begin: float) -> np.ndarray:
        return shape_named("linear")(begin, self.to, t_T / self.steps)

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

    def curve(self, t_T: np.ndarray, begin: float) -> np.ndarray:
        return np.full(len(t_T), begin)

    def describe(self, begin: float) -> str:
        return f"hold {human(self.steps)} at {compact(begin)}"


@dataclass(frozen=True)
class Decay(Segment):
    """A fall (or rise) to `to` along a shape: `lr = to + (start - to) * f(u)`, or `start * (to / start)**u` for `exp`.

    Attributes:
      to: learning rate after the last step, >= 0 (> 0 for `exp` and `inverse`).
      steps: length in updates.
      shape: a name in `cpt.schedules.shapes.SHAPES`, or a `Shape`.
      start: level to begin at; None = the previous end.
      jump: `start` is meant to differ from the previous end.
    """

    to: float
    steps: int
    shape: str | Shape = "cosine"
    start: float | None = None
    jump: bool = False
    falls: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check(self.steps, to=self.to, start=self.start)
        shape_named(self.shape)
        if self.shape in POSITIVE_SHAPES and not self.to > 0:
            raise ValueError(f"shape '{self.shape}' cannot reach {self.to}; it needs an end above 0")

    @property
    def stated(self) -> float | None:
        return self.start

    def end(self, begin: float) -> float:
        return float(self.to)

    def curve(self, t_T: np.ndarray, begin: float) -> np.ndarray:
        if self.shape in POSITIVE_SHAPES and not begin > 0:
            raise ValueError(f"shape '{self.shape}' cannot begin at {begin}; it needs a start above 0")
        return shape_named(self.shape)(begin, self.to, t_T / self.steps)

    def describe(self, begin: float) -> str:
        return f"{self.shape} {compact(begin)}..{compact(self.to)}"


@dataclass(frozen=True)
class Rsqrt(Segment):
    """An inverse square root without an end: `lr = floor + (begin - floor) * sqrt(timescale / (timescale + t))`.

    Attributes:
      steps: length in updates.
      timescale: updates after which the fall begins to show, > 0; the length of the warm-up in the usual recipe.
      floor: level that it falls towards.
      start: level to begin at; None = the previous end.
      jump: `start` is meant to differ from the previous end.
    """

    steps: int
    timescale: float
    floor: float = 0.0
    start: float | None = None
    jump: bool = False

    def __post_init__(self) -> None:
        _check(self.steps, floor=self.floor, start=self.start)
        if not (math.isfinite(self.timescale) and self.timescale > 0):
            raise ValueError(f"timescale must be above 0, got {self.timescale!r}")

    @property
    def stated(self) -> float | None:
        return self.start

    def end(self, begin: float) -> float:
        return self.at(self.steps, begin)

    def curve(self, t_T: np.ndarray, begin: float) -> np.ndarray:
        return self.floor + (begin - self.floor) * np.sqrt(self.timescale / (self.timescale + t_T))

    def describe(self, begin: float) -> str:
        return f"rsqrt {compact(begin)}..{compact(self.end(begin))}"


@dataclass(frozen=True)
class Power(Segment):
    """A power of the tokens seen: `lr = min(cap, scale * n**exponent)`, n = first_token + t * tokens_per_step.

    The power scheduler of Shen et al. 2024 (arXiv 2408.13359). It states its own beginning.

    Attributes:
      steps: length in updates.
      scale, exponent: a times the batch, and b (negative).
      cap: highest learning rate; it also holds at n = 0, where the power is infinite.
      first_token, tokens_per_step: where the segment begins, and what one update adds.
      jump: its beginning is meant to differ from the previous end.
    """

    steps: int
    scale: float
    exponent: float
    cap: float
    first_token: int
    tokens_per_step: int
    jump: bool = False

    def __post_init__(self) -> None:
        _check(self.steps, scale=self.scale, cap=self.cap)

    @property
    def stated(self) -> float | None:
        return self.at(0, 0.0)

    def end(self, begin: float) -> float:
        return self.at(self.steps, begin)

    def curve(self, t_T: np.ndarray, begin: float) -> np.ndarray:
        tokens_T = np.maximum(self.first_token + t_T * self.tokens_per_step, 1.0)
        return np.minimum(self.cap, self.scale * tokens_T**self.exponent)

    def describe(self, begin: float) -> str:
        return f"power {compact(begin)}..{compact(self.end(begin))}"


@dataclass(frozen=True, eq=False)
class Tabulated(Segment):
    """Values given one by one, for schedules that come from measurements.

    Attributes:
      values: float64 [n]; value i belongs to i / (n - 1) of the segment, between them the line.
      steps: length in updates.
      jump: its beginning is meant to differ from the previous end.
    """

    values: np.ndarray
    steps: int
    jump: bool = False

    def __post_init__(self) -> None:
        _check(self.steps)
        if len(self.values) < 2 or not (np.isfinite(self.values).all() and (np.asarray(self.values) >= 0).all()):
            raise ValueError("values must be at least two finite learning rates >= 0")

    @property
    def stated(self) -> float | None:
        return float(self.values[0])

    def end(self, begin: float) -> float:
        return float(self.values[-1])

    def highest(self, begin: float) -> float:
        return _highest(self, begin)

    def curve(self, t_T: np.ndarray, begin: float) -> np.ndarray:
        return np.interp(t_T / self.steps * (len(self.values) - 1), np.arange(len(self.values)), self.values)

    def describe(self, begin: float) -> str:
        return f"table {compact(begin)}..{compact(self.end(begin))}"


@dataclass(frozen=True)
class Custom(Segment):
    """Any `step -> lr` callable, such as an optax schedule, on its own clock that begins at 0.

    Attributes:
      fn: called with the int t in 0..steps; returns a number.
      steps: length in updates.
      jump: `fn(0)` is meant to differ from the previous end.
      name: how the plan's table calls it; None = the function's own name.
    """

    fn: Callable[[int], float]
    steps: int
    jump: bool = False
    name: str | None = None
    # optax computes in float32.
    tolerance: ClassVar[float] = 1e-6

    def __post_init__(self) -> None:
        _check(self.steps)

    @property
    def stated(self) -> float | None:
        return float(self.fn(0))

    def end(self, begin: float) -> float:
        return float(self.fn(self.steps))

    def highest(self, begin: float) -> float:
        return _highest(self, begin)

    def curve(self, t_T: np.ndarray, begin: float) -> np.ndarray:
        # One by one: nobody promised that a user's function takes arrays.
        return np.array([float(self.fn(int(t))) for t in t_T], np.float64)

    def describe(self, begin: float) -> str:
        return f"{self.name or getattr(self.fn, '__name__', type(self.fn).__name__)} {human(self.steps)}"


@dataclass(frozen=True)
class Part(Segment):
    """The updates `first .. first + steps` of another segment that began at `begin_of_whole`: what a slice cuts out.

    Attributes:
      whole: the segment.
      begin_of_whole: the level at which the whole begins.
      first, steps: the part.
    """

    whole: Segment
    begin_of_whole: float
    first: int
    steps: int
    jump: bool = False

    @property
    def stated(self) -> float | None:
        return self.whole.at(self.first, self.begin_of_whole)

    def end(self, begin: float) -> float:
        return self.whole.at(self.first + self.steps, self.begin_of_whole)

    @property
    def falls(self) -> bool:
        # A phase that begins in the middle of a cooldown is in its cooldown.
        return self.whole.falls

    def highest(self, begin: float) -> float:
        return _highest(self, begin)

    def curve(self, t_T: np.ndarray, begin: float) -> np.ndarray:
        return self.whole.curve(t_T + self.first, self.begin_of_whole)

    def describe(self, begin: float) -> str:
        name = self.whole.describe(self.begin_of_whole).split(" ")[0]
        if begin == self.end(begin):
            return f"{name} {human(self.steps)} at {compact(begin)}"
        return f"{name} {compact(begin)}..{compact(self.end(begin))}"


def _highest(segment: Segment, begin: float, points: int = 257) -> float:
    """The highest rate of a curve with one top (or none), without looking at each of its steps.

    Looks at evenly spaced steps, then again between the neighbours of the best of them, until there is none between.
    """
    low, high = 0, segment.steps
    while True:
        t_T = np.unique(np.linspace(low, high, points).astype(np.int64))
        lr_T = segment.curve(t_T.astype(np.float64), begin)
        best = int(lr_T.argmax())
        low, high = int(t_T[max(0, best - 1)]), int(t_T[min(best + 1, len(t_T) - 1)])
        if len(t_T) < points:  # every step of the stretch was looked at
            return float(lr_T[best])


def _check(steps: int, **levels: float | None) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"steps must be a whole number >= 0, got {steps!r}")
    for name, level in levels.items():
        if level is not None and not (math.isfinite(level) and level >= 0):
            raise ValueError(f"{name} must be a finite learning rate >= 0, got {level!r}")
