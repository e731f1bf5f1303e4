"""The cyclic cosine of TiC-LM: every phase re-warms to the same peak in a few steps."""

from __future__ import annotations

import dataclasses

from cpt.schedules.library.cosine import cosine
from cpt.schedules.segments import Segment
from cpt.schedules.spec import ONE_PERCENT, LRSpec, Span
from cpt.units import Duration


def cyclic(spec: LRSpec, span: Span, start: float, where: str) -> list[Segment]:
    """`cosine` in each phase with the defaults of TiC-LM (Li et al. 2025, arXiv 2504.02107): 50 steps of warm-up (fewer
    in a phase of under 500), floor 3e-5 where the peak (theirs is 1e-4) leaves room for it.

    Uses: peak, floor, warmup, warmup_from.

    Raises:
      ConfigError: as `cosine`.
    """
    warmup = Duration(steps=min(50, span.steps // 10)) if spec.warmup == ONE_PERCENT else spec.warmup
    peak, floor = spec.levels(span, where)
    if spec.floor is None and peak > 3e-5:
        floor = 3e-5
    return cosine(dataclasses.replace(spec, warmup=warmup, floor=floor), span, start, where)
