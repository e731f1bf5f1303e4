"""Warm-up, stable, decay: a constant learning rate with a short cooldown at the end."""

from __future__ import annotations

from cpt.errors import ConfigError, nearest
from cpt.schedules.segments import POSITIVE_SHAPES, SHAPES, Decay, Hold, Segment
from cpt.schedules.spec import LRSpec, Span
from cpt.units import Duration


def wsd(spec: LRSpec, span: Span, start: float, where: str) -> list[Segment]:
    """WSD (Hu et al. 2024, arXiv 2404.06395) with the 1-sqrt cooldown of Hagele et al. 2024 (arXiv 2405.18392).

        lr(t) = peak * t / w                           t < w
        lr(t) = peak                                   w <= t < n - d
        lr(t) = floor + (peak - floor) * f(u)          n - d <= t <= n,  u = (t - (n - d)) / d,  f(u) = 1 - sqrt(u)

    with w = warmup, d = decay and n = the steps of the phase. Defaults: w = 1 %, d = 10 % of the phase (10-20 % match
    a cosine of the same length), floor = 0.1 * peak, shape `1-sqrt`. MiniCPM's exponential fall is `shape="exp"`.

    Uses: peak, floor, warmup, warmup_from, decay, shape.

    Raises:
      ConfigError: peak missing or not above 0, floor above peak, an unknown shape, floor 0 with `exp`, parts that do
        not fit into the phase.
    """
    peak, floor = spec.levels(where)
    if spec.shape not in SHAPES:
        offered = ", ".join(SHAPES)
        raise ConfigError(f"{where}.shape: no '{spec.shape}'{nearest(spec.shape, SHAPES)}  (there are: {offered})")
    if spec.shape in POSITIVE_SHAPES and floor <= 0:
        raise ConfigError(f"{where}.floor: must be above 0 for shape '{spec.shape}', got {floor:g}")
    ramp = spec.warmup_ramp(peak, span, where)
    decay = span.duration(spec.decay or Duration(fraction=0.1), f"{where}.decay")
    hold = span.left({"warmup": ramp.steps, "decay": decay}, where)
    return [ramp, Hold(hold), Decay(floor, decay, spec.shape)]
