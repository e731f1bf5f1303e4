"""Inverse square root: a schedule without an end, with a linear cooldown where one is wanted."""

from __future__ import annotations

from cpt.errors import ConfigError
from cpt.schedules.segments import Decay, Rsqrt, Segment
from cpt.schedules.spec import LRSpec, Span
from cpt.units import Duration


def rsqrt(spec: LRSpec, span: Span, start: float, where: str) -> list[Segment]:
    """Inverse square root with cooldown, as in TiC-LM (Li et al. 2025, arXiv 2504.02107).

        lr(t) = peak * t / w                                     t < w
        lr(t) = floor + (peak - floor) * sqrt(w / t)             w <= t < n - d
        linear from there to floor                               n - d <= t <= n

    with w = warmup (at least one step), d = decay (none by default: the schedule then has no end and fits an open-ended
    phase) and n = the steps of the phase. TiC-LM: peak 1e-3, floor 3e-5, 400 steps of cooldown.

    Uses: peak, floor, warmup, warmup_from, decay.

    Raises:
      ConfigError: peak missing or not above 0, floor above peak, no warm-up, parts that do not fit into the phase.
    """
    peak, floor = spec.levels(span, where)
    ramp = spec.warmup_ramp(peak, span, where)
    if not ramp.steps:
        raise ConfigError(f"{where}.warmup: rsqrt falls at the pace of its warm-up, which needs at least one step")
    decay = span.duration(spec.decay or Duration(steps=0), f"{where}.decay")
    fall = Rsqrt(span.left({"warmup": ramp.steps, "decay": decay}, where), float(ramp.steps), floor)
    return [ramp, fall, Decay(floor, decay, "linear")]
