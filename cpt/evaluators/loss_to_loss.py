"""Loss-to-loss prediction: one loss as a shifted power law of another (Brandfonbrener et al. 2024, arXiv:2411.12925).

    L_1 = K (L_0 - E_0)^kappa + E_1

E_0 and E_1 are what no model of this kind could get below on the two sets. Over the narrow range of losses that a run
or a few small runs cover, very different (K, kappa, E_0, E_1) lie on the same line, and part ways outside it by tenths
of a nat. So a fit says how well each parameter is known, and a prediction has an interval that grows where the data
end. Both come from all the laws that fit almost as well as the best one (the likelihood's profile). The slope at the
best one would not do: those laws form a long bent valley.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy import special

from cpt.errors import ConfigError
from cpt.evaluators.rows import RunFiles
from cpt.evaluators.shifted_power import Laws, Search, base

LEVEL = 0.95


@dataclass(frozen=True)
class Fit:
    """A fitted law. Losses in nats/token.

    Attributes:
      K, kappa, E0, E1: its parameters.
      residual: root of the sum of squared residuals over the degrees of freedom, nats/token (relative to the loss for
        `residuals="log"`).
      explained: share of the variance of y that the law explains (R squared); well below 1 there is no such law here.
      interval: 95 % interval of each parameter, `[lo, hi]`; a given E has none. NaN without a degree of freedom.
      identified: whether E0 and E1 are pinned down: each interval is narrower than the distance from E to the lowest
        loss seen. Where it is False the law describes the points and should not be trusted far below them.
      points, freedom: how many points, and how many more than parameters.
      seen: lowest and highest x.
      residuals: what was minimised.
      laws: the laws that fit almost as well, `slack` above the least sum of squares at most; `middle` is their m.
    """

    K: float
    kappa: float
    E0: float
    E1: float
    residual: float
    explained: float
    interval: Mapping[str, list[float]]
    identified: bool
    points: int
    freedom: int
    seen: tuple[float, float]
    residuals: Literal["plain", "log"]
    laws: Laws
    slack: float
    middle: float


class Prediction(NamedTuple):
    """Losses at given x.

    Attributes:
      y_N: nats/token; NaN at or below E0, where the law says nothing.
      lo_N, hi_N: 95 % interval of another point there: what the fit does not know, and the scatter of the points. Of
        the laws that fit about as well, those whose E0 lies above x count there with E1; NaN where all do.
      extrapolates_N: whether x lies outside what was fitted.
    """

    y_N: np.ndarray
    lo_N: np.ndarray
    hi_N: np.ndarray
    extrapolates_N: np.ndarray


class Pairs(NamedTuple):
    """Two losses measured on the same model: `x_N`, `y_N` in nats/token, `labels_N` steps or names of runs."""

    x_N: np.ndarray
    y_N: np.ndarray
    labels_N: list


def shifted_power_law(x: np.ndarray | float, K: float, kappa: float, E0: float, E1: float) -> np.ndarray:
    """`K (x - E0)^kappa + E1`, nats/token; NaN at or below E0."""
    above = np.asarray(x, float) - E0
    return K * np.where(above > 0, above, np.nan) ** kappa + E1


def fit(
    x_N: Sequence[float],
    y_N: Sequence[float],
    e0: float | None = None,
    e1: float | None = None,
    residuals: Literal["plain", "log"] = "plain",
) -> Fit:
    """Least squares with K > 0, kappa in [0.05, 20], 0 <= E0 < min x, 0 <= E1 < min y, from many starts.

    Args:
      x_N, y_N: [N] losses, nats/token; pairs of which one is not finite are left out.
      e0, e1: irreducible losses known from elsewhere (a scaling law of each set, as in the paper); then not fitted.
        This is what makes a far extrapolation worth something.
      residuals: of y, or of log y (to first order: divided by y).

    Raises:
      ConfigError: fewer pairs than parameters, all x the same, or a given E that is not below its losses.
    """
    x_N, y_N = np.asarray(x_N, float), np.asarray(y_N, float)
    keep = np.isfinite(x_N) & np.isfinite(y_N)
    x_N, y_N = x_N[keep], y_N[keep]
    _check(x_N, y_N, e0, e1, residuals)
    search = Search(x_N, y_N, 1 / y_N if residuals == "log" else np.ones_like(y_N), e0, e1)
    best = search.best()
    freedom = len(x_N) - 2 - (e0 is None) - (e1 is None)
    variance = float(best.squares_M[0]) / max(freedom, 1)
    slack = variance * _t(freedom) ** 2 if freedom else 0.0
    laws = search.all_within(best, slack)
    (low,), (kappa,), (height,), (floor,) = best.low_M, best.kappa_M, best.height_M, best.floor_M
    interval = _intervals(laws, slack, search, freedom)
    room = {"E0": x_N.min() - low, "E1": y_N.min() - floor}
    off = float(np.sum((height * base(x_N, low, best.kappa_M, search.middle)[0] + floor - y_N) ** 2))
    spread = float(np.sum((y_N - y_N.mean()) ** 2))
    return Fit(
        K=float(height / (search.middle - low) ** kappa), kappa=float(kappa), E0=float(low), E1=float(floor),
        residual=math.sqrt(variance), explained=1 - off / spread if spread else 0.0, interval=interval,
        identified=all(interval[e][1] - interval[e][0] < room[e] for e in room if e in interval),
        points=len(x_N), freedom=freedom, seen=(float(x_N.min()), float(x_N.max())), residuals=residuals,
        laws=laws, slack=slack, middle=search.middle,
    )  # fmt: skip


def predict(fitted: Fit, x_N: Sequence[float] | float) -> Prediction:
    """The law at `x_N`, with intervals that are NaN where the fit has no degree of freedom."""
    x_N = np.atleast_1d(np.asarray(x_N, float))
    y_N = shifted_power_law(x_N, fitted.K, fitted.kappa, fitted.E0, fitted.E1)
    laws = fitted.laws
    base_MxN = base(x_N, laws.low_M, laws.kappa_M, fitted.middle)
    at_MxN = laws.height_M[:, None] * base_MxN + laws.floor_M[:, None]
    # What is left of the slack at a node goes to its (A, E1), in which the law is linear.
    toward_MxNx2 = np.stack([base_MxN, np.ones_like(base_MxN)], axis=2)
    size_MxN = np.einsum("mni,mij,mnj->mn", toward_MxNx2, laws.inverse_Mx2x2, toward_MxNx2)
    half_MxN = np.sqrt(_left(laws, fitted.slack)[:, None] * np.maximum(size_MxN, 0))
    lo_N, hi_N = (at_MxN - half_MxN).min(axis=0), (at_MxN + half_MxN).max(axis=0)
    middle_N = np.where(np.isnan(y_N), fitted.E1, y_N)
    scatter_N = fitted.residual * (middle_N if fitted.residuals == "log" else 1.0) * _t(fitted.freedom)
    scatter_N = np.where(x_N > laws.low_M.min(), scatter_N, np.nan)
    # A loss is not negative.
    lo_N = np.maximum(middle_N - np.hypot(middle_N - lo_N, scatter_N), 0)
    hi_N = middle_N + np.hypot(hi_N - middle_N, scatter_N)
    outside_N = (x_N < fitted.seen[0]) | (x_N > fitted.seen[1])
    return Prediction(y_N, lo_N, hi_N, outside_N)


def pairs_of(runs: RunFiles | Mapping[str, RunFiles], set_x: str, set_y: str, since: int = 0) -> Pairs:
    """Losses of two sets on the same models: along one run's evaluations, or at the last one of each of several runs.

    Args:
      runs: one run, or several by name; those that did not evaluate both sets at a common step are left out.
      set_x, set_y: evaluation sets.
      since: leave out what was evaluated before this step.
    """
    if isinstance(runs, RunFiles):
        return _common(runs, set_x, set_y, since)
    found = {name: _common(run, set_x, set_y, since) for name, run in runs.items()}
    found = {name: pairs for name, pairs in found.items() if len(pairs.x_N)}
    ends = np.array([(p.x_N[-1], p.y_N[-1]) for p in found.values()]).reshape(-1, 2)
    return Pairs(ends[:, 0], ends[:, 1], list(found))


def _intervals(laws: Laws, slack: float, search: Search, freedom: int) -> dict[str, list[float]]:
    left_M = _left(laws, slack)
    half_Mx2 = np.sqrt(left_M[:, None] * np.diagonal(laws.inverse_Mx2x2, axis1=1, axis2=2))
    per_height_M = (search.middle - laws.low_M) ** -laws.kappa_M
    height_2xM = np.maximum(laws.height_M + np.array([[-1], [1]]) * half_Mx2[:, 0], 0)
    floor_2xM = np.clip(laws.floor_M + np.array([[-1], [1]]) * half_Mx2[:, 1], 0, search.y_N.min())
    ends = {
        "K": height_2xM * per_height_M,
        "kappa": (laws.kappa_M, laws.kappa_M),
        "E0": (laws.low_M, laws.low_M),
        "E1": floor_2xM,
    }
    for name, given in (("E0", search.e0), ("E1", search.e1)):
        if given is not None:
            del ends[name]
    return {k: [float(lo.min()), float(hi.max())] if freedom else [math.nan] * 2 for k, (lo, hi) in ends.items()}


def _left(laws: Laws, slack: float) -> np.ndarray:
    """How far the sum of squares may still grow at each node."""
    return np.maximum(laws.squares_M.min() + slack - laws.squares_M, 0)


def _t(freedom: int) -> float:
    return float(special.stdtrit(freedom, (1 + LEVEL) / 2)) if freedom else math.nan


def _common(run: RunFiles, set_x: str, set_y: str, since: int) -> Pairs:
    """The steps at which a run evaluated both sets."""
    x, y = (run.curves.get(name) for name in (set_x, set_y))
    if x is None or y is None:
        return Pairs(np.zeros(0), np.zeros(0), [])
    steps, at_x, at_y = np.intersect1d(x.steps, y.steps, return_indices=True)
    keep = (steps >= since) & np.isfinite(x.loss[at_x]) & np.isfinite(y.loss[at_y])
    return Pairs(x.loss[at_x][keep], y.loss[at_y][keep], steps[keep].tolist())


def _check(x_N: np.ndarray, y_N: np.ndarray, e0: float | None, e1: float | None, residuals: str) -> None:
    needed = 2 + (e0 is None) + (e1 is None)
    if len(x_N) < needed:
        raise ConfigError(f"loss-to-loss: {len(x_N)} pairs of losses for {needed} parameters; give more, or e0 and e1")
    if np.ptp(x_N) == 0:
        raise ConfigError(f"loss-to-loss: all {len(x_N)} losses to predict from are {x_N[0]:g}; give some that differ")
    for name, given, losses_N in (("e0", e0, x_N), ("e1", e1, y_N)):
        if given is not None and not given < losses_N.min():
            raise ConfigError(f"loss-to-loss: {name}={given:g} is not below the lowest loss, {losses_N.min():g}")
    if residuals not in ("plain", "log"):
        raise ConfigError(f"loss-to-loss: residuals='{residuals}' is neither plain nor log")
