"""The four recipes: golden values of the papers, defaults, switches between phases, and errors that name the field."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt.errors import ConfigError
from cpt.registry import available
from cpt.schedules.segments import Hold
from cpt.schedules.spec import LIBRARY, LRSpec, Span, build
from cpt.units import Duration

WHERE = "phases.slimpajama.lr"
THOUSAND = Span(1000, 4096)


def lr(span=THOUSAND, start=0.0, **fields):
    return build(LRSpec(**fields), span, start, WHERE)


def steps(n):
    return Duration(steps=n)


def millionths(schedule, *at):
    return [schedule(t) * 1e6 for t in at]


def test_golden_infinite_cosine():
    s = lr(kind="infinite_cosine", peak=3e-4, warmup=steps(10), cooldown=steps(600), decay=steps(140))
    assert millionths(s, 0, 5, 10, 160, 310, 460) == pytest.approx([0, 150, 300, 280.230, 232.5, 184.770], abs=1e-3)
    assert millionths(s, 610, 860, 895, 930) == pytest.approx([165, 165, 107.744, 70.356], abs=1e-3)
    assert millionths(s, 965, 1000) == pytest.approx([45.942, 30], abs=1e-3)


@pytest.mark.parametrize("start", [0.0, 3e-5])
def test_golden_cosine_restarts_in_every_phase(start):
    s = lr(kind="cosine", peak=3e-4, floor=3e-5, warmup=steps(10), start=start)
    expected = [0, 150, 300, 260.611, 165, 69.692, 30]
    assert millionths(s, 0, 5, 10, 257, 505, 752, 1000) == pytest.approx(expected, abs=1e-3)


def test_cosine_defaults_are_the_papers():
    s = lr(peak=3e-4)
    assert s(10) == 3e-4 and s(9) < 3e-4 > s(11) and s.end == pytest.approx(3e-5)


def test_cosine_from_the_current_learning_rate():
    s = lr(peak=3e-4, warmup=steps(10), warmup_from="current", start=1e-4)
    assert [s(0), s(5), s(10)] == pytest.approx([1e-4, 2e-4, 3e-4])


def test_cosine_without_warmup_begins_at_the_peak():
    assert lr(peak=3e-4, warmup=steps(0), start=3e-5)(0) == 3e-4


def test_golden_wsd():
    s = lr(kind="wsd", peak=1.0, floor=0.0, warmup=steps(10), decay=steps(100))
    assert [s(5), s(10), s(500), s(900)] == [0.5, 1, 1, 1]
    assert [s(925), s(950), s(975), s(1000)] == pytest.approx([0.5, 0.2929, 0.1340, 0], abs=5e-5)
    # Hagele et al. 2024: multiplier 1 - sqrt((n - (N - N_d)) / N_d)
    assert s(937) == pytest.approx(1 - (37 / 100) ** 0.5)


def test_wsd_defaults_and_shapes():
    s = lr(kind="wsd", peak=1e-3)
    assert s(900) == 1e-3 > s(901) and s.end == pytest.approx(1e-4)
    assert lr(kind="wsd", peak=1e-3, shape="exp")(950) == pytest.approx((1e-3 * 1e-4) ** 0.5)
    assert lr(kind="wsd", peak=1e-3, shape="linear")(950) == pytest.approx(5.5e-4)


def test_infinite_defaults():
    s = lr(kind="infinite_cosine", peak=3e-4)
    assert s(609) > s(610) == s(850) == pytest.approx(1.65e-4) and s(851) < s(850)
    assert lr(kind="infinite_cosine", peak=3e-4, constant=1e-4)(700) == 1e-4


def test_infinite_without_cooldown_still_holds_the_constant():
    s = lr(kind="infinite_cosine", peak=3e-4, cooldown=steps(0))
    assert s(10) == s(500) == pytest.approx(1.65e-4)


def test_switching_data_inside_the_constant_phase():
    first = lr(kind="infinite_cosine", peak=3e-4, decay=steps(0))
    second = lr(kind="constant", start=first.end)
    assert set(second.values(0, 1001)) == {first.end} == {first(999)}
    assert first.end == pytest.approx(1.65e-4)


def test_constant_keeps_or_sets():
    assert lr(kind="constant", start=3e-5, peak=3e-4)(500) == 3e-5
    assert lr(kind="constant", start=3e-5, value=1e-4).values(0, 2).tolist() == [1e-4, 1e-4]


@given(
    st.sampled_from(["constant", "cosine", "wsd", "infinite_cosine"]),
    st.floats(1e-5, 1e-2),
    st.floats(0.01, 1.0),
    st.integers(8, 3000),
    st.sampled_from(["zero", "current"]),
    st.floats(1e-6, 1e-2),
)
def test_every_recipe_fills_the_phase_and_stays_within_its_levels(kind, peak, ratio, n, origin, start):
    floor = peak * ratio
    s = lr(Span(n, 1), start, kind=kind, peak=peak, floor=floor, value=peak, warmup_from=origin)
    values = s.values(0, n + 1)
    assert s.steps == n and values[-1] == s.end == (peak if kind == "constant" else floor)
    assert values.min() >= 0 and values.max() <= max(peak, start) * (1 + 1e-12)


def test_durations_in_tokens():
    s = lr(peak=1.0, warmup=Duration(tokens=20 * 4096))
    assert s(20) == 1.0 > s(21)


def test_the_room_holds_exactly_what_it_says():
    rooms = available(LIBRARY)
    assert {"constant", "cosine", "infinite_cosine", "wsd"} <= set(rooms) and all(rooms.values())


def too_short(spec, span, start, where):
    return [Hold(span.steps - 1, value=spec.options["level"], jump=True)]


def full(spec, span, start, where):
    return [Hold(span.steps, value=spec.options["level"], jump=True)]


def test_a_method_of_ones_own(monkeypatch):
    import sys
    import types

    monkeypatch.setitem(sys.modules, "mypkg_lr", types.SimpleNamespace(full=full, too_short=too_short))
    assert lr(kind="mypkg_lr:full", options={"level": 0.25})(7) == 0.25
    with pytest.raises(ConfigError, match="999 steps for a phase of 1000"):
        lr(kind="mypkg_lr:too_short", options={"level": 0.25})


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({}, f"{WHERE}.peak: kind 'cosine' needs"),
        ({"peak": 0.0}, f"{WHERE}.peak: must be above 0"),
        ({"peak": float("nan")}, f"{WHERE}.peak: must be above 0"),
        ({"peak": 1e-4, "floor": 1e-3}, f"{WHERE}.floor: must lie between"),
        ({"peak": 1e-4, "floor": -1e-5}, f"{WHERE}.floor: must lie between"),
        ({"kind": "constant"}, f"{WHERE}.value: there is no earlier learning rate"),
        ({"kind": "constant", "value": 0.0}, f"{WHERE}.value: must be above 0"),
        ({"kind": "infinite_cosine", "peak": 1e-3, "floor": 0.0}, f"{WHERE}.floor: must be above 0"),
        ({"kind": "infinite_cosine", "peak": 1e-3, "constant": 2e-3}, f"{WHERE}.constant: must lie between"),
        ({"kind": "wsd", "peak": 1e-3, "shape": "exp", "floor": 0.0}, f"{WHERE}.floor: must be above 0"),
        ({"kind": "wsd", "peak": 1e-3, "shape": "sqrt"}, f"{WHERE}.shape: no 'sqrt'; did you mean '1-sqrt'?"),
        ({"kind": "cosin", "peak": 1e-3}, f"{WHERE}.kind: no 'cosin'"),
        ({"peak": 1e-3, "warmup": steps(1003)}, f"{WHERE}: warmup 1003 steps are 3 too many"),
        (
            {"kind": "wsd", "peak": 1e-3, "warmup": steps(200), "decay": steps(850)},
            f"{WHERE}: warmup 200 + decay 850 steps are 50 too",
        ),
        (
            {"kind": "infinite_cosine", "peak": 1e-3, "cooldown": steps(900)},
            "are 60 too many for a phase of 1000 steps",
        ),
        ({"peak": 1e-3, "warmup": Duration(fraction=1.5)}, f"{WHERE}.warmup.fraction: 1.5 is out of range"),
        ({"peak": 1e-3, "warmup_from": "here"}, f"{WHERE}.warmup_from: 'here' is not allowed"),
    ],
)
def test_errors_name_the_field(fields, line):
    with pytest.raises(ConfigError) as e:
        lr(**fields)
    assert str(e.value).startswith("config error: ") and line in str(e.value) and "\n" not in str(e.value)


def test_an_open_ended_phase_refuses_shares_of_its_length():
    span = Span(1000, 4096, open_ended=True)
    with pytest.raises(ConfigError, match=r"lr\.warmup\.fraction: the phase is open-ended"):
        lr(span, kind="wsd", peak=1e-3)
    with pytest.raises(ConfigError, match=r"lr\.kind: cosine decays over the whole phase"):
        lr(span, peak=1e-3, warmup=steps(10))
    with pytest.raises(ConfigError, match=r"lr\.decay\.fraction: the phase is open-ended"):
        lr(span, kind="wsd", peak=1e-3, warmup=steps(10))
    assert lr(span, kind="wsd", peak=1e-3, warmup=steps(10), decay=steps(10)).end == pytest.approx(1e-4)
