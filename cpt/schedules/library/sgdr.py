"""SGDR: cosine cycles that start again at the peak at once, each `t_mult` times as long as the one before."""

from __future__ import annotations

from cpt.errors import ConfigError
from cpt.schedules.segments import Decay, Part, Segment
from cpt.schedules.spec import LRSpec, Span


def sgdr(spec: LRSpec, span: Span, start: float, where: str) -> list[Segment]:
    """Warm restarts (Loshchilov and Hutter 2017, arXiv 1608.03983).

        lr = floor + (peak - floor) / 2 * (1 + cos(pi * T_cur / T_i)),    T_0 = t0, T_{i+1} = t_mult * T_i

    after one warm-up of `warmup` steps. The last cycle is cut off where the phase ends.

    Uses: peak, floor, warmup, warmup_from, options.t0 (steps), options.t_mult (1).

    Raises:
      ConfigError: peak missing or not above 0, floor above peak, t0 missing or below 1, t_mult below 1, a warm-up
        longer than the phase.
    """
    options = spec.given(where, t0=0, t_mult=1.0)
    length, t_mult = options["t0"], options["t_mult"]
    if length != int(length) or length < 1:
        raise ConfigError(f"{where}.options.t0: the steps of the first cycle, at least 1; got {length}")
    if not t_mult >= 1:
        raise ConfigError(f"{where}.options.t_mult: must be at least 1, got {t_mult}")
    peak, floor = spec.levels(span, where)
    ramp = spec.warmup_ramp(peak, span, where)
    left, out = span.left({"warmup": ramp.steps}, where), [ramp]
    while left > 0:
        cycle = round(length)
        whole = Decay(floor, cycle, "cosine", start=peak, jump=True)
        out.append(whole if cycle <= left else Part(whole, peak, 0, left, jump=True))
        left, length = left - cycle, length * t_mult
    return out
