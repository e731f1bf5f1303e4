"""COOLDOWN: sample at a high temperature first, then in proportion, with one switch (2410.04579)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cpt.data.mixers._base import over_steps, sizes, tempered
from cpt.data.mixers._options import number, place, read
from cpt.errors import ConfigError
from cpt.units import Duration

UNITS = {"at": "fraction", "at_steps": "steps", "at_tokens": "tokens"}


@over_steps
def cooldown(phase: Any, sources: Mapping[str, Any], step: Any) -> Mapping[str, Any]:
    """Temperature `tau` before the switch and `end_tau` from it on (arXiv 2410.04579, section 5: 5, then 1, half-way).

    Options: `tau` (5.0), `end_tau` (1.0); one of `at` (fraction of the phase, 0.5), `at_steps`, `at_tokens`; `sizes`,
    tokens of those sources that are no stores. `mix` only names the sources.

    Raises:
      ConfigError: the size of a source is not known, a temperature is not above 0, a switch outside of the phase.
    """
    options = read(phase, "tau", "end_tau", *UNITS, "sizes")
    n, switch = sizes(phase, sources), _switch(phase, options)
    before = tempered(n, options.get("tau", 5.0), f"{place(phase)}.tau")
    after = tempered(n, options.get("end_tau", 1.0), f"{place(phase)}.end_tau")
    return {name: np.where(step < switch, before[name], after[name]) for name in n}


def _switch(phase: Any, options: Mapping[str, Any]) -> int:
    """The first step at the second temperature."""
    given = {name: options[name] for name in UNITS if name in options} or {"at": 0.5}
    if len(given) > 1:
        raise ConfigError(f"{place(phase)}.at: give one of {', '.join(UNITS)} (got {given})")
    ((name, value),) = given.items()
    where = f"{place(phase)}.{name}"
    value = number(value, where)
    if name != "at" and value != int(value):
        raise ConfigError(f"{where}: {value:g} is not a whole number")
    open_ended = phase.spec.open_ended
    at = Duration(**{UNITS[name]: value}).resolve(phase.steps, phase.tokens_per_step, where, open_ended)
    if at > phase.steps and not open_ended:
        raise ConfigError(f"{where}: the switch, at step {at:,}, lies beyond the phase of {phase.steps:,} steps")
    return at
