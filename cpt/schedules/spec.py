"""What a config says about the learning rate of a phase, and how it becomes a schedule.

A recipe is a function `(spec, span, start, where) -> segments` in a file of `cpt/schedules/library` (or anywhere, by
dotted name). `spec` holds the fields of the config, `span` how long the phase is, `start` the learning rate at the end
of the phase before (0.0 before the first), and `where` the config path that errors name.
"""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from cpt.errors import ConfigError, nearest
from cpt.registry import find
from cpt.schedules.composer import Schedule, compose
from cpt.schedules.segments import Custom, Ramp, Segment
from cpt.schedules.shapes import POSITIVE_SHAPES, SHAPES
from cpt.units import Duration, compact

LIBRARY = "cpt.schedules.library"
ONE_PERCENT = Duration(fraction=0.01)


@dataclass(frozen=True)
class LRSpec:
    """The learning rate of one phase. Fields that the chosen `kind` does not use are ignored: kinds can be swapped.

    Attributes:
      kind: a file of `cpt/schedules/library`, or `package.module:name`. That is a recipe of your own if its parameters
        are called `spec, span, start, where`; otherwise, with `options`, what makes a schedule of them
        (`optax:cosine_decay_schedule`); otherwise a schedule, which gives the rate of a step of the phase.
        `continue` goes on with the schedule of the phase before, which is then laid over both.
      peak: highest learning rate, reached by the warm-up; None = that of the first phase times `peak_factor`.
      peak_factor: see `peak`; 0.5 re-warms to half of it.
      floor: final learning rate; None = 0.1 * peak.
      constant: level of the long constant part of infinite schedules; None = midpoint of peak and floor.
      value: level of kind `constant`; None = the learning rate at which the previous phase ended.
      warmup: length of the linear warm-up (the re-warming, in a later phase).
      warmup_from: `zero` restarts at 0, as in the literature on re-warming; `current` rises from where the previous
        phase ended.
      cooldown: infinite schedules: length of the fall from peak to constant; None = 0.6 of the phase.
      decay: length of the last fall; None = 0.1 of the phase for `wsd`, 0.15 for infinite schedules.
      shape: shape of that fall for `wsd`; a name in `cpt.schedules.shapes.SHAPES`.
      options: what else a kind needs; its file names them.
    """

    kind: str = "cosine"
    peak: float | None = None
    peak_factor: float = 1.0
    floor: float | None = None
    constant: float | None = None
    value: float | None = None
    warmup: Duration = ONE_PERCENT
    warmup_from: Literal["zero", "current"] = "zero"
    cooldown: Duration | None = None
    decay: Duration | None = None
    shape: str = "1-sqrt"
    options: dict[str, Any] = field(default_factory=dict)

    def levels(self, span: Span, where: str) -> tuple[float, float]:
        """`(peak, floor)`, checked.

        Raises:
          ConfigError: no peak, peak not above 0, floor negative or above peak.
        """
        peak = self.peak
        if peak is None and span.base_peak:
            peak = self.peak_factor * span.base_peak
        if peak is None:
            raise ConfigError(f"{where}.peak: kind '{self.kind}' needs the highest learning rate, e.g. 3e-4")
        if not (math.isfinite(peak) and peak > 0):
            name = "peak" if self.peak is not None else "peak_factor"
            raise ConfigError(f"{where}.{name}: must be above 0, got {getattr(self, name):g}")
        floor = 0.1 * peak if self.floor is None else self.floor
        if not 0 <= floor <= peak:
            raise ConfigError(f"{where}.floor: must lie between 0 and peak = {compact(peak)}, got {floor:g}")
        return float(peak), float(floor)

    def cooldown_shape(self, floor: float, where: str) -> str:
        """`shape`, checked against the floor it has to reach.

        Raises:
          ConfigError: no such shape, or one that cannot reach 0.
        """
        if self.shape not in SHAPES:
            offered = ", ".join(SHAPES)
            raise ConfigError(f"{where}.shape: no '{self.shape}'{nearest(self.shape, SHAPES)}  (there are: {offered})")
        if self.shape in POSITIVE_SHAPES and floor <= 0:
            raise ConfigError(f"{where}.floor: must be above 0 for shape '{self.shape}', got {floor:g}")
        return self.shape

    def given(self, where: str, **defaults: Any) -> dict[str, Any]:
        """The kind's own `options` over their defaults.

        Raises:
          ConfigError: an option that the kind does not have, or one of another type than its default.
        """
        for name, value in self.options.items():
            if name not in defaults:
                offered = ", ".join(defaults) or "none"
                raise ConfigError(
                    f"{where}.options.{name}: kind '{self.kind}' has no such option{nearest(name, defaults)}  "
                    f"(there are: {offered})"
                )
            if _sort(value) != (expected := _sort(defaults[name])):
                raise ConfigError(f"{where}.options.{name}: expected {expected}, got {value!r}")
        return {**defaults, **self.options}

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
      index: number of the phase, 0 for the first.
      first_step: updates before it.
      sequences: rows of a batch.
      base_peak: highest learning rate of the first phase; 0 there.
    """

    steps: int
    tokens_per_step: int
    open_ended: bool = False
    index: int = 0
    first_step: int = 0
    sequences: int = 1
    base_peak: float = 0.0

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
    recipe = find(LIBRARY, spec.kind, f"{where}.kind")
    made = recipe(spec, span, start, where) if _is_recipe(recipe) else _custom(recipe, spec, span, start, where)
    schedule = compose(made, start, where)
    if schedule.steps != span.steps:
        raise ConfigError(f"{where}: '{spec.kind}' gives {schedule.steps} steps for a phase of {span.steps} steps")
    return schedule


def _is_recipe(function: Any) -> bool:
    """Whether it takes what a recipe takes: exactly `(spec, span, start, where)`."""
    try:
        return list(inspect.signature(function).parameters) == ["spec", "span", "start", "where"]
    except (TypeError, ValueError):
        return False


def _custom(function: Any, spec: LRSpec, span: Span, start: float, where: str) -> list[Segment]:
    """A schedule by dotted name: `step -> lr` as it is, or what `function(**options)` makes."""
    try:
        schedule = function(**spec.options) if spec.options else function
        # At some steps only: a function may be slow.
        some = np.unique(np.linspace(0, span.steps, 33).astype(int)).tolist()
        values = [float(schedule(t)) for t in some]
    except Exception as e:  # it is a user's or a library's function, and may fail in any way
        raise ConfigError(
            f"{where}.kind: '{spec.kind}' with options {dict(spec.options)} is no schedule: {type(e).__name__}: "
            f"{str(e).splitlines()[0] if str(e) else ''}  (a function of the step, or what makes one of its options, "
            "or a recipe (spec, span, start, where))"
        ) from e
    for step, value in zip(some, values, strict=True):
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"{where}.kind: '{spec.kind}' gives {value:g} at step {step}; it must be at least 0")
    # Its beginning is its own: optax schedules know nothing of the phase before.
    jump = not math.isclose(values[0], start, rel_tol=Custom.tolerance)
    return [Custom(schedule, span.steps, jump, spec.kind.rpartition(":")[2])]


def _sort(value: Any) -> str:
    """What sort of value an option is, in the words of an error."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, numbers.Real):
        return "a number" if math.isfinite(value) else "no number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, list | tuple) and all(_sort(v) == "a number" for v in value):
        return "a list of numbers"
    return "something else"
