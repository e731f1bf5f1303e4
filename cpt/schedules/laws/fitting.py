"""Fitting a law to curves: Huber loss on log L, many starts, and how sure the result is.

Neighbouring points of a loss curve are off in the same direction, so treating them as independent would give intervals
that are far too narrow. The covariance of the parameters is therefore the sandwich `H^-1 M H^-1`, with M from the sums
of scores over blocks of neighbouring points. It is that of the free parameters, the logarithms of the positive ones, so
that no interval reaches below 0; a parameter of which the curves say nothing gets an interval of many orders of
magnitude. A prediction adds the law's own misfit: it is never surer than the law was
about the curves it was fitted to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.optimize import minimize

from cpt.errors import DataError
from cpt.schedules.laws.curves import Curve
from cpt.schedules.laws.law import Law, Options

HUBER = 1e-3  # on log L: beyond a tenth of a percent a residual counts linearly
DEPENDENT = 10  # neighbouring points that are worth one independent one, where a prior is weighed against them
STARTS, POLISHED, SEED = 32, 3, 0
BLOCKS = 8  # per curve
UNKNOWN = 5.0  # standard deviation of a free parameter of which nothing is known; a factor of 150 for a logarithm
MEANINGLESS = 1e3  # the objective where the law has no logarithm
Z95 = 1.959963984540054
DEFAULTS = Options()


@dataclass(frozen=True)
class Fit:
    """A fitted law.

    Attributes:
      law, options: what was fitted.
      parameters_U: float64, in the order of `law.names`.
      covariance_UxU: of the free parameters, see the module.
      misfit: root mean square of the residuals, nats per token.
      objective: mean Huber loss that was reached.
    """

    law: Law
    options: Options
    parameters_U: np.ndarray
    covariance_UxU: np.ndarray
    misfit: float
    objective: float

    def predict(self, curve: Curve) -> tuple[np.ndarray, np.ndarray]:
        """(loss_P, half_P): the predicted loss at the points of a curve, and half of its 95 % interval."""
        loss_P, by_free_PxU = self._loss(curve)
        return loss_P, Z95 * np.sqrt(self._variance(by_free_PxU) + self.misfit**2)

    def difference(self, curve: Curve, other: Curve) -> tuple[float, float]:
        """Predicted loss at the end of `curve` less that of `other`, and half of its 95 % interval.

        Surer than the two apart, since wrong parameters are wrong about both.
        """
        (loss_P, by_free_PxU), (loss_Q, by_free_QxU) = self._loss(curve), self._loss(other)
        variance = self._variance(by_free_PxU[-1:] - by_free_QxU[-1:])[0] + 2 * self.misfit**2
        return float(loss_P[-1] - loss_Q[-1]), float(Z95 * np.sqrt(variance))

    @property
    def intervals_Ux2(self) -> np.ndarray:
        """The 95 % interval of each parameter."""
        positive = np.array(self.law.positive)
        half_U = Z95 * np.sqrt(np.maximum(np.diag(self.covariance_UxU), 0.0))
        free_Ux2 = _free(self.parameters_U, positive)[:, None] + half_U[:, None] * [-1.0, 1.0]
        return np.where(positive[:, None], np.exp(np.where(positive[:, None], free_Ux2, 0.0)), free_Ux2)

    def _loss(self, curve: Curve) -> tuple[np.ndarray, np.ndarray]:
        """(loss_P, derivatives_PxU), the latter by the free parameters."""
        loss_P, derivatives_PxU = self.law.loss(self.parameters_U, self.law.prepare(curve, self.options))
        return loss_P, derivatives_PxU * np.where(self.law.positive, self.parameters_U, 1.0)

    def _variance(self, by_free_PxU: np.ndarray) -> np.ndarray:
        return np.maximum(np.einsum("pu,uv,pv->p", by_free_PxU, self.covariance_UxU, by_free_PxU), 0.0)


def fit(law: Law, curves: Sequence[Curve], options: Options = DEFAULTS) -> Fit:
    """The law's parameters for some curves.

    Raises:
      DataError: too few points, or curves that cannot tell the parameters.
    """
    points = sum(len(c.steps_P) for c in curves)
    if points < 4 * len(law.names):
        raise DataError(
            f"{_names(curves)}: {points} points, but {len(law.names)} parameters need at least {4 * len(law.names)}"
        )
    for c in curves:
        if not (np.isfinite(c.loss_P).all() and (c.loss_P > 0).all()):
            raise DataError(f"{c.name}: holds a loss that is not a finite number above 0")
    prepared = [law.prepare(c, options) for c in curves]
    if why := law.unidentified(curves, prepared):
        raise DataError(f"{_names(curves)}: {why}")
    target = np.concatenate([np.log(c.loss_P) for c in curves])
    positive = np.array(law.positive)
    objective = _objective(law, prepared, target, positive)
    best = _minimise(objective, _free(law.starts(curves, np.random.default_rng(SEED), STARTS), positive))
    reached = objective(best)[0]
    if reached >= MEANINGLESS:
        raise DataError(f"{_names(curves)}: the law has no parameters that give these losses; is a learning rate 0?")
    parameters = _bound(best, positive)
    loss, derivatives = _stacked(law, parameters, prepared)
    by_free = derivatives * np.where(positive, parameters, 1.0) / loss[:, None]
    precision = _prior(law, positive, 1)[1] * HUBER**2
    covariance = _sandwich(by_free, np.log(loss) - target, [len(c.steps_P) for c in curves], precision)
    misfit = float(np.sqrt(np.mean((loss - np.exp(target)) ** 2)))
    return Fit(law, options, parameters, covariance, misfit, reached)


def errors(fitted: Fit, curve: Curve) -> dict[str, Any]:
    """`points`, mean absolute error `mae` in nats per token and `r2` of the prediction of one curve."""
    predicted, _ = fitted.predict(curve)
    off = predicted - curve.loss_P
    spread = np.sum((curve.loss_P - curve.loss_P.mean()) ** 2)
    return {"points": len(off), "mae": float(np.abs(off).mean()), "r2": float(1 - np.sum(off**2) / spread)}


def _stacked(law: Law, parameters: np.ndarray, prepared: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    parts = [law.loss(parameters, p) for p in prepared]
    return np.concatenate([loss for loss, _ in parts]), np.concatenate([d for _, d in parts])


def _objective(law: Law, prepared: Sequence[Any], target: np.ndarray, positive: np.ndarray):
    """Mean Huber loss of log L and its gradient, by the free parameters."""
    centre, precision = _prior(law, positive, len(target))

    def objective(free: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = _bound(free, positive)
        with np.errstate(all="ignore"):
            loss, derivatives = _stacked(law, parameters, prepared)
            off = np.log(loss) - target
            if not np.isfinite(off).all():  # outside of what the law means: a negative loss
                return MEANINGLESS, np.zeros_like(free)
            size = np.abs(off)
            value = np.where(size <= HUBER, off**2 / 2, HUBER * (size - HUBER / 2))
            slope = np.clip(off, -HUBER, HUBER) / loss
            gradient = slope @ derivatives * np.where(positive, parameters, 1.0) / len(off)
        away = free - centre
        # In units of the bend, so that tolerances mean something.
        value, gradient = value.mean() / HUBER**2, np.nan_to_num(gradient) / HUBER**2
        return float(value + (precision * away**2).sum() / 2), gradient + precision * away

    return objective


def _prior(law: Law, positive: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """(centre, precision) of the free parameters, the latter in the units of the mean objective; 0 where flat."""
    given = np.array([p is not None for p in law.prior])
    centre = np.array([0.0 if p is None else p[0] for p in law.prior])
    spread = np.array([1.0 if p is None else p[1] for p in law.prior])
    centre = np.where(given & positive, np.log(np.where(given & positive, centre, 1.0)), centre)
    return centre, np.where(given, DEPENDENT / points / spread**2, 0.0)


def _minimise(objective: Any, starts: np.ndarray) -> np.ndarray:
    """Every start a short way, the best ones to the end, the best of them polished without gradients."""
    short = [minimize(objective, s, jac=True, method="L-BFGS-B", options={"maxiter": 60}) for s in starts]
    short.sort(key=lambda r: r.fun)
    long = [
        minimize(objective, r.x, jac=True, method="L-BFGS-B", options={"maxiter": 2000, "maxfun": 4000, "ftol": 1e-12})
        for r in short[:POLISHED]
    ]
    best = min(long, key=lambda r: r.fun)
    last = minimize(lambda x: objective(x)[0], best.x, method="Nelder-Mead", options={"maxiter": 400, "fatol": 1e-9})
    return last.x if last.fun < best.fun else best.x


def _free(parameters: np.ndarray, positive: np.ndarray) -> np.ndarray:
    return np.where(positive, np.log(np.where(positive, parameters, 1.0)), parameters)


def _bound(free: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """The parameters of free ones; a logarithm stays where it has an exponential."""
    return np.where(positive, np.exp(np.clip(np.where(positive, free, 0.0), -40, 40)), free)


def _sandwich(derivatives: np.ndarray, residual: np.ndarray, sizes: list[int], precision: np.ndarray) -> np.ndarray:
    """Covariance of the parameters of a robust fit with errors that depend on their neighbours."""
    precision = precision + HUBER**2 * DEPENDENT / UNKNOWN**2
    inside = (np.abs(residual) <= HUBER).astype(float)
    # Points beyond the bend have no curvature; a fit of nothing but such points still has the slope of a median's.
    weight = np.maximum(inside, 0.1)
    hessian = derivatives.T @ (weight[:, None] * derivatives) + np.diag(precision)
    scores = np.clip(residual, -HUBER, HUBER)[:, None] * derivatives
    meat = np.zeros_like(hessian)
    first = 0
    for size in sizes:
        for a, b in pairwise(np.linspace(first, first + size, BLOCKS + 1).astype(int)):
            block = scores[a:b].sum(0)
            meat += np.outer(block, block)
        first += size
    # What is known from elsewhere is off as well, by its spread of `sqrt(HUBER**2 * DEPENDENT / precision)`.
    meat += np.diag(HUBER**2 * DEPENDENT * precision)
    inverse = np.linalg.inv(hessian)
    return inverse @ meat @ inverse


def _names(curves: Sequence[Curve]) -> str:
    return ", ".join(c.name for c in curves)
