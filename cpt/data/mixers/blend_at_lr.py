"""Two blends: the second begins where the learning rate has fallen to a threshold (Parmar et al. 2024, 2407.07263)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from cpt.data.mixers._base import over_steps
from cpt.data.mixers._options import number, place, read, shares
from cpt.errors import ConfigError


@over_steps
def blend_at_lr(phase: Any, sources: Mapping[str, Any], step: Any) -> Mapping[str, Any]:
    """`mix` until the learning rate has fallen to the threshold for good, `then` from that step on (arXiv 2407.07263).

    Options: `then`, shares of the same sources; `threshold`, a learning rate, or `of_peak` (0.2, as in the paper), a
    share of the phase's highest one.

    Raises:
      ConfigError: `then` names other sources than `mix`, both or impossible thresholds, a rate that never falls to it.
    """
    options = read(phase, "then", "threshold", "of_peak")
    first, then, switch = phase.spec.mix, shares(phase, "then"), _switch(phase, options)
    return {name: np.where(step < switch, first[name], then[name]) for name in first}


def _switch(phase: Any, options: Mapping[str, Any]) -> int:
    """The first step of the second blend."""
    where = place(phase)
    if "threshold" in options and "of_peak" in options:
        raise ConfigError(f"{where}: give one of threshold and of_peak")
    if "threshold" in options:
        threshold = number(options["threshold"], f"{where}.threshold")
    else:
        threshold = number(options.get("of_peak", 0.2), f"{where}.of_peak") * phase.schedule.highest
    switch = _first_below(phase.schedule, threshold)
    if switch is None:
        end = phase.schedule.end
        raise ConfigError(f"{where}.threshold: the learning rate ends at {end:g} and never falls to {threshold:g}")
    return switch


@lru_cache(maxsize=8)  # asked at every step
def _first_below(schedule: Any, threshold: float) -> int | None:
    return schedule.first_below(threshold)
