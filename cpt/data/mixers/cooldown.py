"""COOLDOWN: sample at a high temperature first, then in proportion, with one switch (2410.04579)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cpt.data.mixers._base import sizes, tempered
from cpt.units import Duration


def cooldown(phase: Any, sources: Mapping[str, Any], step: int) -> Mapping[str, float]:
    """Temperature `tau` before the switch and `end_tau` from it on (arXiv 2410.04579, section 5: 5, then 1, half-way).

    Options: `tau` (5.0), `end_tau` (1.0), `at` (fraction of the phase, 0.5) or `at_steps`; `sizes`, tokens of those
    sources that are no stores. `mix` only names the sources.

    Raises:
      ConfigError: the size of a source is not known, a temperature is not above 0, a switch outside of the phase.
    """
    options, where = phase.spec.mixer.options, f"phases.{phase.name}.mixer.options"
    steps = options.get("at_steps")
    at = Duration(steps=steps) if steps is not None else Duration(fraction=options.get("at", 0.5))
    switch = at.resolve(phase.steps, phase.tokens_per_step, f"{where}.at", phase.spec.open_ended)
    name, default = ("tau", 5.0) if step < switch else ("end_tau", 1.0)
    return tempered(sizes(phase, sources), options.get(name, default), f"{where}.{name}")
