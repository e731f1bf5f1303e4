"""The sources one after the other, each for its share of the phase, fading into the next one where that is wanted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cpt.data.mixers._base import over_steps
from cpt.data.mixers._options import number, place, read
from cpt.errors import ConfigError


@over_steps
def curriculum(phase: Any, sources: Mapping[str, Any], step: Any) -> Mapping[str, Any]:
    """Each source of `order` in turn; over the phase it gets the share that `mix` says.

    Around each border, over `overlap` of the phase, the share of the next source rises in a straight line from 0 to 1.
    A batch that a border falls into has rows of both, so the totals are those of `mix` to the row.

    Options: `order`, the sources; `overlap` (0.0), at most the smallest share of `mix`. To read one source in the order
    in which it is stored, see `sources.<name>.order`.

    Raises:
      ConfigError: `order` names other sources than `mix`, an overlap that does not fit.
    """
    mix, options, where = phase.spec.mix, read(phase, "order", "overlap"), place(phase)
    order = options.get("order", ())
    if not isinstance(order, list | tuple) or sorted(map(str, order)) != sorted(mix):
        raise ConfigError(f"{where}.order: name each source of `mix` once, {sorted(mix)} (got {order!r})")
    overlap = number(options.get("overlap", 0.0), f"{where}.overlap")
    if not overlap <= min(mix.values()) + 1e-12:
        raise ConfigError(
            f"{where}.overlap: {overlap:g} is not between 0 and the smallest share, {min(mix.values()):g}"
        )
    # In steps, and whole where they are meant to be: a third of 30 steps is 10 of them, in floats a little more.
    border_B = np.cumsum([mix[name] for name in order])[:-1] * phase.steps
    border_B = np.where(abs(border_B - np.round(border_B)) < 1e-6, np.round(border_B), border_B)
    step = np.asarray(step)
    beyond = [_beyond(step, border, overlap * phase.steps) for border in border_B]
    reached = np.minimum.accumulate([np.ones(step.shape), *beyond, np.zeros(step.shape)], axis=0)
    return dict(zip(order, reached[:-1] - reached[1:], strict=True))


def _beyond(step: np.ndarray, border: float, overlap: float) -> np.ndarray:
    """How much of the batch of `step`, which takes from `step` to `step + 1`, lies beyond a border `overlap` wide.

    That is the mean over the batch of a line that rises from 0 to 1 around the border. Nothing large is subtracted from
    its like: in a phase of a million steps the difference of two integrals would be noise.
    """
    rises, ends = border - overlap / 2, border + overlap / 2
    low, high = np.clip(step, rises, ends), np.clip(step + 1, rises, ends)
    risen = ((low - rises) + (high - rises)) / 2 / overlap if overlap else 0.0
    return np.clip((high - low) * risen + np.clip(step + 1 - ends, 0.0, 1.0), 0.0, 1.0)
