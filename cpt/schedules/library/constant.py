"""Constant learning rate: the control without re-warming, and the way to switch data inside a constant phase."""

from __future__ import annotations

import math

from cpt.errors import ConfigError
from cpt.schedules.segments import Hold, Segment
from cpt.schedules.spec import LRSpec, Span


def constant(spec: LRSpec, span: Span, start: float, where: str) -> list[Segment]:
    """`lr(t) = value` for the whole phase.

    With `value=None` the learning rate stays where the previous phase ended. After a decayed phase that is the
    no-re-warming baseline of Gupta et al. 2023 (arXiv 2308.04014): least forgetting early, worst on the new data.
    Inside the constant part of an infinite schedule it is how Ibrahim et al. 2024 (arXiv 2403.08763) switch data:
    keep eta_const, do not re-warm.

    Uses: value.

    Raises:
      ConfigError: no value and no previous phase, or a value that is not above 0.
    """
    if spec.value is None:
        if not start > 0:
            raise ConfigError(f"{where}.value: there is no earlier learning rate to keep; give one, e.g. 3e-5")
        return [Hold(span.steps)]
    if not (math.isfinite(spec.value) and spec.value > 0):
        raise ConfigError(f"{where}.value: must be above 0, got {spec.value:g}")
    return [Hold(span.steps, value=spec.value, jump=True)]
