"""The sources one after the other, each for its share of the phase, fading into the next one where that is wanted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cpt.errors import ConfigError


def curriculum(phase: Any, sources: Mapping[str, Any], step: int) -> Mapping[str, float]:
    """Each source of `order` in turn; over the phase it gets the share that `mix` says.

    Around each border, over `overlap` of the phase, the share of the next source rises in a straight line from 0 to 1.
    A batch that a border falls into has rows of both, so the totals are those of `mix` to the row.

    Options: `order`, the sources; `overlap` (0.0), at most the smallest share of `mix`. To read one source in the order
    in which it is stored, see `sources.<name>.order`.

    Raises:
      ConfigError: `order` names other sources than `mix`, an overlap that does not fit.
    """
    mix, options, where = phase.spec.mix, phase.spec.mixer.options, f"phases.{phase.name}.mixer.options"
    order = tuple(options.get("order", ()))
    if sorted(order) != sorted(mix):
        raise ConfigError(f"{where}.order: name each source of `mix` once, {sorted(mix)} (got {list(order)})")
    overlap = float(options.get("overlap", 0.0))
    if not 0 <= overlap <= min(mix.values()) + 1e-12:
        raise ConfigError(
            f"{where}.overlap: {overlap:g} is not between 0 and the smallest share, {min(mix.values()):g}"
        )
    borders = np.cumsum([mix[name] for name in order])[:-1]
    # How much of the batch lies beyond each border.
    beyond = [_risen((step + 1) / phase.steps - b, overlap) - _risen(step / phase.steps - b, overlap) for b in borders]
    # Rounded, since a difference of rounding errors is no share.
    reached = np.clip(np.round(np.array([1 / phase.steps, *beyond, 0.0]) * phase.steps, 12), 0.0, 1.0)
    return dict(zip(order, (0.0 - np.diff(reached)).tolist(), strict=True))


def _risen(x: float, overlap: float) -> float:
    """Integral up to `x` of the line that rises from 0 at -overlap/2 to 1 at overlap/2."""
    half = overlap / 2
    if x >= half:
        return x
    return 0.0 if x <= -half else (x + half) ** 2 / (2 * overlap)
