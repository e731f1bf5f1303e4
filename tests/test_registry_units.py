"""Methods are found by name, durations resolve to steps, numbers read as people write them."""

import sys
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cpt.errors import ConfigError, DataError, RunError, UserError, nearest
from cpt.registry import available, find
from cpt.units import Duration, compact, human


# ---- registry ----
def test_a_method_is_the_function_named_like_its_file():
    from cpt.data.mixers.linear import linear

    assert find("cpt.data.mixers", "linear", "x") is linear


def test_every_room_lists_its_methods_with_a_line_on_each():
    for room in (
        "cpt.schedules.library",
        "cpt.data.mixers",
        "cpt.data.corpora",
        "cpt.data.tokenizers",
        "cpt.evaluators.probes",
        "cpt.reports.comparisons",
        "cpt.training.loggers",
        "cpt.optimizers",
    ):
        offered = available(room)
        assert list(offered) == sorted(offered) and offered
        for name, line in offered.items():
            assert len(line) > 20 and not name.startswith("_")
            assert callable(find(room, name, "x"))


def test_a_helper_of_a_room_is_not_a_method():
    assert "policy" not in available("cpt.optimizers")
    with pytest.raises(ConfigError, match=r"optimizer\.kind: no 'policy' in cpt\.optimizers .*\(there are: adamw;"):
        find("cpt.optimizers", "policy", "optimizer.kind")


def test_an_unknown_method_names_the_nearest_and_the_others():
    with pytest.raises(
        ConfigError, match=r"a\.kind: no 'liner' in .*; did you mean 'linear'\?  \(there are: blend_at_lr.* linear"
    ):
        find("cpt.data.mixers", "liner", "a.kind")


def test_a_method_of_a_package_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "ourmixers.py").write_text("def halves(phase, sources, step):\n    return {'a': 0.5, 'b': 0.5}\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert find("cpt.data.mixers", "ourmixers:halves", "x")(None, None, 0) == {"a": 0.5, "b": 0.5}
    del sys.modules["ourmixers"]


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("nowhere:f", r"x: cannot import 'nowhere:f' \(No module named 'nowhere'\)"),
        ("math:nothing", r"x: cannot import 'math:nothing' \(module 'math' has no attribute 'nothing'\)"),
        (":f", r"x: ':f' is not of the form package\.module:name"),
        ("math:", r"x: 'math:' is not of the form"),
        ("..math:f", r"x: '\.\.math:f' is not of the form"),
        ("_own", r"x: no '_own' in cpt\.data\.mixers"),
    ],
)
def test_what_cannot_be_imported(kind, says):
    with pytest.raises(ConfigError, match=says):
        find("cpt.data.mixers", kind, "x")


# ---- errors ----
def test_errors_say_which_kind_they_are():
    assert [str(e("x")) for e in (ConfigError, DataError, RunError)] == [
        "config error: x",
        "data error: x",
        "run error: x",
    ]
    assert issubclass(DataError, UserError)
    assert nearest("shrae", ["share", "range"]) == "; did you mean 'share'?"
    assert nearest("zzz", ["share", "range"]) == ""


# ---- durations ----
@settings(deadline=None)
@given(steps=st.integers(0, 10**9), phase=st.integers(1, 10**9), per_step=st.integers(1, 10**7))
def test_steps_are_steps(steps, phase, per_step):
    assert Duration(steps=steps).resolve(phase, per_step, "x") == steps
    assert Duration(tokens=steps * per_step).resolve(phase, per_step, "x") == steps


@settings(deadline=None)
@given(tokens=st.integers(1, 10**12), per_step=st.integers(1, 10**7))
def test_tokens_are_rounded_to_the_nearest_step_but_never_to_none(tokens, per_step):
    steps = Duration(tokens=tokens).resolve(1, per_step, "x")
    exact = Fraction(tokens, per_step)
    assume(abs(exact - int(exact) - Fraction(1, 2)) > Fraction(1, 10**6))
    assert steps >= 1 and (abs(steps - exact) <= Fraction(1, 2) or (steps == 1 and exact < Fraction(1, 2)))


@settings(deadline=None)
@given(fraction=st.floats(0, 1), steps=st.integers(1, 10**6))
def test_a_fraction_is_of_the_phase(fraction, steps):
    got = Duration(fraction=fraction).resolve(steps, 1, "x")
    assert got <= steps and (abs(got - fraction * steps) <= 0.5 + 1e-9 or (got == 1 and fraction * steps < 0.5))
    assert (got == 0) == (fraction == 0)


def test_one_is_not_a_hundred_percent():
    assert Duration(fraction=1.0).resolve(50, 1, "x") == 50
    assert Duration(steps=1).resolve(50, 1, "x") == 1
    assert Duration(fraction=0.01).resolve(132_685, 2_260_992, "x") == 1327


@pytest.mark.parametrize(
    ("duration", "says"),
    [
        (Duration(), r"a\.warmup: give exactly one of tokens, steps, fraction \(got none\)"),
        (Duration(steps=5, fraction=0.1), r"a\.warmup: give exactly one .*'steps': 5, 'fraction': 0\.1"),
        (Duration(steps=-1), r"a\.warmup\.steps: -1 is out of range \(>= 0\)"),
        (Duration(tokens=-1), r"a\.warmup\.tokens: -1 is out of range"),
        (Duration(fraction=1.1), r"a\.warmup\.fraction: 1\.1 is out of range \(0 to 1\)"),
        (Duration(fraction=-0.1), r"a\.warmup\.fraction: -0\.1 is out of range"),
        (Duration(fraction=float("nan")), r"a\.warmup\.fraction: nan is out of range"),
    ],
)
def test_durations_that_mean_nothing(duration, says):
    with pytest.raises(ConfigError, match=says):
        duration.resolve(10, 1, "a.warmup")


def test_a_fraction_of_an_open_end_means_nothing_either():
    with pytest.raises(ConfigError, match=r"a\.fraction: the phase is open-ended.*use steps or tokens"):
        Duration(fraction=0.1).resolve(10, 1, "a", open_ended=True)
    assert Duration(steps=3).resolve(10, 1, "a", open_ended=True) == 3


# ---- numbers for people ----
@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0"), (7, "7"), (999, "999"), (1000, "1k"), (999_500, "1M"), (614_400, "614k"), (1_234_567, "1.23M"),
     (300e9, "300B"), (2.5e21, "2.5Z"), (1.23e18, "1.23E"), (-1500, "-1.5k")],
)  # fmt: skip
def test_human(n, text):
    assert human(n) == text


@settings(deadline=None)
@given(st.floats(1, 1e23))
def test_human_keeps_three_digits(n):
    powers = {"": 0, "k": 3, "M": 6, "B": 9, "T": 12, "P": 15, "E": 18, "Z": 21}
    text = human(n)
    suffix = text[-1] if text[-1] in powers else ""
    assert float(text.removesuffix(suffix)) * 10 ** powers[suffix] == pytest.approx(n, rel=0.0051)


@pytest.mark.parametrize(
    ("x", "text"),
    [(0, "0"), (3e-4, "3e-4"), (1.5e-3, "1.5e-3"), (0.01, "0.01"), (0.5, "0.5"), (1.0, "1"), (2e-05, "2e-5")],
)
def test_compact(x, text):
    assert compact(x) == text


@settings(deadline=None)
@given(st.floats(1e-12, 0.009))
def test_compact_reads_back(x):
    assert float(compact(x)) == pytest.approx(x, rel=1e-3)
