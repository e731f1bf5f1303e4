"""What the mixers share: how large the sources are, and marks that make long phases cheap to ask."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from cpt.data.mixers._options import number, place
from cpt.errors import ConfigError, nearest


def steady(mixer: Callable) -> Callable:
    """Mark a mixer whose shares are the same at every step: asked once, a phase may have millions."""
    mixer.steady = True
    return mixer


def over_steps(mixer: Callable) -> Callable:
    """Mark a mixer that also takes an array of steps and then gives arrays of that shape, or numbers where one share is
    the same at all of them: the whole phase is asked at once.
    """
    mixer.over_steps = True
    return mixer


def sizes(phase: Any, sources: Mapping[str, Any]) -> dict[str, float]:
    """Tokens of every source in the phase's `mix`: `mixer.options.sizes`, or what the manifest of its store says.

    `sizes` may also name declared sources that this phase does not read: one table serves all phases.

    Raises:
      ConfigError: a source of neither; `sizes` names no source, or gives what is no number.
    """
    where, given = f"{place(phase)}.sizes", phase.spec.mixer.options.get("sizes") or {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where}: {given!r} is no mapping of sources to their tokens")
    for name in given:
        if name not in sources:
            raise ConfigError(
                f"{where}.{name}: no such source{nearest(name, sources)}  (sources: {', '.join(sources)})"
            )
    known = {name: number(size, f"{where}.{name}") for name, size in given.items()}
    out = {name: known[name] if name in known else _stored(sources[name]) for name in phase.spec.mix}
    for name, size in out.items():
        if not size > 0:
            raise ConfigError(
                f"{where}: how many tokens '{name}' has is not known; give it there "
                f"(sizes.{name}=...), or make a store of it with `python -m cpt.prepare` and name that"
            )
    return out


def _stored(source: Any) -> float:
    if source.store is None:
        return 0.0
    manifest = Path(source.store).expanduser() / "manifest.json"
    entry = _splits(manifest, manifest.stat().st_mtime_ns if manifest.is_file() else 0).get(source.split, {})
    if source.domain is not None:
        entry = entry.get("domains", {}).get(source.domain, {})
    left = entry.get("tokens", 0) - source.skip_tokens
    return left if source.take_tokens is None else min(left, source.take_tokens)


@lru_cache(maxsize=64)
def _splits(manifest: Path, version: int) -> dict[str, Any]:
    try:
        return json.loads(manifest.read_text(encoding="utf-8"))["splits"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # whoever opens the store says what is wrong with it


def tempered(sizes: Mapping[str, float], tau: float, where: str) -> dict[str, float]:
    """`p_i = n_i^(1/tau) / sum_j n_j^(1/tau)` (2410.04579, section 2): tau 1 is proportional, infinite is uniform.

    Raises:
      ConfigError: tau is not above 0.
    """
    if not (isinstance(tau, int | float) and tau > 0):
        raise ConfigError(f"{where}: {tau} is not a temperature above 0")
    largest = max(sizes.values())  # so that a low temperature overflows nothing
    powers = {name: (size / largest) ** (1 / tau) for name, size in sizes.items()}
    total = sum(powers.values())
    return {name: power / total for name, power in powers.items()}
