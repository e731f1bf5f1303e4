"""The shares that a mixer with feedback decided in another run, by its log: the same data without the feedback."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from cpt.data.decisions import Decision, read_decisions
from cpt.errors import ConfigError


def decided(phase: Any, sources: Mapping[str, Any], step: int) -> Mapping[str, float]:
    """The decision in force at `step`, and `options.first` before any.

    Options: `log`, a `decisions.jsonl`; `phase`, the phase there (this one's name by default); `first`, the shares of
    the first round (`mix` by default).

    Raises:
      ConfigError: no such log, or nothing in it about the phase.
    """
    options, where = phase.spec.mixer.options, f"phases.{phase.name}.mixer.options"
    path, name = options.get("log"), options.get("phase", phase.name)
    if not path or not Path(path).is_file():
        raise ConfigError(f"{where}.log: '{path}' is no file; give the decisions.jsonl of a run")
    made = [d for d in _read(path) if d.phase == name]
    if not made:
        raise ConfigError(f"{where}.phase: {path} has no decisions about '{name}'")
    now = [d for d in made if d.step_in_phase <= step]
    return now[-1].shares if now else options.get("first") or phase.spec.mix


@lru_cache(maxsize=4)
def _read(path: str) -> list[Decision]:
    return read_decisions(Path(path))
