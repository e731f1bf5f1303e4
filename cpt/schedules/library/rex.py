"""REX: a decay that stays high for long and falls late, for small budgets."""

from __future__ import annotations

from cpt.errors import ConfigError
from cpt.schedules.segments import Decay, Segment
from cpt.schedules.spec import LRSpec, Span


def rex(spec: LRSpec, span: Span, start: float, where: str) -> list[Segment]:
    """Reflected exponential (Chen et al. 2021, arXiv 2107.04197).

        lr(t) = floor + (peak - floor) * (1 - z) / (1 - z/2),    z = (t - w) / (n - w)

    after a linear warm-up of w steps, n = the steps of the phase. The paper decays to 0: `floor=0`.

    Uses: peak, floor, warmup, warmup_from.

    Raises:
      ConfigError: peak missing or not above 0, floor above peak, a warm-up longer than the phase, an open-ended phase.
    """
    if span.open_ended:
        raise ConfigError(f"{where}.kind: rex decays over the whole phase, but the phase is open-ended; use constant")
    peak, floor = spec.levels(span, where)
    ramp = spec.warmup_ramp(peak, span, where)
    return [ramp, Decay(floor, span.left({"warmup": ramp.steps}, where), "rex")]
