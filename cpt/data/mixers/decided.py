"""The shares that a mixer with feedback decided in another run, by its log: the same data without the feedback."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cpt.data.decisions import Decision, read_decisions
from cpt.data.mixers._base import over_steps
from cpt.data.mixers._options import place, read, shares
from cpt.errors import ConfigError


@over_steps
def decided(phase: Any, sources: Mapping[str, Any], step: Any) -> Mapping[str, Any]:
    """The decision in force at `step`, and `options.first` before any.

    Options: `log`, a `decisions.jsonl`; `phase`, the phase there (this one's name by default); `first`, the shares of
    the first round (`mix` by default).

    Raises:
      ConfigError: no such log, or nothing in it about the phase.
    """
    options, where = read(phase, "log", "phase", "first"), place(phase)
    path, name = options.get("log"), options.get("phase", phase.name)
    if not path or not Path(path).is_file():
        raise ConfigError(f"{where}.log: '{path}' is no file; give the decisions.jsonl of a run")
    made = [d for d in _read(path) if d.phase == name]
    if not made:
        raise ConfigError(f"{where}.phase: {path} has no decisions about '{name}'")
    first = shares(phase, "first") if options.get("first") else phase.spec.mix
    in_force = [first, *(d.shares for d in made)]
    now = np.searchsorted([d.step_in_phase for d in made], step, side="right")
    names = dict.fromkeys(name for given in in_force for name in given)
    return {name: np.array([given.get(name, 0.0) for given in in_force])[now] for name in names}


@lru_cache(maxsize=4)
def _read(path: str) -> list[Decision]:
    return read_decisions(Path(path))
