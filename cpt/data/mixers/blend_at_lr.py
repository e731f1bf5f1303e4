"""Two blends: the second begins where the learning rate has fallen to a threshold (Parmar et al. 2024, 2407.07263)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from cpt.errors import ConfigError


def blend_at_lr(phase: Any, sources: Mapping[str, Any], step: int) -> Mapping[str, float]:
    """`mix` until the learning rate has fallen to the threshold for good, `then` from that step on (arXiv 2407.07263).

    Options: `then`, shares of the same sources; `threshold`, a learning rate, or `of_peak` (0.2, as in the paper), a
    share of the phase's highest one.

    Raises:
      ConfigError: `then` names other sources than `mix`, both or impossible thresholds, a rate that never falls to it.
    """
    first, then = phase.spec.mix, phase.spec.mixer.options.get("then", {})
    where = f"phases.{phase.name}.mixer.options"
    if set(first) != set(then):
        raise ConfigError(f"{where}.then: name the sources of `mix`, {sorted(first)} (got {sorted(then)})")
    return first if step < _switch(phase, where) else then


def _switch(phase: Any, where: str) -> int:
    options = phase.spec.mixer.options
    if "threshold" in options and "of_peak" in options:
        raise ConfigError(f"{where}: give one of threshold and of_peak")
    threshold = float(options.get("threshold", options.get("of_peak", 0.2) * phase.schedule.highest))
    switch = _first_below(phase.schedule, threshold)
    if switch is None:
        end = phase.schedule.end
        raise ConfigError(f"{where}.threshold: the learning rate ends at {end:g} and never falls to {threshold:g}")
    return switch


@lru_cache(maxsize=8)  # asked at every step
def _first_below(schedule: Any, threshold: float) -> int | None:
    return schedule.first_below(threshold)
