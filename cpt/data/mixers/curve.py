"""A curve of weight for each source over the phase, through given points, in lines or in steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cpt.errors import ConfigError


def curve(phase: Any, sources: Mapping[str, Any], step: int) -> Mapping[str, float]:
    """The weights at `step / (steps - 1)` of the phase, divided by their sum; `mix` only names the sources.

    Options: `at`, increasing fractions of the phase, the first one 0.0; `weights`, for each source its weight at each
    of them; `shape`, `linear` between the points or `steps`, which holds a weight until the next point. For a curve of
    any other form write a mixer: `mixer.kind="package.module:name"`.

    Raises:
      ConfigError: points that are not those, other sources than in `mix`, a weight below 0, weights that are all 0.
    """
    at, weights, shape = _points(phase)
    u = step / max(1, phase.steps - 1)
    if shape == "steps":
        i = int(np.searchsorted(at, u + 1e-12, side="right")) - 1
        now = {name: float(w[i]) for name, w in weights.items()}
    else:
        now = {name: float(np.interp(u, at, w)) for name, w in weights.items()}
    total = sum(now.values())
    if not total > 0:
        raise ConfigError(f"phases.{phase.name}.mixer.options.weights: they are all 0 at step {step} of the phase")
    return {name: w / total for name, w in now.items()}


def _points(phase: Any) -> tuple[np.ndarray, dict[str, np.ndarray], str]:
    options, where = phase.spec.mixer.options, f"phases.{phase.name}.mixer.options"
    at = np.atleast_1d(np.array(options.get("at", ()), np.float64))
    if not (len(at) and at[0] == 0 and (np.diff(at) > 0).all() and at[-1] <= 1):
        raise ConfigError(f"{where}.at: needs increasing fractions of the phase from 0.0 on, got {at.tolist()}")
    given = options.get("weights", {})
    if set(given) != set(phase.spec.mix):
        raise ConfigError(f"{where}.weights: name the sources of `mix`, {sorted(phase.spec.mix)} (got {sorted(given)})")
    weights = {name: np.atleast_1d(np.array(w, np.float64)) for name, w in given.items()}
    for name, w in weights.items():
        if len(w) != len(at) or not (w >= 0).all():
            raise ConfigError(f"{where}.weights.{name}: needs {len(at)} weights of at least 0, got {w.tolist()}")
    shape = options.get("shape", "linear")
    if shape not in ("linear", "steps"):
        raise ConfigError(f"{where}.shape: '{shape}' is not one of linear, steps")
    return at, weights, shape
