"""The auto-regressive meta-schedule of TiC-LM: each phase peaks where one long cosine over all so far would stand."""

from __future__ import annotations

import math

from cpt.errors import ConfigError
from cpt.schedules.segments import Decay, Ramp, Segment
from cpt.schedules.spec import LRSpec, Span


def autoregressive(spec: LRSpec, span: Span, start: float, where: str) -> list[Segment]:
    """AR meta-schedule (Li et al. 2025, TiC-LM, arXiv 2504.02107).

    With w = warmup, phase i (from 0) of n steps after s earlier ones peaks at the value that one cosine from `peak` to
    `floor` with a warm-up of w * (i + 1) steps and an end at s + n has at step s + w; then it is a `cosine` of its own.
    So peaks fall as 1 + cos(pi i / (i + 1)): later data moves the model less.

    Uses: peak (of the first phase), floor, warmup (of each phase), warmup_from.

    Raises:
      ConfigError: peak missing or not above 0, floor above peak, a warm-up longer than the phase, an open-ended phase.
    """
    if span.open_ended:
        raise ConfigError(f"{where}.kind: autoregressive decays over the whole phase, but the phase is open-ended")
    highest, floor = spec.levels(span, where)
    warmup = span.duration(spec.warmup, f"{where}.warmup")
    decay = span.left({"warmup": warmup}, where)
    long_warmup, total = warmup * (span.index + 1), span.first_step + span.steps
    u = (span.first_step + warmup - long_warmup) / max(1, total - long_warmup)
    peak = floor + (highest - floor) * (1 + math.cos(math.pi * min(max(u, 0.0), 1.0))) / 2
    zero = spec.warmup_from == "zero"
    return [Ramp(peak, warmup, start=0.0 if zero else None, jump=zero), Decay(floor, decay, "cosine")]
