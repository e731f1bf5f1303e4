"""Fitting `y = A ((x - E0) / (m - E0))^kappa + E1`: the best parameters, and all that do almost as well.

A is the height of the law above E1 at the mean x, m; it is far less entangled with the rest than K = A / (m - E0)^kappa
is. For given (E0, kappa) the law is linear in (A, E1), so two parameters are searched and two are solved for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.optimize import least_squares

KAPPA = (0.05, 20.0)  # beyond it the curve is a step or a wall
_NODES = 41  # per parameter that is searched


@dataclass(frozen=True)
class Laws:
    """Laws, one per node m of a search over (E0, kappa).

    Attributes:
      low_M, kappa_M: E0 and kappa.
      height_M, floor_M: the best A and E1 there.
      squares_M: sum of squared (weighted) residuals.
      inverse_Mx2x2: inverse of the normal equations of (A, E1); zero for a given E1.
    """

    low_M: np.ndarray
    kappa_M: np.ndarray
    height_M: np.ndarray
    floor_M: np.ndarray
    squares_M: np.ndarray
    inverse_Mx2x2: np.ndarray

    def where(self, keep_M: np.ndarray) -> Laws:
        return Laws(*(getattr(self, f)[keep_M] for f in self.__dataclass_fields__))

    @staticmethod
    def joined(parts: list[Laws]) -> Laws:
        return Laws(*(np.concatenate([getattr(p, f) for p in parts]) for f in Laws.__dataclass_fields__))


class Search:
    """The search over points `x_N`, `y_N` with weights `weight_N` of their residuals; E0 and E1 may be given.

    E0 is sought in [0, min x), E1 in [0, min y): cross-entropies have no lower bound below 0.
    """

    def __init__(
        self, x_N: np.ndarray, y_N: np.ndarray, weight_N: np.ndarray, e0: float | None = None, e1: float | None = None
    ):
        self.x_N, self.y_N, self.weight_N, self.e0, self.e1 = x_N, y_N, weight_N, e0, e1
        self.middle = float(np.mean(x_N))
        # The lowest losses stay a little above E: at E itself the power has no derivative.
        self.highest = float(x_N.min() - 1e-4 * np.ptp(x_N)), float(y_N.min() - 1e-4 * np.ptp(y_N))

    def laws(self, low: float, kappa_M: np.ndarray) -> Laws:
        """The best (A, E1) for one E0 and each kappa."""
        base_MxN = base(self.x_N, low, kappa_M, self.middle)
        w_N, u_MxN = self.weight_N**2, base_MxN * self.weight_N**2
        bb, b, one = (u_MxN * base_MxN).sum(1), u_MxN.sum(1), w_N.sum()
        by, y = u_MxN @ self.y_N, w_N @ self.y_N
        inverse_Mx2x2 = np.zeros((len(kappa_M), 2, 2))
        if self.e1 is None:
            determinant = np.maximum(bb * one - b * b, 1e-15 * bb * one)
            floor_M = np.clip((bb * y - b * by) / determinant, 0, self.highest[1])
            inverse_Mx2x2[:, 0, 0], inverse_Mx2x2[:, 1, 1] = one / determinant, bb / determinant
            inverse_Mx2x2[:, 0, 1] = inverse_Mx2x2[:, 1, 0] = -b / determinant
        else:
            floor_M = np.full(len(kappa_M), self.e1)
            inverse_Mx2x2[:, 0, 0] = 1 / bb
        height_M = np.maximum((by - floor_M * b) / bb, 1e-12)
        errors_MxN = (height_M[:, None] * base_MxN + floor_M[:, None] - self.y_N) * self.weight_N
        low_M = np.full(len(kappa_M), low)
        return Laws(low_M, np.asarray(kappa_M), height_M, floor_M, (errors_MxN**2).sum(1), inverse_Mx2x2)

    def at(self, low: float) -> Laws:
        """The best law of one E0 (a single node): kappa by zooming in."""
        kappa_M = np.geomspace(*KAPPA, 25)
        for _ in range(7):
            found = self.laws(low, kappa_M)
            i = int(np.argmin(found.squares_M))
            kappa_M = np.linspace(kappa_M[max(i - 1, 0)], kappa_M[min(i + 1, len(kappa_M) - 1)], 11)
        return found.where(np.array([i]))

    def best(self) -> Laws:
        """The best law of all (a single node)."""
        lows = [self.e0] if self.e0 is not None else self.highest[0] - np.geomspace(
            1e-3 * np.ptp(self.x_N), self.highest[0], 24)  # fmt: skip
        coarse = Laws.joined([self.at(max(low, 0.0)) for low in lows])
        nearest = [coarse.where(np.array([i])) for i in np.argsort(coarse.squares_M)[:2]]
        return min((self._polished(law) for law in nearest), key=lambda law: law.squares_M[0])

    def all_within(self, best: Laws, slack: float) -> Laws:
        """The laws whose sum of squares exceeds that of `best` by at most `slack`, on a grid fitted to their extent."""
        limit = best.squares_M[0] + slack
        lows, parts = [self.e0], [best]
        if self.e0 is None:
            lows = _extent(lambda low: self.at(low).squares_M[0], best.low_M[0], (0.0, self.highest[0]), limit)
        for low in lows:
            here = self.at(low)
            if here.squares_M[0] <= limit:
                own = partial(self._squares, low)
                parts.append(self.laws(low, _extent(own, here.kappa_M[0], KAPPA, limit)))
        found = Laws.joined(parts)
        return found.where(found.squares_M <= limit * (1 + 1e-12))

    def _squares(self, low: float, kappa: float) -> float:
        return float(self.laws(low, np.array([kappa])).squares_M[0])

    def _polished(self, law: Laws) -> Laws:
        """Downhill from a node in (E0, kappa), with (A, E1) solved for."""

        searched = slice(0 if self.e0 is None else 1, 2)

        def law_at(p: np.ndarray) -> Laws:
            return self.laws(float(p[0]) if self.e0 is None else self.e0, p[-1:])

        def errors(p: np.ndarray) -> np.ndarray:
            found = law_at(p)
            base_N = base(self.x_N, found.low_M, found.kappa_M, self.middle)[0]
            return (found.height_M[0] * base_N + found.floor_M[0] - self.y_N) * self.weight_N

        lower, upper = np.array([0.0, KAPPA[0]])[searched], np.array([self.highest[0], KAPPA[1]])[searched]
        margin = 1e-9 * (upper - lower)
        start = np.clip(np.array([law.low_M[0], law.kappa_M[0]])[searched], lower + margin, upper - margin)
        found = least_squares(errors, start, bounds=(lower, upper), x_scale="jac", xtol=1e-14, ftol=1e-14, gtol=1e-14)
        new = law_at(found.x)
        return new if new.squares_M[0] < law.squares_M[0] else law


def base(x_N: np.ndarray, low: np.ndarray | float, kappa_M: np.ndarray, middle: float) -> np.ndarray:
    """`((x - E0) / (m - E0))^kappa`, [M, N]; 0 at and below E0."""
    low_Mx1 = np.broadcast_to(np.asarray(low, float), np.shape(kappa_M))[:, None]
    return (np.maximum(x_N - low_Mx1, 0) / (middle - low_Mx1)) ** np.asarray(kappa_M)[:, None]


def _extent(squares: Callable[[float], float], at: float, bounds: tuple[float, float], limit: float) -> np.ndarray:
    """Nodes over the stretch around `at` in which `squares` is at most `limit`."""

    def end(outer: float) -> float:
        if squares(outer) <= limit:
            return outer
        # First its scale, which may be tiny beside the bounds, then its place.
        step, least = outer - at, 1e-12 * (1 + abs(at))
        while abs(step) > least and squares(at + step / 4) > limit:
            step /= 4
        inside, outside = at + step / 4, at + step
        if abs(step) <= least:
            return at
        for _ in range(8):
            half = (inside + outside) / 2
            inside, outside = (half, outside) if squares(half) <= limit else (inside, half)
        return outside

    return np.linspace(end(bounds[0]), end(bounds[1]), _NODES)
