"""Replay whose share moves, that comes on top, of many phases, and of what another model saw."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_mix import LENGTH, column, flat, phase, plan_of, read

from cpt.config import MixerSpec, ReplaySpec
from cpt.data.mix import MixPlan
from cpt.data.preparing import SourceSpec
from cpt.data.spec import ReplayShareSpec
from cpt.errors import ConfigError, DataError
from cpt.units import Duration


def replaying(kind="constant", share=0.4, steps=20, **schedule):
    spec = ReplayShareSpec(kind, **schedule)
    replay = ReplaySpec(of="p0", share=share, schedule=spec, max_repeats=1e9)
    return plan_of(phase(6), phase(steps, {"b": 1.0}, replay=replay)).phases[1]


def replayed(p, step):
    return dict(zip([c.role for c in p.columns], p.shares(step), strict=True))["replay"]


# ---- the share over the phase ----
def test_a_line():
    p = replaying("linear", end=0.1, steps=11)
    assert [replayed(p, s) for s in (0, 5, 10)] == pytest.approx([0.4, 0.25, 0.1])


def test_a_burst_and_what_follows_it():
    p = replaying("burst", end=0.05, over=Duration(steps=7))
    assert [replayed(p, s) for s in range(20)] == [0.4] * 7 + [0.05] * 13
    assert [replayed(replaying("burst"), s) for s in range(4)] == [0.4, 0.4, 0.0, 0.0]  # a tenth of 20 steps


@given(st.floats(0.01, 0.9), st.floats(0, 0.9), st.integers(1, 9))
def test_a_decay_halves_its_way_to_the_end(share, end, over):
    p = replaying("decay", share=share, end=end, over=Duration(steps=over))
    for step in (0, 3, 19 - over):
        assert replayed(p, step + over) - end == pytest.approx((replayed(p, step) - end) / 2, abs=1e-12)
    assert replayed(p, 0) == pytest.approx(share)


def test_a_schedule_of_ones_own():
    p = replaying(f"{__name__}:saw", share=0.2)
    assert [replayed(p, s) for s in range(4)] == [0.2, 0.0, 0.2, 0.0]
    with pytest.raises(ConfigError, match=r"phases\.p1\.replay\.share: 1 at step 0 is not in \[0, 1\)"):
        replaying(f"{__name__}:all_of_it")
    with pytest.raises(ConfigError, match=r"replay\.schedule\.kind: no 'brust'.*did you mean 'burst'"):
        replaying("brust")


def saw(replay, step):
    return np.where(step % 2, 0.0, replay.spec.share)


def all_of_it(replay, step):
    return np.ones(np.shape(step))


@given(
    st.sampled_from(["constant", "linear", "burst", "decay"]),
    st.floats(0, 0.9),
    st.floats(0, 0.9),
    st.integers(1, 3000),
)
@example("decay", 0.9, 0.0, 60)  # with one step more the half-life grows by one, which costs more than a step
@example("decay", 0.0, 0.9, 14)
def test_on_top_of_the_new_tokens_the_new_tokens_are_the_budget(kind, share, end, tokens):
    """`fixed_new`: the new tokens of its steps fit; those of one step more would be too many."""
    tokens = tokens * 4 * LENGTH
    spec = ReplaySpec("p0", share, schedule=ReplayShareSpec(kind, end), accounting="fixed_new", max_repeats=1e9)
    plan = plan_of(phase(6), phase(None, {"b": 1.0}, tokens=tokens, replay=spec))
    p = plan.phases[1]
    assert p.new_tokens <= tokens * (1 + 1e-9)
    longer = plan_of(phase(6), phase(p.steps + 1, {"b": 1.0}, replay=spec)).phases[1]
    assert longer.new_tokens > tokens and p.steps >= tokens // (4 * LENGTH)
    same = plan_of(phase(6), phase(None, {"b": 1.0}, tokens=tokens, replay=ReplaySpec("p0", share, max_repeats=1e9)))
    assert same.phases[1].steps == tokens // (4 * LENGTH)  # replay displaces


def test_a_schedule_without_anything_to_replay_is_a_mistake():
    with pytest.raises(
        ConfigError, match=r"p1\.replay\.schedule: there is nothing to replay; name it in phases\.p1\.rep"
    ):
        plan_of(phase(5), phase(5, replay=ReplaySpec(schedule=ReplayShareSpec("linear", end=0.3))))


# ---- what a mixer read ----
@pytest.mark.parametrize(
    ("mix", "mixer", "expected"),
    [
        ({"a": 0.5, "b": 0.5}, MixerSpec("proportional", {"sizes": {"a": 3, "b": 1}}), {"a": 0.75, "b": 0.25}),
        ({"a": 1.0, "b": 0.0}, MixerSpec("linear", {"end": {"a": 0.0, "b": 1.0}}), {"a": 0.5, "b": 0.5}),
        ({"a": 1.0, "b": 0.0}, MixerSpec(), {"a": 1.0}),
    ],
)
def test_unseen_data_is_in_proportion_to_what_was_read_and_not_to_what_mix_says(mix, mixer, expected):
    replay = ReplaySpec("p0", 0.5, range="unseen")
    plan = plan_of(phase(40, mix, mixer=mixer), phase(40, {"c": 1.0}, replay=replay))
    parts = {c.source: c.part for c in plan.phases[1].columns if c.role == "replay"}
    assert parts == pytest.approx(expected) and plan.phases[0].new_mix() == pytest.approx(expected)


# ---- several phases ----
def parts(**replay):
    specs = [phase(2), phase(4, {"b": 1.0}), phase(6, {"c": 1.0})]
    last = phase(30, {"d": 1.0}, replay=ReplaySpec(share=0.5, max_repeats=1e9, **replay))
    plan = plan_of(*specs, last, sources=dict.fromkeys("abcd"))
    MixPlan(plan, dict.fromkeys("abcd", 1000))
    return {c.of: c.part for c in plan.phases[3].columns if c.role == "replay"}


def test_parts_of_earlier_phases():
    equal = dict.fromkeys(("p0", "p1", "p2"), 1 / 3)
    assert parts(of="earlier") == parts(of="earlier", between="equal") == pytest.approx(equal)
    assert parts(of="earlier", between="proportional") == pytest.approx({"p0": 2 / 12, "p1": 4 / 12, "p2": 6 / 12})
    harmonic = 1 + 1 / 2 + 1 / 3
    expected = {"p2": 1 / harmonic, "p1": 0.5 / harmonic, "p0": 1 / 3 / harmonic}
    assert parts(of="earlier", between="power") == pytest.approx(expected)
    squares = 1 + 1 / 9
    two = parts(of={"p0": 1, "p2": 1}, between="power", power=2.0)  # ages are counted over all phases
    assert two == pytest.approx({"p2": 1 / squares, "p0": 1 / 9 / squares})
    assert parts(of={"p0": 3, "p2": 1}) == pytest.approx({"p0": 0.75, "p2": 0.25})


def test_proportional_counts_new_tokens_only():
    half = ReplaySpec(of="p0", share=0.5, max_repeats=1e9)
    last = phase(9, {"c": 1.0}, replay=ReplaySpec("earlier", 0.5, between="proportional", max_repeats=1e9))
    plan = plan_of(phase(4), phase(8, {"b": 1.0}, replay=half), last)
    assert [c.part for c in plan.phases[2].columns if c.role == "replay"] == pytest.approx([0.5, 0.5])


def test_mistakes_in_what_is_replayed():
    for of, says in (
        ("p9", r"phases\.p1\.replay\.of: 'p9' is not an earlier phase"),
        ("p1", r"'p1' is not an earlier phase.*\(earlier: p0; or a source that no phase learns\)"),
        ({"earlier": 1.0, "p0": 1.0}, "'earlier' stands alone"),
        ("b", r"'b' is a source that phase 'p1' learns; replay that phase"),
        ({"p0": -1.0}, "parts must be at least 0"),
    ):
        with pytest.raises(ConfigError, match=says):
            plan_of(phase(6), phase(6, {"b": 1.0}, replay=ReplaySpec(of, 0.5)))
    with pytest.raises(ConfigError, match="'earlier' stands alone and needs a phase before"):
        plan_of(phase(6, replay=ReplaySpec("earlier", 0.5)))
    with pytest.raises(ConfigError, match=r"replay\.between: 'c' is no phase; give the parts in replay\.of"):
        plan_of(phase(6), phase(6, {"b": 1.0}, replay=ReplaySpec({"c": 1.0}, 0.5, between="equal")))
    with pytest.raises(ConfigError, match=r"replay\.range: 'reservoir' is of phases; of the store 'c' say with"):
        plan_of(phase(6), phase(6, {"b": 1.0}, replay=ReplaySpec("c", 0.5, range="reservoir", reservoir=64)))


# ---- an outside store ----
def outside(**replay):
    """A run that begins with the new data; what the base model saw is the store of `c`."""
    sources = {n: SourceSpec(store=n, order="stored" if n == "c" else "shuffled") for n in "bc"}
    return plan_of(phase(20, {"b": 1.0}, replay=ReplaySpec(share=0.25, **replay)), sources=sources)


def test_what_another_model_saw_is_read_in_its_order():
    plan = outside(of="c")
    assert [(c.name, c.role, c.source) for c in plan.phases[0].columns] == [
        ("b", "new", "b"),
        ("replay(c)", "replay", "c"),
    ]
    batches = read(MixPlan(plan, {"b": 60, "c": 20}))
    replay = column(plan, batches, 0, "replay")
    assert flat(replay) == [("c", row) for row in range(20)]
    assert {len(b) for b in replay} == {1}


def test_its_repeats_are_capped_by_the_replay_and_not_by_its_epochs():
    for epochs in ({}, {"c": 9.0}):
        with pytest.raises(
            ConfigError, match=r"p0\.replay\.max_repeats: the plan replays the store 'c' 2 times; 1 allo"
        ):
            MixPlan(outside(of="c"), {"b": 60, "c": 10}, epochs)
    with pytest.raises(DataError, match=r"sources\.c: phases\.p0\.replay reads it, but its store has not one row of 4"):
        MixPlan(outside(of="c"), {"b": 60, "c": 0})
    mix = MixPlan(outside(of="c", max_repeats=2.0), {"b": 60, "c": 10})
    assert (
        mix.consumed == {"b": 60, "c": 20}
        and mix.first_reads(mix.plan.phases[0], mix.plan.phases[0].columns[1], 20) == 10
    )


def test_each_phase_keeps_to_its_own_cap_on_an_outside_store():
    """20 rows of a store of 15 in the first phase: what a later phase allows is no leave for it."""
    sources = {n: SourceSpec(store=n) for n in "bc"}

    def consumed(first: float, second: float) -> dict[str, int]:
        phases = [
            phase(20, {"b": 1.0}, replay=ReplaySpec("c", 0.25, max_repeats=first)),
            phase(8, {"b": 1.0}, replay=ReplaySpec("c", 0.25, max_repeats=second)),
        ]
        return MixPlan(plan_of(*phases, sources=sources), {"b": 100, "c": 15}).consumed

    assert consumed(20 / 15, 28 / 15) == {"b": 84, "c": 28}
    with pytest.raises(
        ConfigError, match=r"p0\.replay\.max_repeats: the plan replays the store 'c' 1\.33 times; 1 allow"
    ):
        consumed(1.0, 9.0)
    with pytest.raises(
        ConfigError, match=r"p1\.replay.*the store 'c' 1\.87 times, with the phases before it; 1\.5 allow"
    ):
        consumed(9.0, 1.5)


def test_a_name_that_is_a_phase_and_a_source_means_the_phase():
    sources = {n: SourceSpec(store=n) for n in ("a", "b", "p0")}
    plan = plan_of(phase(6), phase(8, {"b": 1.0}, replay=ReplaySpec("p0", 0.25)), sources=sources)
    assert [(c.of, c.source) for c in plan.phases[1].columns] == [(None, "b"), ("p0", None)]
    rows = flat(column(plan, read(MixPlan(plan, {"a": 24, "b": 24, "p0": 0})), 1, "replay"))
    assert {name for name, _ in rows} == {"a"}


def test_phases_and_stores_together():
    sources = {n: SourceSpec(store=n) for n in "abc"}
    replay = ReplaySpec({"p0": 3, "c": 1}, 0.5, max_repeats=1e9)
    plan = plan_of(phase(6), phase(8, {"b": 1.0}, replay=replay), sources=sources)
    names = [c.name for c in plan.phases[1].columns]
    assert names == ["b", "replay(p0)", "replay(c)"] and plan.phases[1].shares(0) == pytest.approx((0.5, 0.375, 0.125))
    batches = read(MixPlan(plan, dict.fromkeys("abc", 100)))
    assert {name for name, _ in flat(column(plan, batches, 1, "replay"))} == {"a", "c"}
