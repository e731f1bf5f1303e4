"""Loss laws: their sums in closed form, their derivatives, what they find again, and the public curves they predict."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_run import write_run

from cpt.errors import DataError
from cpt.schedules.laws.annealing import Annealing
from cpt.schedules.laws.command import distinct, figure, fit_json, read_fit
from cpt.schedules.laws.cpt_law import ContinualPretraining
from cpt.schedules.laws.curves import Curve, _jumps, read_csv, read_workdir
from cpt.schedules.laws.features import annealing_area, area, drops
from cpt.schedules.laws.fitting import errors, fit
from cpt.schedules.laws.law import Options
from cpt.schedules.laws.multi_power import MultiPower

ROOT = Path(__file__).resolve().parents[2]
PUBLIC = ROOT.parent / "shared" / "data" / "loss_curves"
needs_public = pytest.mark.skipif(not PUBLIC.is_dir(), reason="the public loss curves are not here")
LAWS = [Annealing(), MultiPower(), ContinualPretraining()]


# ---- sums ----
def test_a_constant_rate_has_no_annealing_area():
    lr = np.full(500, 3e-4)
    assert annealing_area(drops(lr, 0), 0.999).tolist() == [0.0] * 500
    assert area(lr)[-1] == pytest.approx(0.15)


@given(st.integers(1, 300), st.floats(0.5, 0.9999), st.floats(1e-5, 1e-3))
def test_one_drop_in_closed_form(s, decay, size):
    """`S2(t) = D (1 - lambda**(t - s + 1)) / (1 - lambda)` for a drop of D at update s."""
    drop_T = np.zeros(600)
    drop_T[s] = size
    t = np.arange(s, 600)
    want = size * (1 - decay ** (t - s + 1.0)) / (1 - decay)
    assert annealing_area(drop_T, decay)[s:] == pytest.approx(want, rel=1e-9)


def test_the_papers_drop():
    """3e-4 to 9e-5: 0.21 in the end, 0.2099 after 8,000 steps."""
    lr = np.where(np.arange(20_000) < 8000, 3e-4, 9e-5)
    s2 = annealing_area(drops(lr, 0), 0.999)
    assert s2[15_999] == pytest.approx(0.2099, abs=1e-4) and s2[-1] == pytest.approx(0.21, rel=1e-4)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(0, 1e-3), min_size=2, max_size=40), st.floats(0.5, 0.999))
def test_the_recursion_is_the_double_sum(lr, decay):
    drop = drops(np.array(lr), 0)
    double = [sum(drop[k] * decay ** (i - k) for i in range(t + 1) for k in range(i + 1)) for t in range(len(lr))]
    assert annealing_area(drop, decay) == pytest.approx(double, abs=1e-15)


def test_the_warm_up_is_left_out_only_where_told():
    lr = np.concatenate([np.linspace(0.1, 1, 10), np.linspace(0.9, 0.1, 9)])
    assert (drops(lr, 9)[:10] == 0).all() and (drops(lr, 9)[10:] > 0).all()
    assert (drops(lr, 0)[1:10] < 0).all()


# ---- laws ----
def schedules(n=3000, warmup=100, peak=1e-3):
    ramp = np.linspace(peak / warmup, peak, warmup)
    u = np.linspace(0, 1, n - warmup)
    return {
        "constant": np.concatenate([ramp, np.full(n - warmup, peak)]),
        "cosine": np.concatenate([ramp, peak * (0.1 + 0.45 * (1 + np.cos(np.pi * u)))]),
        "step": np.concatenate([ramp, np.where(u < 0.4, peak, 0.3 * peak)]),
        "wsd": np.concatenate([ramp, peak * np.where(u < 0.8, 1.0, 1 - 0.9 * (u - 0.8) / 0.2)]),
    }


def simulated(law, parameters, lr, name, switch=None, noise=0.0, seed=0, warmup=100):
    points = np.arange(warmup + 20, len(lr), 15)
    bare = Curve(name, lr, points, np.full(len(points), np.nan), warmup, switch or len(lr))
    loss, _ = law.loss(np.array(parameters), law.prepare(bare, Options()))
    rng = np.random.default_rng(seed)
    return Curve(name, lr, points, loss + rng.normal(0, noise, len(points)), warmup, switch or len(lr))


TRUE = {
    "Annealing": (2.8, 0.6, 0.45, 0.5),
    "MultiPower": (2.7, 0.6, 0.45, 100.0, 2.1, 0.6, 0.65),
    "ContinualPretraining": (3.057, 0.490, 0.497, 0.299, 0.298, 0.366, 28.0, 0.189),  # 106M, Knowledge-Pile, on Dpt
}


@pytest.mark.parametrize("law", LAWS, ids=lambda x: type(x).__name__)
def test_derivatives(law):
    lr = schedules()["wsd"]
    curve = simulated(law, TRUE[type(law).__name__], lr, "x", switch=1500)
    prepared, at = law.prepare(curve, Options()), np.array(TRUE[type(law).__name__])
    _, derivatives = law.loss(at, prepared)
    for i in range(len(at)):
        h = 1e-6 * max(abs(at[i]), 1e-3)
        up, down = (law.loss(at + sign * h * np.eye(len(at))[i], prepared)[0] for sign in (1, -1))
        assert derivatives[:, i] == pytest.approx((up - down) / (2 * h), rel=2e-4, abs=1e-9)


def test_the_annealing_law_is_found_again_with_intervals_that_hold_it():
    law, noise = Annealing(), 0.004
    curves = [
        simulated(law, TRUE["Annealing"], lr, n, noise=noise, seed=i) for i, (n, lr) in enumerate(schedules().items())
    ]
    found = fit(law, curves[:3])
    away = np.abs(found.parameters_U - TRUE["Annealing"])
    half = np.ptp(found.intervals_Ux2, axis=1) / 2
    assert (away < 2 * half + 1e-3).all() and (half < [0.2, 0.2, 0.2, 0.05]).all()
    assert errors(found, curves[3])["mae"] < 1.2 * noise
    exact, half = found.predict(simulated(law, TRUE["Annealing"], schedules()["wsd"], "wsd"))
    truth = simulated(law, TRUE["Annealing"], schedules()["wsd"], "wsd").loss_P
    assert np.mean(np.abs(exact - truth) < half) > 0.9


def test_the_multi_power_law_predicts_what_it_made():
    law = MultiPower()
    curves = {n: simulated(law, TRUE["MultiPower"], lr, n) for n, lr in schedules().items()}
    found = fit(law, [curves[n] for n in ("constant", "cosine", "step")])
    assert errors(found, curves["wsd"])["mae"] < 0.002


def test_drops_in_stretches_are_the_drops_one_by_one(monkeypatch):
    law, lr = MultiPower(), schedules()["cosine"]
    binned = simulated(law, TRUE["MultiPower"], lr, "x").loss_P
    monkeypatch.setattr("cpt.schedules.laws.multi_power.BINS", 10**6)
    assert binned == pytest.approx(simulated(law, TRUE["MultiPower"], lr, "x").loss_P, abs=2e-4)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_shift_of_continual_pre_training_is_found_again(sign):
    """On the old data it raises the loss, on the new one it lowers it (2505.07796, values of table 1 and 10.1)."""
    law, truth = ContinualPretraining(), list(TRUE["ContinualPretraining"])
    truth[5] *= sign
    half = schedules(2000)
    two = lambda a, b: np.concatenate([half[a], half[b][100:]])  # noqa: E731
    pairs = [("cosine", "cosine"), ("constant", "wsd"), ("step", "constant"), ("wsd", "cosine")]
    curves = [
        simulated(law, truth, two(a, b), f"{a}-{b}", switch=2000, noise=0.001, seed=i) for i, (a, b) in enumerate(pairs)
    ]
    found = fit(law, curves[:3])
    assert errors(found, curves[3])["mae"] < 0.01
    shift = lambda p, s1: p[5] * (1 - (1 + p[6] * s1) ** -p[7])  # noqa: E731
    assert shift(found.parameters_U, 1.0) == pytest.approx(shift(truth, 1.0), abs=0.05)


def test_published_shift_values():
    """+.082, +.172, +.208, +.240 on Dpt at S1cpt = .1, 1, 3, 10."""
    _, _, _, _, _, b, e, beta = TRUE["ContinualPretraining"]
    shifts = [b * (1 - (1 + e * s) ** -beta) for s in (0.1, 1, 3, 10)]
    assert shifts == pytest.approx([0.082, 0.172, 0.208, 0.240], abs=1e-3)


# ---- what cannot be told ----
def test_a_constant_rate_cannot_tell_the_gain_of_annealing():
    constant = simulated(Annealing(), TRUE["Annealing"], schedules()["constant"], "flat")
    for law in (Annealing(), MultiPower()):
        with pytest.raises(DataError, match=r"flat: the learning rate is constant in all of them, so .*add a curve"):
            fit(law, [constant])


def test_too_few_points_and_no_switch():
    lr = schedules()["cosine"]
    short = Curve("short", lr, np.arange(200, 210), np.full(10, 3.0), 100, len(lr))
    with pytest.raises(DataError, match="short: 10 points, but 4 parameters need at least 16"):
        fit(Annealing(), [short])
    with pytest.raises(DataError, match="none has three points after a switch"):
        fit(ContinualPretraining(), [simulated(Annealing(), TRUE["Annealing"], lr, "one phase")])
    broken = Curve("broken", lr, np.arange(200, 240), np.full(40, np.nan), 100, len(lr))
    with pytest.raises(DataError, match="broken: holds a loss that is not a finite number"):
        fit(Annealing(), [broken])


# ---- reading ----
def test_a_thinned_table_gets_its_rate_back(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("step,lr,loss\n10,1.0,5\n20,1.0,4\n30,0.5,3.5\n40,0.48,3.4\n")
    curve = read_csv(path)
    assert curve.lr_T[:10] == pytest.approx(np.arange(1, 11) / 10)  # the warm-up nobody wrote down
    assert (curve.lr_T[9:29] == 1.0).all() and curve.lr_T[29] == 0.5  # a step lies at the later row
    assert curve.lr_T[34] == pytest.approx(0.49) and len(curve.lr_T) == 40
    assert (curve.warmup, curve.switch) == (9, 40)


def test_curves_of_one_name_keep_apart():
    """`a/run` and `b/run` are two rows of the table, not one."""
    curve = Curve("run", np.ones(3), np.array([3]), np.array([2.0]), 0, 3)
    other = Curve("solo", np.ones(3), np.array([3]), np.array([2.0]), 0, 3)
    names = [c.name for c in distinct([curve, curve, other], ["a/run", "b/run", "c/solo"])]
    assert names == ["a/run", "b/run", "solo"]


def test_two_plans_are_told_apart_more_surely_than_each_is_known():
    """What is wrong with a fit is wrong for both; a plan differs from itself by nothing but the misfit."""
    law = Annealing()
    curves = [
        simulated(law, TRUE["Annealing"], lr, n, noise=0.01, seed=i) for i, (n, lr) in enumerate(schedules().items())
    ]
    found = fit(law, curves[:3])
    (_, a), (_, b) = (found.predict(curves[i]) for i in (1, 3))
    gap, half = found.difference(curves[1], curves[3])
    assert half < np.hypot(a[-1], b[-1])
    assert gap == pytest.approx(found.predict(curves[1])[0][-1] - found.predict(curves[3])[0][-1])
    same, half = found.difference(curves[1], curves[1])
    assert same == 0.0 and half == pytest.approx(1.96 * np.sqrt(2) * found.misfit, rel=1e-3)


def test_no_interval_of_a_positive_parameter_reaches_below_zero():
    law = MultiPower()
    found = fit(law, [simulated(law, TRUE["MultiPower"], schedules()["cosine"], "cosine", noise=0.02)])
    assert (found.intervals_Ux2[:, 0] > 0).all() and (found.intervals_Ux2[:, 0] < found.parameters_U).all()


def test_a_steep_decay_is_no_jump():
    """Exponential by a fifth per row falls by more than a tenth at each of them, and yet is a line between rows."""
    step = np.arange(10, 210, 10)
    assert len(_jumps(step, np.concatenate([np.ones(5), 0.8 ** np.arange(15)]))) == 0
    assert _jumps(step, np.where(step < 100, 1.0, 0.3)).tolist() == [8]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "needs the columns step, lr, loss"),
        ("step,loss\n1,2\n", "needs the columns step, lr, loss \\(has step, loss\\)"),
        ("step,lr,loss\n1,x,2\n", "holds a cell that is no number"),
        ("step,lr,loss\n2,1,2\n1,1,2\n", "steps must increase"),
    ],
)
def test_a_table_that_is_none(tmp_path, text, says):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=says):
        read_csv(tmp_path / "a.csv")
    with pytest.raises(DataError, match="cannot be read"):
        read_csv(tmp_path / "b.csv")


def test_a_run_is_a_curve(tmp_path):
    run = write_run(tmp_path / "run", steps=100)
    curve = read_workdir(run, "pile")
    assert curve.switch == 100 and len(curve.lr_T) == 200 and curve.steps_P[-1] == 200
    assert (np.diff(read_workdir(run).steps_P) > 0).all()
    with pytest.raises(DataError, match=r"no evaluation set 'code'  \(sets: pile, slimpajama\)"):
        read_workdir(run, "code")


# ---- the command ----
def test_a_fit_is_read_back_and_drawn(tmp_path):
    curves = [simulated(Annealing(), TRUE["Annealing"], lr, n) for n, lr in schedules().items()]
    found = fit(Annealing(), curves[:3])
    (tmp_path / "fit.json").write_text(json.dumps(fit_json("annealing", found, curves[:3], curves[3:])))
    again = read_fit(tmp_path / "fit.json")
    assert again.predict(curves[3])[0] == pytest.approx(found.predict(curves[3])[0])
    assert len(figure(found, curves[:3], curves[3:]).data) == 8
    (tmp_path / "fit.json").write_text("{}")
    with pytest.raises(DataError, match=r"fit\.json: not a fit"):
        read_fit(tmp_path / "fit.json")


def command(*arguments, cwd):
    return subprocess.run([sys.executable, "-m", "cpt.schedules", *arguments], capture_output=True, text=True, cwd=cwd)


def test_the_commands(tmp_path):
    for name, lr in schedules().items():
        curve = simulated(Annealing(), TRUE["Annealing"], lr, name)
        rows = [
            f"{s},{float(lr[s - 1])!r},{float(loss)!r}" for s, loss in zip(curve.steps_P, curve.loss_P, strict=True)
        ]
        (tmp_path / f"{name}.csv").write_text("step,lr,loss\n" + "\n".join(rows) + "\n")
    made = command("fit", "--csv=constant.csv,cosine.csv,step.csv", "--test=wsd.csv", "--out=fit.json", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    report = json.loads((tmp_path / "fit.json").read_text())
    assert {"mae", "r2", "points"} == set(report["tested"]["wsd"]) and report["tested"]["wsd"]["r2"] > 0.99
    low, high = report["parameters"]["L0"]["ci95"]
    assert low < report["parameters"]["L0"]["value"] < high and (tmp_path / "fit.html").exists()
    recipe = ROOT / "configs" / "rewarm_same_data.py"
    said = command("predict", "--fit=fit.json", f"--config={recipe}", cwd=tmp_path)
    assert said.returncode == 0 and " ± " in said.stdout
    ranked = command("rank", "--fit=fit.json", f"--config={recipe},{ROOT / 'configs' / 'pile_to_slimpajama.py'}",
                     "--config.seed=1", cwd=tmp_path)  # fmt: skip
    assert ranked.returncode == 0 and "the plans differ in tokens" in ranked.stderr
    for arguments, says in (
        (["fitt"], "fitt: no such command; did you mean 'fit'?"),
        (["fit"], "--workdir or --csv: give the curves"),
        (["fit", "--csv=constant.csv"], "the learning rate is constant"),
        (["predict", f"--config={recipe}"], "--fit: required"),
        (["rank", "--fit=fit.json", f"--config={recipe}", "--weights=1,2"], "--weights: one weight"),
    ):
        wrong = command(*arguments, cwd=tmp_path)
        assert wrong.returncode == 2 and says in wrong.stderr and len(wrong.stderr.strip().splitlines()) == 1


# ---- the public curves ----
GOLDEN = {"25": (3.158, 0.514, 0.513, 0.402), "100": (2.789, 0.593, 0.455, 0.481)}


@needs_public
@pytest.mark.parametrize("size", list(GOLDEN))
def test_three_public_curves_predict_six_others(size):
    curves = {p.stem.removeprefix(f"{size}_"): read_csv(p) for p in PUBLIC.glob(f"{size}_*.csv")}
    seen = ("cosine_24000", "constant_24000", "wsdcon_9")
    mean = {}
    for law in (Annealing(), MultiPower()):
        found = fit(law, [curves[n] for n in seen])
        results = [errors(found, c) for n, c in curves.items() if n not in seen]
        assert len(results) == 6
        mean[type(law).__name__] = np.mean([r["mae"] for r in results])
        assert mean[type(law).__name__] <= 0.0055 and np.mean([r["r2"] for r in results]) >= 0.993
        if isinstance(law, Annealing):
            assert min(r["r2"] for r in results) >= 0.993
            assert found.parameters_U == pytest.approx(GOLDEN[size], rel=0.01)
    assert mean["MultiPower"] <= mean["Annealing"]
