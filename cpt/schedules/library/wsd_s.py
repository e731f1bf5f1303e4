"""WSD-S: one run that can be shipped at several budgets, each reached by a short decay that is not thrown away."""

from __future__ import annotations

from cpt.errors import ConfigError
from cpt.schedules.segments import Decay, Hold, Segment
from cpt.schedules.spec import LRSpec, Span


def wsd_s(spec: LRSpec, span: Span, start: float, where: str) -> list[Segment]:
    """WSD-S (Wen et al. 2024, arXiv 2410.05192): warm-up, then per period a constant rate and a decay to the floor.

    After a decay the next period goes on from the decayed weights and jumps straight back to the peak. Periods end at
    the shares `options.ends` of the phase; the last must be 1. The decay of a period lasts `options.decay_fraction`
    (0.1) of that period, or of all steps up to its end with `options.cumulative=True`: both are found in code.

    Uses: peak, floor, warmup, warmup_from, shape (the paper's is `inverse`), options.ends ((0.25, 0.5, 1.0)),
    options.decay_fraction, options.cumulative.

    Raises:
      ConfigError: peak missing or not above 0, floor above peak, an unknown shape, ends that do not rise to 1, decays
        that do not fit into their periods, an open-ended phase.
    """
    if span.open_ended:
        raise ConfigError(f"{where}.kind: the periods are shares of the phase, but it is open-ended; use wsd")
    options = spec.given(where, ends=(0.25, 0.5, 1.0), decay_fraction=0.1, cumulative=False)
    ends, fraction = tuple(options["ends"]), options["decay_fraction"]
    if not ends or ends[-1] != 1.0 or any(b <= a for a, b in zip((0.0, *ends), ends, strict=False)):
        raise ConfigError(f"{where}.options.ends: shares of the phase that rise to 1.0, got {ends}")
    if not 0 < fraction <= 1:
        raise ConfigError(f"{where}.options.decay_fraction: must lie in (0, 1], got {fraction:g}")
    peak, floor = spec.levels(span, where)
    shape = spec.cooldown_shape(floor, where)
    ramp = spec.warmup_ramp(peak, span, where)
    out: list[Segment] = [ramp]
    before = 0
    for i, share in enumerate(ends):
        end = round(share * span.steps)
        decay = max(1, round(fraction * (end if options["cumulative"] else end - before))) if end > before else 0
        hold = end - before - decay - (ramp.steps if i == 0 else 0)
        if hold < 0:
            raise ConfigError(
                f"{where}: period {i + 1} of {end - before} steps has no room for a decay of {decay}"
                f"{f' and a warm-up of {ramp.steps}' if i == 0 else ''}; shorten them, or space options.ends wider"
            )
        # After a warm-up of no steps too the period begins at the peak.
        out += [
            Hold(hold, value=peak, jump=i > 0 or ramp.steps == 0),
            Decay(floor, decay, shape, start=peak, jump=i > 0),
        ]
        before = end
    return out
