"""What a config says about the learning rate of a phase, and how it becomes a schedule.

A recipe is a function `(spec, span, start, where) -> segments` in a file of `cpt/schedules/library` (or anywhere, by
dotted name). `spec` holds the fields of the config, `span` how long the phase is, `start` the learning rate at the end
of the phase before (0.0 before the first), and `where` the config path that errors name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cpt.errors import ConfigError
from cpt.registry import find
from cpt.schedules.composer import Schedule, compose
from cpt.schedules.segments import Ramp, Segment
from cpt.units import Duration, compact

LIBRARY = "cpt.schedules.library"
ONE_PERCENT = Duration(fraction=0.01)


@dataclass(frozen=True)
class LRSpec:
    """The learning rate of one phase. Fields that the chosen `kind` does not use are ignored: kinds can be swapped.

    Attributes:
      kind: a file of `cpt/schedules/library`, or `package.module:function`.
      peak: highest learning rate, reached by the warm-up.
      floor: final learning rate; None = 0.1 * peak.
      constant: level of the long constant part of infinite schedules; None = midpoint of peak and floor.
      value: level of kind `constant`; None = the learning rate at which the previous phase ended.
      warmup: length of the linear warm-up (the re-warming, in a later phase).
      warmup_from: `zero` restarts at 0, as in the literature on re-warming; `current` rises from where the previous
        phase ended.
      cooldown: infinite schedules: length of the fall from peak to constant; None = 0.6 of the phase.
      decay: length of the last fall; None = 0.1 of the phase for `wsd`, 0.15 for infinite schedules.
      shape: shape of that fall for `wsd`; a name in `cpt.schedules.segments.SHAPES`.
      options: whatever else a method of your own needs.
    """

    kind: str = "cosine"
    peak: float | None = None
    floor: float | None = None
    constant: float | None = None
    value: float | None = None
    warmup: Duration = ONE_PERCENT
    warmup_from: Literal["zero", "current"] = "zero"
    cooldown: Duration | None = None
    decay: Duration | None = None
    shape: str = "1-sqrt"
    options: dict[str, Any] = field(default_factory=dict)

    def levels(self, where: str) -> tuple[float, float]:
        """`(peak, floor)`, checked.

        Raises:
          ConfigError: no peak, peak not above 0, floor negative or above peak.
        """
        if self.peak is None:
            raise ConfigError(f"{where}.peak: kind '{self.kind}' needs the highest learning rate, e.g. 3e-4")
        if not (math.isfinite(self.peak) and self.peak > 0):
            raise ConfigError(f"{where}.peak: must be above 0, got {self.peak:g}")
        floor = 0.1 * self.peak if self.floor is None else self.floor
        if not 0 <= floor <= self.peak:
            raise ConfigError(f"{where}.floor: must lie between 0 and peak = {compact(self.peak)}, got {floor:g}")
        return float(self.peak), float(floor)

    def warmup_ramp(self, to: float, span: Span, where: str) -> Ramp:
        """The linear warm-up to `to`: from 0 with a jump down, or from the present learning rate.

        Raises:
          ConfigError: an impossible duration, or an unknown `warmup_from`.
        """
        steps = span.duration(self.warmup, f"{where}.warmup")
        if self.warmup_from == "zero":
            return Ramp(to, steps, start=0.0, jump=True)
        if self.warmup_from == "current":
            return Ramp(to, steps)
        raise ConfigError(f"{where}.warmup_from: {self.warmup_from!r} is not allowed  (one of: 'zero', 'current')")


@dataclass(frozen=True)
class Span:
    """How long a phase is.

    Attributes:
      steps: updates in the phase.
      tokens_per_step: tokens of one update.
      open_ended: the length is expected to change later, so nothing may be defined as a share of it.
    """

    steps: int
    tokens_per_step: int
    open_ended: bool = False

    def duration(self, d: Duration, where: str) -> int:
        """`d` in steps. Raises ConfigError as `Duration.resolve` does."""
        return d.resolve(self.steps, self.tokens_per_step, where, self.open_ended)

    def left(self, used: Mapping[str, int], where: str) -> int:
        """Steps left when the parts `used` (name -> steps) are taken.

        Raises:
          ConfigError: they do not fit; says by how many steps.
        """
        left = self.steps - sum(used.values())
        if left < 0:
            parts = " + ".join(f"{name} {steps}" for name, steps in used.items())
            raise ConfigError(
                f"{where}: {parts} steps are {-left} too many for a phase of {self.steps} steps; "
                f"shorten {' or '.join(used)}, or lengthen the phase"
            )
        return left


Recipe = Callable[[LRSpec, Span, float, str], list[Segment]]


def build(spec: LRSpec, span: Span, start: float, where: str) -> Schedule:
    """The schedule of one phase: finds the recipe `spec.kind`, runs it and composes what it gives.

    Args:
      spec: what the config says.
      span: the phase's length.
      start: learning rate at the end of the previous phase; 0.0 before the first.
      where: config path of the spec, e.g. `phases.slimpajama.lr`.

    Raises:
      ConfigError: unknown kind, contradicting fields, or segments that do not fill the phase exactly.
    """
    recipe: Recipe = find(LIBRARY, spec.kind, f"{where}.kind")
    schedule = compose(recipe(spec, span, start, where), start, where)
    if schedule.steps != span.steps:
        raise ConfigError(f"{where}: '{spec.kind}' gives {schedule.steps} steps for a phase of {span.steps} steps")
    return schedule
