"""Shares that move in a straight line over the phase, from `mix` to `mixer.options.end`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cpt.data.mixers._base import over_steps
from cpt.data.mixers._options import read, shares


@over_steps
def linear(phase: Any, sources: Mapping[str, Any], step: Any) -> Mapping[str, Any]:
    """`mix + (end - mix) * step / (steps - 1)`: `mix` at the first batch of the phase, `end` at the last.

    Raises:
      ConfigError: `options.end` is missing, names other sources than `mix`, or does not sum to 1.
    """
    read(phase, "end")
    start, end = phase.spec.mix, shares(phase, "end")
    u = step / max(1, phase.steps - 1)
    return {name: start[name] * (1 - u) + end[name] * u for name in start}
