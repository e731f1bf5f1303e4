"""The whole library: laws that every schedule keeps at every budget, and the values of the papers."""

import json
import math
import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt.errors import ConfigError
from cpt.registry import available
from cpt.schedules.library.refined import refine, smoothed
from cpt.schedules.spec import LIBRARY, LRSpec, Span, build
from cpt.units import Duration

WHERE = "phases.new.lr"
PEAK, FLOOR = 3e-4, 3e-5
# A file added to the room is tested as soon as it is there; what it needs beyond a peak is said here.
OPTIONS = {"sgdr": {"t0": 7, "t_mult": 1.5}, "wsd_s": {"ends": (0.5, 1.0), "decay_fraction": 0.5}}
# Where a schedule ends, if not at the floor.
ENDS = {"constant": PEAK, "no_rewarm": PEAK / 100, "sgdr": None, "power": None, "refined": 0.0}


@pytest.fixture(scope="module")
def norms_run(tmp_path_factory):
    run = tmp_path_factory.mktemp("norms")
    rows = [{"step": i + 1, "grad_norm": 1 + math.exp(-i / 30), "phase": "a"} for i in range(300)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return run


def steps(n):
    return Duration(steps=n)


def lr(span, start=0.0, **fields):
    return build(LRSpec(**fields), span if isinstance(span, Span) else Span(span, 4096), start, WHERE)


def sensible(kind, n, norms_run, **fields):
    """A schedule of any kind with parts that fit into `n` steps."""
    short = kind in ("wsd_s", "repeated_cosine")
    given = {
        "peak": PEAK,
        "floor": None if kind in ("no_rewarm", "power") else FLOOR,
        "warmup": steps(max(n // 10, 1) if kind == "rsqrt" else 0 if short else min(n // 10, 2000)),
        "cooldown": steps(n // 2),
        "decay": steps(max(1, n // 5)),
        "value": PEAK if kind in ("constant", "no_rewarm") else None,
        "options": {"run": str(norms_run)} if kind == "refined" else OPTIONS.get(kind, {}),
    }
    return lr(Span(n, 4096, sequences=8), 1e-4, kind=kind, **(given | fields))


KINDS = sorted(available(LIBRARY))
LEAST = {"rsqrt": 2, "wsd_s": 4, "repeated_cosine": 2}  # steps that its parts need; 1 where not named
BUDGETS = [1, 2, 3, 7, 10, 101, 1000, 12_345, 10_000_000]


@pytest.mark.parametrize(("kind", "n"), [(kind, n) for kind in KINDS for n in BUDGETS if n >= LEAST.get(kind, 1)])
def test_every_budget_is_filled_exactly_and_ends_where_it_should(kind, n, norms_run):
    s = sensible(kind, n, norms_run)
    assert s.steps == n and s(n) == s.end
    if (end := ENDS.get(kind, FLOOR)) is not None:
        assert s.end == end
    some = np.unique(np.linspace(0, n, 500).astype(int))
    values = np.array([s(int(t)) for t in some])
    assert np.isfinite(values).all() and (values >= 0).all() and (values <= 0.02).all()


@settings(deadline=None, max_examples=60)
@given(kind=st.sampled_from([k for k in KINDS if k != "refined"]), n=st.integers(20, 3000), data=st.data())
def test_one_step_at_a_time_is_the_whole_trajectory_bit_for_bit(kind, n, data):
    s = sensible(kind, n, None)
    first = data.draw(st.integers(0, n))
    last = data.draw(st.integers(first, n + 3))
    assert s.values(first, last).tolist() == [s(t) for t in range(first, last)]


@settings(deadline=None, max_examples=60)
@given(kind=st.sampled_from([k for k in KINDS if k not in ("refined", "power")]), n=st.integers(20, 3000))
def test_tokens_and_steps_mean_the_same(kind, n):
    fields = {
        name: sensible_steps for name, sensible_steps in (("warmup", n // 10), ("decay", n // 5), ("cooldown", n // 2))
    }
    if kind in ("wsd_s", "repeated_cosine"):
        fields["warmup"] = 1
    in_steps = sensible(kind, n, None, **{k: steps(v) for k, v in fields.items()})
    in_tokens = sensible(kind, n, None, **{k: Duration(tokens=v * 4096) for k, v in fields.items()})
    assert in_steps.values(0, n + 1).tolist() == in_tokens.values(0, n + 1).tolist()


@settings(deadline=None, max_examples=80)
@given(kind=st.sampled_from([k for k in KINDS if k not in ("refined", "sgdr", "wsd_s", "repeated_cosine")]),
       n=st.integers(200, 5000))  # fmt: skip
def test_between_its_declared_jumps_it_is_continuous(kind, n):
    values = sensible(kind, n, None, warmup=steps(n // 10), decay=steps(n // 5)).values(0, n + 1)
    # No step moves further than the steepest piece can: 1-sqrt falls by sqrt(1/d) of its way in its first step.
    assert np.abs(np.diff(values)).max() <= max(values.max(), 1e-4) * max(1 / np.sqrt(n // 5), 10 / n) * 1.01


def test_ten_million_steps_are_one_call():
    """Each kind and shape takes .03 to .3 s on one core."""
    s = lr(10_000_000, kind="wsd", peak=PEAK, decay=Duration(fraction=0.2))
    values = s.values(0, 10_000_001)
    assert len(values) == 10_000_001 and values[-1] == s.end and values[5_000_000] == PEAK
    assert values[9_999_999] == s(9_999_999)


# ---- the papers ----
def millionths(schedule, *at):
    return [schedule(t) * 1e6 for t in at]


def test_golden_infinite_rsqrt():
    s = lr(1000, kind="infinite_rsqrt", peak=PEAK, floor=FLOOR, warmup=steps(10), cooldown=steps(600), decay=steps(140))
    at = (0, 5, 10, 160, 310, 460, 610, 860, 895, 930, 965, 1000)
    golden = [0, 150, 300, 210.035, 185.630, 173.018, 165, 165, 107.744, 70.356, 45.942, 30]
    assert millionths(s, *at) == pytest.approx(golden, abs=1e-3)


def test_golden_linear_and_rex():
    s = lr(100, kind="linear", peak=1.0, floor=0.0, warmup=steps(0))
    assert [s(0), s(25), s(99), s(100)] == pytest.approx([1, 0.75, 0.01, 0])
    s = lr(100, kind="rex", peak=1.0, floor=0.0, warmup=steps(0))
    assert [s(25), s(50), s(75)] == pytest.approx([0.8571, 0.6667, 0.4], abs=5e-5)


def test_golden_sgdr():
    s = lr(70, kind="sgdr", peak=1.0, floor=0.0, warmup=steps(0), options={"t0": 10, "t_mult": 2})
    assert [s(0), s(5), s(10), s(20), s(30), s(50)] == pytest.approx([1, 0.5, 1, 0.5, 1, 0.5])
    cut = lr(15, kind="sgdr", peak=1.0, floor=0.0, warmup=steps(0), options={"t0": 10})
    assert cut.end == pytest.approx(0.5)


def test_golden_power():
    """beta = 1024 sequences of 4096: capped at .02 until 2.6e10 tokens, then .01005 at 1e11 and .00311 at 1e12."""
    per_step = 1024 * 4096
    s = lr(
        Span(10**12 // per_step + 1, per_step, sequences=1024),
        kind="power",
        warmup=Duration(tokens=10**9),
        decay=steps(0),
    )
    at = lambda tokens: s(round(tokens / per_step))  # noqa: E731
    assert at(10**9) == at(2.5e10) == 0.02 > at(2.7e10)
    assert (at(1e11), at(1e12)) == (pytest.approx(0.01005, rel=2e-3), pytest.approx(0.00311, rel=2e-3))
    double = lr(Span(1000, 2 * per_step, sequences=2048), kind="power", warmup=steps(0), peak=1.0, decay=steps(0))
    single = lr(Span(2000, per_step, sequences=1024), kind="power", warmup=steps(0), peak=1.0, decay=steps(0))
    assert double(500) == pytest.approx(2 * single(1000))  # in proportion to the batch, at the same tokens


def test_golden_autoregressive():
    """TiC-LM, 1887 steps a month, 50 of warm-up: peaks 3.0e-4, 1.65e-4, 9.75e-5, 6.954e-5, 5.578e-5, 4.809e-5."""
    peaks = []
    for i in range(6):
        span = Span(1887, 1, index=i, first_step=1887 * i)
        s = lr(span, 3e-5 if i else 0.0, kind="autoregressive", peak=3e-4, floor=3e-5, warmup=steps(50))
        assert s(50) == s.highest and s.end == 3e-5
        peaks.append(s(50))
    assert peaks == pytest.approx([3.0e-4, 1.65e-4, 9.75e-5, 6.954e-5, 5.578e-5, 4.809e-5], rel=2e-4)


def test_golden_cyclic_and_rsqrt_of_tic_lm():
    s = lr(1887, kind="cyclic", peak=1e-4, start=3e-5)
    assert (s(50), s.end, s(25)) == (1e-4, 3e-5, 5e-5)
    s = lr(2000, kind="rsqrt", peak=1e-3, floor=3e-5, warmup=steps(100), decay=steps(400))
    assert s(100) == 1e-3 and s(400) == pytest.approx((1e-3 - 3e-5) / 2 + 3e-5) and s.end == 3e-5
    assert s(1800) == pytest.approx((s(1600) + 3e-5) / 2)


def test_golden_no_rewarm():
    s = lr(1000, 4.5e-5, kind="no_rewarm")
    assert (s(0), s.end) == (4.5e-5, 4.5e-5 / 100) and s(500) == pytest.approx((4.5e-5 + 4.5e-7) / 2)
    at = s.first_below(4.5e-5 / 5)
    assert s(at) <= 9e-6 < s(at - 1)


def test_wsd_s_jumps_back_and_knows_two_lengths():
    def falls(**options):
        s = lr(1000, kind="wsd_s", peak=1.0, floor=0.1, shape="inverse", warmup=steps(10),
               options={"ends": (0.2, 1.0), **options})  # fmt: skip
        return [i for i in range(1, 1000) if s(i) < s(i - 1) and s(i - 1) == 1.0], s

    starts, s = falls()
    assert starts == [181, 921] and (s(200), s.end) == (1.0, 0.1)
    assert falls(cumulative=True)[0] == [181, 901]


def test_repeated_cosine_warms_up_again():
    s = lr(101, 1e-5, kind="repeated_cosine", peak=1.0, floor=0.1, warmup=steps(5), options={"cycles": 2})
    assert [s(0), s(5), s(51), s(56), s.end] == [0.0, 1.0, 0.0, 1.0, 0.1]
    current = lr(100, 0.5, kind="repeated_cosine", peak=1.0, floor=0.1, warmup=steps(5), warmup_from="current")
    assert [current(0), current(5), current(50), current(55)] == [0.5, 1.0, 0.1, 1.0]


def test_lowered_linear():
    s = lr(
        100, kind="wsd", peak=1.0, floor=0.0, warmup=steps(0), decay=steps(40), shape="linear", options={"lowered": 0.7}
    )
    assert [s(59), s(60), s(70), s(80), s(90), s.end] == pytest.approx([1, 0.7, 0.525, 0.35, 0.175, 0])


# ---- the refined schedule ----
def test_constant_gradient_norms_give_linear_decay():
    assert (refine(np.full(10, 3.0), 2.0) * 9).tolist() == pytest.approx([9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0])
    # An end of tiny weights is never below 0.
    wild = refine(np.append(np.random.default_rng(0).uniform(0.1, 1, 5000), [1e8, 2e8, 1e8]), 2.0)
    assert (wild >= 0).all() and wild[-3] > 0


def test_falling_norms_give_a_warm_up_and_rising_ones_a_faster_end():
    t = np.arange(200)
    falling, rising = refine(1 + 9 * np.exp(-t / 10), 1.0), refine(1 + 9 * np.exp((t - 199) / 10), 1.0)
    assert falling.argmax() > 5 and falling[0] < 0.5
    assert rising[170] < 1 - 170 / 200


def test_the_median_filter_keeps_steps_and_drops_spikes():
    norms = np.ones(40)
    norms[20] = 100.0
    assert smoothed(norms, 0.2).tolist() == [1.0] * 40
    step = np.where(np.arange(40) < 20, 1.0, 2.0)
    assert smoothed(step, 0.2).tolist() == step.tolist()


def test_a_run_without_gradient_norms_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"options\.run: name the run"):
        lr(100, kind="refined", peak=1.0)
    with pytest.raises(ConfigError, match=r"options\.run: .*metrics\.jsonl cannot be read"):
        lr(100, kind="refined", peak=1.0, options={"run": str(tmp_path)})
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "grad_norm": 1.0}\n')
    with pytest.raises(ConfigError, match="holds 1 gradient norms, too few"):
        lr(100, kind="refined", peak=1.0, options={"run": str(tmp_path)})


# ---- where a re-warm goes ----
def test_peaks_follow_the_first_phase():
    later = Span(100, 1, index=1, base_peak=2e-3)
    assert lr(later, 1e-4, warmup=steps(10))(10) == 2e-3
    assert lr(later, 1e-4, warmup=steps(10), peak_factor=0.5)(10) == 1e-3
    assert lr(later, 1e-4, warmup=steps(10), peak=5e-3)(10) == 5e-3
    with pytest.raises(ConfigError, match=r"peak_factor: must be above 0, got -1"):
        lr(later, peak_factor=-1.0)


# ---- others' schedules ----
def test_an_optax_schedule_by_name():
    s = lr(100, kind="optax:cosine_decay_schedule", options={"init_value": 3e-4, "decay_steps": 100, "alpha": 0.1})
    assert [s(0), s(50), s.end] == pytest.approx([3e-4, 1.65e-4, 3e-5], rel=1e-5)
    with pytest.raises(ConfigError, match=r"'optax:cosine_decay_schedule' with options .* is no schedule: TypeError"):
        lr(100, kind="optax:cosine_decay_schedule", options={"init": 3e-4})


def test_a_function_of_the_step_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "my_lr", types.SimpleNamespace(half=lambda step: 0.5 / (1 + step)))
    assert lr(100, kind="my_lr:half")(4) == 0.1
    assert lr(100, kind="my_lr:half").describe() == "half 100"


def test_a_schedule_that_falls_below_zero_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "my_lr", types.SimpleNamespace(wave=lambda step: math.cos(step / 10)))
    with pytest.raises(ConfigError, match=r"lr\.kind: 'my_lr:wave' gives -0\.\d+ at step 1\d; it must be at least 0"):
        lr(63, kind="my_lr:wave")


def test_the_next_phase_peaks_where_a_schedule_of_optax_did():
    options = {"init_value": 0.0, "peak_value": 1e-3, "warmup_steps": 77, "decay_steps": 1000, "end_value": 1e-4}
    first = lr(1000, kind="optax:warmup_cosine_decay_schedule", options=options)
    assert first.highest == pytest.approx(1e-3, rel=1e-6)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"kind": "sgdr"}, "options.t0: the steps of the first cycle"),
        ({"kind": "sgdr", "options": {"t0": 5, "tmult": 2}}, "options.tmult: kind 'sgdr' has no such option; did you"),
        ({"kind": "sgdr", "options": {"t0": "5"}}, "options.t0: expected a number, got '5'"),
        ({"kind": "sgdr", "options": {"t0": 5, "t_mult": 0.5}}, "options.t_mult: must be at least 1"),
        ({"kind": "repeated_cosine", "options": {"cycles": 0}}, "options.cycles: must be a whole number"),
        ({"kind": "sgdr", "options": {"t0": math.nan}}, "options.t0: expected a number, got nan"),
        ({"kind": "sgdr", "options": {"t0": True}}, "options.t0: expected a number, got True"),
        ({"kind": "wsd_s", "options": {"ends": 0.5}}, "options.ends: expected a list of numbers, got 0.5"),
        ({"kind": "wsd_s", "options": {"ends": ("a", 1)}}, "options.ends: expected a list of numbers, got ('a', 1)"),
        ({"kind": "wsd_s", "options": {"cumulative": "no"}}, "options.cumulative: expected true or false, got 'no'"),
        ({"kind": "refined", "options": {"run": 5}}, "options.run: expected text, got 5"),
        ({"kind": "refined", "options": {"smoothing": 2}}, "options.smoothing: must lie in [0, 1], got 2"),
        ({"kind": "refined", "options": {"exponent": -1}}, "options.exponent: must be at least 0, got -1"),
        ({"kind": "repeated_cosine", "options": {"cycles": 1001}}, "options.cycles: 1001 cycles are too many"),
        ({"kind": "repeated_cosine", "options": {"cycles": 60}, "warmup": steps(20)}, "are 200 too many"),
        ({"kind": "wsd_s", "options": {"ends": (0.5,)}}, "options.ends: shares of the phase that rise to 1.0"),
        ({"kind": "wsd_s", "options": {"ends": (0.01, 1.0)}, "warmup": steps(10)}, "period 1 of 10 steps has no room"),
        ({"kind": "infinite_rsqrt", "options": {"alpha": 0}}, "options.alpha: must be above 0"),
        ({"kind": "rsqrt", "warmup": steps(0)}, "warmup: rsqrt falls at the pace of its warm-up"),
        ({"kind": "power", "options": {"b": 0.5}}, "options.b: must be below 0"),
        ({"kind": "wsd", "options": {"lowered": 1.5}}, "options.lowered: must lie in (0, 1]"),
        ({"kind": "no_rewarm"}, "value: there is no earlier learning rate to start from"),
        ({"kind": "no_rewarm", "value": 1e-4, "floor": 1e-3}, "floor: must lie between 0 and 0.0001"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(fields, line):
    with pytest.raises(ConfigError) as e:
        lr(1000, **{"peak": 1e-3, **fields})
    assert f"{WHERE}" in str(e.value) and line in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    "kind", ["linear", "rex", "repeated_cosine", "wsd_s", "refined", "autoregressive", "no_rewarm"]
)
def test_what_needs_an_end_refuses_an_open_ended_phase(kind):
    with pytest.raises(ConfigError, match=r"lr\.kind: .*open-ended"):
        lr(Span(1000, 1, open_ended=True), 1e-4, kind=kind, peak=1e-3)
