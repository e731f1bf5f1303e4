"""Warm-up, stable, decay: a constant learning rate with a short cooldown at the end."""

from __future__ import annotations

from cpt.errors import ConfigError
from cpt.schedules.segments import Decay, Hold, Segment
from cpt.schedules.spec import LRSpec, Span
from cpt.units import Duration


def wsd(spec: LRSpec, span: Span, start: float, where: str) -> list[Segment]:
    """WSD (Hu et al. 2024, arXiv 2404.06395) with the 1-sqrt cooldown of Hagele et al. 2024 (arXiv 2405.18392).

        lr(t) = peak * t / w                           t < w
        lr(t) = peak                                   w <= t < n - d
        lr(t) = floor + (peak - floor) * f(u)          n - d <= t <= n,  u = (t - (n - d)) / d,  f(u) = 1 - sqrt(u)

    with w = warmup, d = decay and n = the steps of the phase. Defaults: w = 1 %, d = 10 % of the phase (10-20 % match
    a cosine of the same length), floor = 0.1 * peak, shape `1-sqrt`. MiniCPM's exponential fall is `shape="exp"`.

    `options.lowered` = a drops to a of the way at once before the fall; `shape="linear"` with a = 0.7 is the lowered
    linear cooldown of Dremov et al. 2025 (arXiv 2508.01483; experimental: the form is our reading of it).

    Uses: peak, floor, warmup, warmup_from, decay, shape, options.lowered.

    Raises:
      ConfigError: peak missing or not above 0, floor above peak, an unknown shape, floor 0 with `exp` or `inverse`,
        parts that do not fit into the phase.
    """
    peak, floor = spec.levels(span, where)
    lowered = spec.given(where, lowered=1.0)["lowered"]
    if not 0 < lowered <= 1:
        raise ConfigError(f"{where}.options.lowered: must lie in (0, 1], got {lowered:g}")
    shape = spec.cooldown_shape(floor, where)
    ramp = spec.warmup_ramp(peak, span, where)
    decay = span.duration(spec.decay or Duration(fraction=0.1), f"{where}.decay")
    hold = span.left({"warmup": ramp.steps, "decay": decay}, where)
    begin = floor + lowered * (peak - floor)
    return [ramp, Hold(hold), Decay(floor, decay, shape, start=begin, jump=lowered < 1)]
