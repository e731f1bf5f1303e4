"""A curve of weight for each source over the phase, through given points, in lines or in steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cpt.data.mixers._base import over_steps
from cpt.data.mixers._options import numbers, of_sources, place, read
from cpt.errors import ConfigError


@over_steps
def curve(phase: Any, sources: Mapping[str, Any], step: Any) -> Mapping[str, Any]:
    """The weights at `step / (steps - 1)` of the phase, divided by their sum; `mix` only names the sources.

    Options: `at`, increasing fractions of the phase, the first one 0.0; `weights`, for each source its weight at each
    of them; `shape`, `linear` between the points or `steps`, which holds a weight until the next point. For a curve of
    any other form write a mixer: `mixer.kind="package.module:name"`.

    Raises:
      ConfigError: points that are not those, other sources than in `mix`, a weight below 0, weights that are all 0.
    """
    at, weights, shape = _points(phase)
    u = np.asarray(step) / max(1, phase.steps - 1)
    if shape == "steps":
        i = np.searchsorted(at, u + 1e-12, side="right") - 1
        now = {name: w[i] for name, w in weights.items()}
    else:
        now = {name: np.interp(u, at, w) for name, w in weights.items()}
    total = sum(now.values())
    if not np.all(total > 0):
        first = np.atleast_1d(step)[np.argmin(np.atleast_1d(total > 0))]
        raise ConfigError(f"{place(phase)}.weights: they are all 0 at step {first} of the phase")
    return {name: w / total for name, w in now.items()}


def _points(phase: Any) -> tuple[np.ndarray, dict[str, np.ndarray], str]:
    options, where = read(phase, "at", "weights", "shape"), place(phase)
    at = numbers(options.get("at", ()), f"{where}.at")
    if not (len(at) and at[0] == 0 and (np.diff(at) > 0).all() and at[-1] <= 1):
        raise ConfigError(f"{where}.at: needs increasing fractions of the phase from 0.0 on, got {at.tolist()}")
    weights = {name: numbers(w, f"{where}.weights.{name}") for name, w in of_sources(phase, "weights").items()}
    for name, w in weights.items():
        if len(w) != len(at):
            raise ConfigError(f"{where}.weights.{name}: needs {len(at)} weights of at least 0, got {w.tolist()}")
    shape = options.get("shape", "linear")
    if shape not in ("linear", "steps"):
        raise ConfigError(f"{where}.shape: '{shape}' is not one of linear, steps")
    return at, weights, shape
