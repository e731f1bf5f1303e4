"""Linear (re-)warming, then cosine (re-)decay over the rest of the phase."""

from __future__ import annotations

from cpt.errors import ConfigError
from cpt.schedules.segments import Decay, Segment
from cpt.schedules.spec import LRSpec, Span


def cosine(spec: LRSpec, span: Span, start: float, where: str) -> list[Segment]:
    """Re-warming and re-decaying, restarted in each phase: Gupta et al. 2023 (arXiv 2308.04014), Ibrahim et al. 2024
    (arXiv 2403.08763).

        lr(t) = peak * t / w                                                    t < w
        lr(t) = floor + (peak - floor) / 2 * (1 + cos(pi (t - w) / (n - w)))    w <= t <= n

    with w = warmup and n = the steps of the phase. Defaults of both papers: w = 1 % of the phase, floor = 0.1 * peak.
    The first update of a warm-up from zero has learning rate 0. `warmup_from="current"` begins at the end of the
    previous phase instead.

    Uses: peak, floor, warmup, warmup_from.

    Raises:
      ConfigError: peak missing or not above 0, floor above peak, a warm-up longer than the phase, an open-ended phase
        (the whole decay is a share of a length that must therefore be fixed).
    """
    if span.open_ended:
        raise ConfigError(
            f"{where}.kind: cosine decays over the whole phase, but the phase is open-ended; "
            "use constant, wsd or infinite_cosine"
        )
    peak, floor = spec.levels(span, where)
    ramp = spec.warmup_ramp(peak, span, where)
    return [ramp, Decay(floor, span.left({"warmup": ramp.steps}, where), "cosine")]
