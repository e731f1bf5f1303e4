"""AutoLRS: forecasts of curves that are known, candidates that cover the range, rates that fall from stage to stage."""

import json

import numpy as np
import pytest

from cpt import sweeps as s
from cpt.errors import RunError
from cpt.sweeps.autolrs import Forecast, forecast_loss, next_candidate, without_outliers


@pytest.mark.parametrize(("a", "rate", "c"), [(2.0, 0.02, 3.0), (0.5, 0.005, 2.5), (-0.4, 0.03, 3.5), (1.0, 0.2, 2.0)])
def test_an_exponential_is_forecast_exactly(a, rate, c):
    t = np.arange(1, 101)
    expected = a * np.exp(-rate * 1000) + c
    assert forecast_loss(t, a * np.exp(-rate * t) + c, 1000) == pytest.approx(expected, rel=1e-3)


def test_noise_and_outliers_cost_a_few_percent():
    """A1 of the notes on the paper, tau' = tau / 10."""
    rng, t = np.random.default_rng(0), np.arange(1, 101)
    clean = 1.5 * np.exp(-0.03 * t) + 2.8
    noisy = clean + 0.02 * rng.standard_normal(100)
    noisy[[7, 40, 77]] += (3.0, 5.0, 2.0)
    assert forecast_loss(t, noisy, 1000) == pytest.approx(2.8, rel=0.03)
    kept, _ = without_outliers(t.astype(float), noisy)
    assert set(t) - set(kept.astype(int)) >= {8, 41, 78} and len(kept) > 85
    raw = np.polyfit(t, noisy, 1) @ (1000, 1)
    assert abs(raw - 2.8) > 1  # what a straight line would say


def test_too_few_losses_are_told():
    with pytest.raises(RunError, match="7 finite losses, 8 are needed"):
        forecast_loss(np.arange(1, 11), np.array([3.0] * 7 + [np.nan] * 3), 100)


def test_exploring_covers_the_range_and_exploiting_looks_near_the_best():
    def search(kappa, loss, n=10):
        x = []
        for _ in range(n):
            x.append(next_candidate(np.array(x), np.array([loss(u) for u in x]), kappa))
        return np.array(x)

    def bowl(u):
        return (u - 0.8) ** 2

    everywhere, near = search(1e6, bowl), search(1.0, bowl)
    assert everywhere[0] == 0.5 and {0.0, 1.0} <= set(everywhere)
    assert np.diff(np.sort(everywhere)).max() < 0.2
    assert np.abs(near[4:] - 0.8).mean() < 0.1 < np.abs(everywhere[4:] - 0.8).mean()
    failed = next_candidate(np.array([0.5, 1.0]), np.array([1.0, np.inf]), 1.0)
    assert failed < 0.5  # away from what failed


def test_the_rate_falls_from_stage_to_stage(tmp_path):
    """A2: gradient descent with noise on a quadratic, in 20 directions of different curvature."""
    curvature = np.geomspace(0.02, 1.0, 20)

    def train(state, lr, steps, seed):
        rng, losses = np.random.default_rng(seed), []
        for _ in range(steps):
            state = state - lr * (curvature * state + 0.3 * rng.standard_normal(20))
            losses.append(float(0.5 * (curvature * state**2).sum()))
        return state, np.array(losses)

    state, chosen = np.full(20, 3.0), []
    for stage, tau in enumerate((100, 200, 400, 800)):
        x, y = [], []
        for _ in range(10):
            x.append(next_candidate(np.array(x), np.array(y), 1e6))
            _, losses = train(state, 10 ** (-3 + 3 * x[-1]), max(tau // 10, 10), seed=stage)
            y.append(forecast_loss(np.arange(1, len(losses) + 1), losses, tau))
        chosen.append(10 ** (-3 + 3 * x[int(np.argmin(y))]))
        state, _ = train(state, chosen[-1], tau, seed=100 + stage)
    assert chosen[-1] < chosen[0] and chosen[-1] <= min(chosen[:2])


def test_the_metric_reads_the_stage_alone(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    spec = {"init": {"from_run": "parent", "what": "all", "step": 100}}
    (run / "plan.json").write_text(json.dumps({"spec": spec, "total_steps": 130}))
    losses = [9.0 if t <= 100 else 2.0 * np.exp(-0.05 * (t - 100)) + 3 for t in range(131)]
    rows = [{"step": t, "tokens": t, "loss": loss} for t, loss in enumerate(losses)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert Forecast(300).value(run) == pytest.approx(3.0, rel=1e-3)
    assert str(Forecast(300, "pile")) == "forecast of pile loss at 300"


def test_it_searches_a_range_of_a_storage(open_at, tmp_path):
    space = s.log_uniform("phases.second.lr.peak", 1e-2, 1.0)
    sweep = s.sweep("stage", space, s.forecast(at=40), search=s.autolrs(trials=4))
    queue = open_at(sweep, f"journal:{tmp_path}/books.log")
    queue.fill(False)
    drawn = []
    while taken := queue.take(set()):
        drawn.append(taken.candidate.values["phases.second.lr.peak"])
        queue.complete(taken, 1.0)
    assert drawn[0] == pytest.approx(0.1) and len(set(drawn)) == 4 and min(drawn) == pytest.approx(1e-2)
    assert not sweep.metric.so_far(tmp_path, None, 0)
