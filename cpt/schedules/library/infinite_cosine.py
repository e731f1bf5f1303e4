"""Infinite schedule: warm-up, cosine cooldown to a constant, that constant while data comes, exponential annealing."""

from __future__ import annotations

from collections.abc import Callable

from cpt.errors import ConfigError
from cpt.schedules.segments import Decay, Hold, Segment
from cpt.schedules.shapes import Shape
from cpt.schedules.spec import LRSpec, Span
from cpt.units import Duration, compact


def infinite_cosine(spec: LRSpec, span: Span, start: float, where: str) -> list[Segment]:
    """The cosine form of the infinite schedules of Ibrahim et al. 2024 (arXiv 2403.08763).

        lr(t) = peak * t / a                                                     0 <= t < a
        lr(t) = const + (peak - const) / 2 * (1 + cos(pi (t - a) / (b - a)))     a <= t < b
        lr(t) = const                                                            b <= t < c
        lr(t) = const * (floor / const)^((t - c) / (n - c))                      c <= t <= n

    with a = warmup, b - a = cooldown, n - c = decay and n = the steps of the phase. Defaults: warm-up 1 %, cooldown
    60 %, annealing 15 % of the phase, floor = 0.1 * peak, const = the midpoint of peak and floor. To go on with other
    data without re-warming, leave the annealing out (`decay.steps=0`) and give the next phase kind `constant`.

    Uses: peak, floor, constant, warmup, warmup_from, cooldown, decay.

    Raises:
      ConfigError: peak missing or not above 0, constant not between floor and peak, floor 0 (an exponential never
        gets there), parts that do not fit into the phase.
    """
    return infinite(spec, span, where, lambda: "cosine")


def infinite(
    spec: LRSpec, span: Span, where: str, cooldown_shape: Callable[..., str | Shape], **defaults: float
) -> list[Segment]:
    """What infinite schedules share; `cooldown_shape` is called with the options, which must be above 0."""
    options = spec.given(where, **defaults)
    for name, value in options.items():
        if not value > 0:
            raise ConfigError(f"{where}.options.{name}: must be above 0, got {value:g}")
    peak, floor = spec.levels(span, where)
    const = (peak + floor) / 2 if spec.constant is None else spec.constant
    if not floor <= const <= peak:
        raise ConfigError(
            f"{where}.constant: must lie between floor = {compact(floor)} and peak = {compact(peak)}, got {const:g}"
        )
    if floor <= 0:
        raise ConfigError(f"{where}.floor: must be above 0 for the exponential annealing, got {floor:g}")
    ramp = spec.warmup_ramp(peak, span, where)
    cooldown = span.duration(spec.cooldown or Duration(fraction=0.6), f"{where}.cooldown")
    decay = span.duration(spec.decay or Duration(fraction=0.15), f"{where}.decay")
    hold = span.left({"warmup": ramp.steps, "cooldown": cooldown, "decay": decay}, where)
    # Without a cooldown the formula falls from peak to constant at once.
    level = Hold(hold, value=const, jump=cooldown == 0)
    return [ramp, Decay(const, cooldown, cooldown_shape(**options)), level, Decay(floor, decay, "exp")]
