"""Shapes: how a learning rate goes from one level to another, as a function of the elapsed share u of the way.

A shape is `(start, to, u) -> lr` for arrays of u in [0, 1]; it is `start` at u = 0 and `to` at u = 1, exactly. Most are
`to + (start - to) * f(u)`, so a floor keeps the form and lifts it; `exp` and `inverse` are straight lines of log(lr)
and of 1/lr and need both levels above 0. Areas are the mean of f with a floor of 0 (0.1 for the last two): less area,
less noise is left, and less distance is gone (Dremov et al. 2025, arXiv 2508.01483).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cpt.errors import nearest


class Shape(Protocol):
    """`str(shape)` is its name in tables."""

    def __call__(self, start: float, to: float, u: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Between:
    """`to + (start - to) * f(u)`, written so that it is exact at both ends."""

    name: str
    f: Callable[[np.ndarray], np.ndarray]

    def __call__(self, start: float, to: float, u: np.ndarray) -> np.ndarray:
        f = self.f(u)
        return start * f + to * (1.0 - f)

    def __str__(self) -> str:
        return self.name


def _cosine(u: np.ndarray) -> np.ndarray:
    return (1.0 + np.cos(np.pi * u)) / 2.0


def _geometric(start: float, to: float, u: np.ndarray) -> np.ndarray:
    """`start * (to / start)**u`: log(lr) falls in a straight line; area .391."""
    return _with_exact_ends(start ** (1.0 - u) * to**u, start, to, u)


def _inverse(start: float, to: float, u: np.ndarray) -> np.ndarray:
    """1/lr rises in a straight line (Wen et al. 2024, arXiv 2410.05192, WSD-S); area .256."""
    return _with_exact_ends(start * to / (start * u + to * (1.0 - u)), start, to, u)


def _with_exact_ends(lr: np.ndarray, start: float, to: float, u: np.ndarray) -> np.ndarray:
    """Rounding must not make a joint where none is."""
    return np.where(u == 0.0, start, np.where(u == 1.0, to, lr))


@dataclass(frozen=True)
class InverseSqrt:
    """`f(u) = 1 - h(u)/h(1)`, h(u) = 1/sqrt(1 + alpha u) - 1: the inverse-sqrt cooldown of infinite schedules.

    Ibrahim et al. 2024 (arXiv 2403.08763); alpha is their timescale, 10.
    """

    alpha: float = 10.0

    def __call__(self, start: float, to: float, u: np.ndarray) -> np.ndarray:
        h = 1.0 / np.sqrt(1.0 + self.alpha * u) - 1.0
        g = h / (1.0 / np.sqrt(1.0 + self.alpha) - 1.0)
        return _with_exact_ends(start * (1.0 - g) + to * g, start, to, u)

    def __str__(self) -> str:
        return "inverse-sqrt"


SHAPES: dict[str, Shape] = {
    s.name: s
    for s in (
        Between("linear", lambda u: 1.0 - u),  # area .5
        Between("cosine", _cosine),  # area .5
        Between("mirror-cosine", lambda u: 2.0 * (1.0 - u) - _cosine(u)),  # area .5
        Between("1-sqrt", lambda u: 1.0 - np.sqrt(u)),  # area .333; Hagele et al. 2024, arXiv 2405.18392
        Between("square", lambda u: 1.0 - u * u),  # area .667
        Between("rex", lambda u: (1.0 - u) / (1.0 - u / 2.0)),  # area .614; Chen et al. 2021, arXiv 2107.04197
    )
} | {"exp": _geometric, "inverse": _inverse}
# A line of log(lr) or of 1/lr cannot leave or reach 0.
POSITIVE_SHAPES = frozenset({"exp", "inverse"})


def shape_named(shape: str | Shape) -> Shape:
    """The shape of that name; a shape itself as it is.

    Raises:
      ValueError: there is none; the line names the nearest.
    """
    if not isinstance(shape, str):
        return shape
    if shape not in SHAPES:
        raise ValueError(f"no shape '{shape}'{nearest(shape, SHAPES)}  (there are: {', '.join(SHAPES)})")
    return SHAPES[shape]
