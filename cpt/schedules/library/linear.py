"""Warm-up, then a straight line to the floor: the worst-case optimal last-iterate schedule when the floor is 0."""

from __future__ import annotations

from cpt.errors import ConfigError
from cpt.schedules.segments import Decay, Segment
from cpt.schedules.spec import LRSpec, Span


def linear(spec: LRSpec, span: Span, start: float, where: str) -> list[Segment]:
    """Linear decay (Defazio et al. 2023, arXiv 2310.07831).

        lr(t) = peak * t / w                                       t < w
        lr(t) = floor + (peak - floor) * (n - t) / (n - w)         w <= t <= n

    with w = warmup and n = the steps of the phase. `floor=0` is "straight to zero"; the default is 0.1 * peak as
    everywhere here.

    Uses: peak, floor, warmup, warmup_from.

    Raises:
      ConfigError: peak missing or not above 0, floor above peak, a warm-up longer than the phase, an open-ended phase.
    """
    if span.open_ended:
        raise ConfigError(f"{where}.kind: linear decays over the whole phase, but that is open-ended; use constant")
    peak, floor = spec.levels(span, where)
    ramp = spec.warmup_ramp(peak, span, where)
    return [ramp, Decay(floor, span.left({"warmup": ramp.steps}, where), "linear")]
