"""Shares that move in a straight line over the phase, from `mix` to `mixer.options.end`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cpt.errors import ConfigError


def linear(phase: Any, sources: Mapping[str, Any], step: int) -> Mapping[str, float]:
    """`mix + (end - mix) * step / (steps - 1)`: `mix` at the first batch of the phase, `end` at the last.

    Raises:
      ConfigError: `options.end` is missing or names other sources than `mix`.
    """
    start, end = phase.spec.mix, phase.spec.mixer.options.get("end", {})
    if set(start) != set(end):
        raise ConfigError(
            f"phases.{phase.name}.mixer.options.end: name the sources of `mix`, {sorted(start)} (got {sorted(end)})"
        )
    u = step / max(1, phase.steps - 1)
    return {name: start[name] * (1 - u) + end[name] * u for name in start}
