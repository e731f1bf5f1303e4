"""AutoLRS: the learning rate of the next stage, from short runs that all begin at one checkpoint (Jin et al. 2021,
arXiv 2105.10762).

A stage has one constant learning rate and lasts tau updates. Each candidate goes on from the checkpoint at which the
stage begins, optimizer state included, for tau' = tau / 10 updates; its loss at tau is forecast from those, and
Bayesian optimisation chooses the next candidate. Ten candidates cost as many updates as the stage itself. With the
rate chosen, the stage is trained from the same checkpoint, and its end begins the next search.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from scipy.interpolate import LSQUnivariateSpline
from scipy.optimize import minimize_scalar

from cpt.errors import ConfigError, RunError, nearest
from cpt.evaluators.rows import number, read_run
from cpt.plan import RunPlan

FEWEST = 8
"""Losses that a forecast needs."""
GRID = 513
LENGTHS, NOISES = (0.05, 0.1, 0.2, 0.4, 0.8), (1e-4, 1e-2, 1e-1)


@dataclass(frozen=True)
class AutoLRSSearch:
    """Gaussian process and lower confidence bound over one range.

    Attributes:
      kappa: weight of the uncertainty. The authors' code has 1e6: the candidates cover the range evenly and the process
        only says where; a small one, 2 say, looks near the best.
    """

    trials: int = 10
    kappa: float = 1e6

    def sampler(self, number: int) -> BaseSampler:
        del number  # nothing is random
        return LowerConfidenceBound(self.kappa)

    def __str__(self) -> str:
        return f"Gaussian process, kappa {self.kappa:g}"


@dataclass(frozen=True)
class Forecast:
    """The loss at update `at` of the stage, forecast from the updates that a run has trained since it began.

    Attributes:
      at: tau, updates.
      of: an evaluation set; None = the training loss. The authors change to a validation loss in late stages, whose
        training losses are too noisy.
    """

    at: int
    of: str | None = None

    def check(self, plan: RunPlan) -> None:
        """That runs of `plan` will have enough losses.

        Raises:
          ConfigError: they will not, or have no such set.
        """
        if self.of is not None and self.of not in plan.spec.evaluation.sets:
            near = nearest(self.of, plan.spec.evaluation.sets)
            raise ConfigError(
                f"forecast: of={self.of!r}: no such set{near}  (sets: {', '.join(plan.spec.evaluation.sets)})"
            )
        first = _first_step(plan.to_json())
        steps = range(first + 1, plan.total_steps + 1)
        known = [s for s in steps if self.of is None or plan.evaluates_at(s)]
        if len(known) < FEWEST:
            raise ConfigError(
                f"forecast: {len(known)} losses in {len(steps)} updates, {FEWEST} are needed; train longer"
            )
        if self.at < len(steps):
            raise ConfigError(
                f"forecast: at={self.at}: the runs themselves have {len(steps)} updates; look further ahead"
            )

    def value(self, run: Path) -> float:
        """Of a finished run."""
        files = read_run(run)
        first = _first_step(files.plan)
        rows = files.metrics if self.of is None else [r for r in files.evals if r["set"] == self.of]
        losses = {r["step"]: number(r.get("loss")) for r in rows if r["step"] > first}
        steps_T = np.array(sorted(losses))
        return forecast_loss(steps_T - first, np.array([losses[s] for s in steps_T]), self.at)

    def so_far(self, run: Path, plan: RunPlan, after: int) -> list[tuple[int, float]]:
        """None: a candidate is as short as a forecast allows."""
        del run, plan, after
        return []

    def __str__(self) -> str:
        return f"forecast of {self.of or 'training'} loss at {self.at}"


def autolrs(trials: int = 10, kappa: float = 1e6) -> AutoLRSSearch:
    """Search one range as AutoLRS does."""
    if trials < 1 or not kappa >= 0:
        raise ConfigError(f"autolrs: trials={trials} and kappa={kappa} must be at least 1 and 0")
    return AutoLRSSearch(trials, kappa)


def forecast(at: int, of: str | None = None) -> Forecast:
    """The loss `at` updates after the stage began; see `Forecast`."""
    return Forecast(at, of)


def forecast_loss(steps_T: np.ndarray, losses_T: np.ndarray, at: int) -> float:
    """`a exp(b t) + c` with b < 0, fitted to the losses without outliers, at t = `at`.

    Args:
      steps_T: updates since the stage began, increasing.
      losses_T: nats per token.

    Raises:
      RunError: fewer than `FEWEST` finite losses.
    """
    finite = np.isfinite(losses_T)
    if finite.sum() < FEWEST:
        raise RunError(f"forecast: {finite.sum()} finite losses, {FEWEST} are needed; the run diverged or is too short")
    t_T, y_T = without_outliers(steps_T[finite].astype(float), losses_T[finite].astype(float))

    def fit(log_rate: float) -> tuple[float, float, float]:
        """Sum of squares, a, c for b = -exp(log_rate), the best a and c being those of a linear regression."""
        design = np.stack([np.exp(-np.exp(log_rate) * t_T), np.ones_like(t_T)], axis=1)
        (a, c), *_ = np.linalg.lstsq(design, y_T, rcond=None)
        return float(((design @ (a, c) - y_T) ** 2).sum()), a, c

    # Slower than a tenth of what is forecast looks like a straight line, faster than one update like a constant.
    rates = np.linspace(np.log(0.1 / at), 0.0, 64)
    i = int(np.argmin([fit(r)[0] for r in rates]))
    around = (rates[max(i - 1, 0)], rates[min(i + 1, len(rates) - 1)])
    log_rate = minimize_scalar(lambda r: fit(r)[0], bounds=around, method="bounded").x
    _, a, c = fit(log_rate)
    return float(a * np.exp(-np.exp(log_rate) * at) + c)


def without_outliers(t_T: np.ndarray, y_T: np.ndarray, rounds: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Drops what lies further than three deviations from a quadratic spline, and again, until nothing does."""
    for _ in range(rounds):
        knots = np.quantile(t_T, [0.25, 0.5, 0.75]) if len(t_T) >= 4 * FEWEST else []
        residual_T = y_T - LSQUnivariateSpline(t_T, y_T, knots, k=2)(t_T)
        deviation = 1.4826 * np.median(np.abs(residual_T))  # of a normal distribution, whatever the outliers are
        keep = np.abs(residual_T) <= max(3 * deviation, 1e-12)
        if keep.all() or keep.sum() < FEWEST:
            break
        t_T, y_T = t_T[keep], y_T[keep]
    return t_T, y_T


class LowerConfidenceBound(BaseSampler):
    """Where `mean - kappa * deviation` of a Gaussian process is smallest, over the range or its logarithm.

    A candidate that failed counts as the worst seen; one that is being trained as an average one.
    """

    def __init__(self, kappa: float):
        self.kappa = kappa

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> float:
        if not isinstance(param_distribution, FloatDistribution):
            raise ConfigError(f"autolrs: {param_name} must be a range of numbers; use log_uniform")
        low, high = (self._scale(v, param_distribution) for v in (param_distribution.low, param_distribution.high))
        others = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number and param_name in t.params]
        x_N = np.array([(self._scale(t.params[param_name], param_distribution) - low) / (high - low) for t in others])
        sign = 1.0 if study.direction.name == "MINIMIZE" else -1.0
        u = next_candidate(x_N, np.array([sign * _value(t) for t in others]), self.kappa)
        value = low + u * (high - low)
        value = float(np.exp(value)) if param_distribution.log else value
        return float(np.clip(value, param_distribution.low, param_distribution.high))

    @staticmethod
    def _scale(value: float, distribution: FloatDistribution) -> float:
        return float(np.log(value)) if distribution.log else float(value)


def next_candidate(x_N: np.ndarray, y_N: np.ndarray, kappa: float) -> float:
    """The next place in [0, 1] to try; the middle if nothing was tried yet.

    Args:
      x_N: places tried.
      y_N: what came of them, small is good; inf = failed, NaN = not known yet.
    """
    if not len(x_N):
        return 0.5
    known = np.isfinite(y_N)
    y_N = np.where(np.isposinf(y_N), y_N[known].max() if known.any() else 0.0, y_N)
    y_N = np.where(np.isnan(y_N), y_N[known].mean() if known.any() else 0.0, y_N)
    z_N = (y_N - y_N.mean()) / (y_N.std() or 1.0)
    grid_G = np.linspace(0.0, 1.0, GRID)
    mean_G, deviation_G = _posterior(x_N, z_N, grid_G)
    return float(grid_G[np.argmin(mean_G - kappa * deviation_G)])


def _posterior(x_N: np.ndarray, z_N: np.ndarray, grid_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of a process with a squared-exponential kernel of the likeliest length and noise."""
    best: tuple[float, float, float] | None = None
    for length in LENGTHS:
        for noise in NOISES:
            gram = _kernel(x_N, x_N, length) + noise * np.eye(len(x_N))
            fit = z_N @ np.linalg.solve(gram, z_N) + np.linalg.slogdet(gram)[1]
            if best is None or fit < best[0]:
                best = (float(fit), length, noise)
    _, length, noise = best
    gram = _kernel(x_N, x_N, length) + noise * np.eye(len(x_N))
    cross_GxN = _kernel(grid_G, x_N, length)
    variance_G = 1.0 - (cross_GxN * np.linalg.solve(gram, cross_GxN.T).T).sum(1)
    return cross_GxN @ np.linalg.solve(gram, z_N), np.sqrt(np.maximum(variance_G, 0.0))


def _kernel(a_A: np.ndarray, b_B: np.ndarray, length: float) -> np.ndarray:
    return np.exp(-0.5 * ((a_A[:, None] - b_B[None, :]) / length) ** 2)


def _value(trial: FrozenTrial) -> float:
    if trial.state == TrialState.COMPLETE:
        return trial.value
    return np.inf if trial.state == TrialState.FAIL else np.nan


def _first_step(plan: Mapping[str, Any]) -> int:
    """Where the run left the one whose child it is, by its plan.json."""
    init = plan["spec"]["init"]
    return (init["step"] or 0) if init["from_run"] and init["what"] == "all" else 0
