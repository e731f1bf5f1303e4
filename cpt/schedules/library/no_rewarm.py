"""No re-warming: go on from where the learning rate ended and decay to a hundredth of it."""

from __future__ import annotations

from cpt.errors import ConfigError
from cpt.schedules.segments import Decay, Segment
from cpt.schedules.spec import LRSpec, Span


def no_rewarm(spec: LRSpec, span: Span, start: float, where: str) -> list[Segment]:
    """The recipe of Parmar et al. 2024, "Reuse, Don't Retrain" (arXiv 2407.07263).

        lr(t) = floor + (start - floor) / 2 * (1 + cos(pi t / n))

    from the end of the phase before (their 4.5e-5) to floor = start / 100, without a warm-up. They switch to their
    second data blend where the rate has fallen to start / 5: `until_lr` of the phase, and `kind="continue"` in the
    next.

    Uses: floor; `value` where there is no phase before (a run that starts from given weights).

    Raises:
      ConfigError: nothing to start from, floor above it, an open-ended phase.
    """
    if span.open_ended:
        raise ConfigError(f"{where}.kind: no_rewarm decays over the whole phase, but the phase is open-ended")
    begin = spec.value if spec.value is not None else start
    if not begin > 0:
        raise ConfigError(f"{where}.value: there is no earlier learning rate to start from; give one, e.g. 4.5e-5")
    floor = begin / 100 if spec.floor is None else spec.floor
    if not 0 <= floor <= begin:
        raise ConfigError(f"{where}.floor: must lie between 0 and {begin:g}, where it starts; got {floor:g}")
    return [Decay(floor, span.steps, "cosine", start=begin, jump=spec.value is not None)]
