"""Infinite schedule with an inverse-square-root cooldown to its constant."""

from __future__ import annotations

from cpt.schedules.library.infinite_cosine import infinite
from cpt.schedules.segments import Segment
from cpt.schedules.shapes import InverseSqrt
from cpt.schedules.spec import LRSpec, Span


def infinite_rsqrt(spec: LRSpec, span: Span, start: float, where: str) -> list[Segment]:
    """The inverse-square-root form of the infinite schedules of Ibrahim et al. 2024 (arXiv 2403.08763).

    `infinite_cosine` with the cooldown `lr = peak + (const - peak) * h(u) / h(1)`, `h(u) = 1/sqrt(1 + alpha u) - 1`. It
    falls faster at first.

    Uses: peak, floor, constant, warmup, warmup_from, cooldown, decay, options.alpha (10).

    Raises:
      ConfigError: as `infinite_cosine`; alpha not above 0.
    """
    return infinite(spec, span, where, lambda alpha: InverseSqrt(alpha), alpha=10.0)
