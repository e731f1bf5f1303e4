"""Cosine cycles of equal length inside one phase: re-warming without new data."""

from __future__ import annotations

from cpt.errors import ConfigError
from cpt.schedules.segments import Decay, Ramp, Segment
from cpt.schedules.spec import LRSpec, Span


def repeated_cosine(spec: LRSpec, span: Span, start: float, where: str) -> list[Segment]:
    """`cosine`, `options.cycles` times in the phase, each cycle with its own warm-up of `warmup` steps.

    The repeated cosine of Singh et al. 2025 (arXiv 2503.02844) restarts at each new data set; that is kind `cosine` in
    each phase. Inside a phase this is cyclic cosine, the baseline of Wen et al. 2024 (arXiv 2410.05192). A phase that
    does not divide by the cycles gives its first cycles one step more.

    Uses: peak, floor, warmup (of each cycle), warmup_from, options.cycles (2).

    Raises:
      ConfigError: as `cosine`; cycles not a whole number of at least 1, or more than there is room for.
    """
    if span.open_ended:
        raise ConfigError(f"{where}.kind: the cycles share the phase among them, but it is open-ended; use sgdr")
    cycles = spec.given(where, cycles=2)["cycles"]
    if cycles != int(cycles) or cycles < 1:
        raise ConfigError(f"{where}.options.cycles: must be a whole number of at least 1, got {cycles}")
    if cycles > span.steps:
        raise ConfigError(f"{where}.options.cycles: {cycles} cycles are too many for a phase of {span.steps} steps")
    peak, floor = spec.levels(span, where)
    first = spec.warmup_ramp(peak, span, where)
    span.left({f"warmup of {int(cycles)} cycles": int(cycles) * first.steps}, where)
    # From the second on a cycle begins where the one before ended, unless warm-ups begin at 0.
    again = Ramp(peak, first.steps, start=first.start, jump=first.jump)
    lengths = [span.steps // int(cycles) + (i < span.steps % int(cycles)) for i in range(int(cycles))]
    out: list[Segment] = []
    for i, length in enumerate(lengths):
        ramp = first if i == 0 else again
        out += [ramp, Decay(floor, length - ramp.steps, "cosine", start=peak, jump=ramp.steps == 0)]
    return out
