"""The ledger: what was trained on is what the plan says, to the token, and a difference stops the run."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt.config import load
from cpt.data.ledger import Ledger
from cpt.data.mix import MixPlan
from cpt.errors import RunError
from cpt.plan import resolve

ROWS = {"old": 1000, "new": 1000}


@pytest.fixture
def mix(toy_plan) -> MixPlan:
    return MixPlan(toy_plan, ROWS)


def trained(mix: MixPlan, ledger: Ledger, steps: range) -> None:
    """Count what the batches of these steps hold, as the device does."""
    for step in steps:
        column_B, _, _ = mix.batch_at(step)
        ledger.add(step, np.bincount(column_B, minlength=3) * mix.plan.spec.batch.length)


def test_realised_equals_planned_at_every_step(mix):
    ledger = Ledger(mix, 1.0)
    for step in range(mix.plan.total_steps):
        trained(mix, ledger, range(step, step + 1))
        ledger.check()
        assert ledger.to_json()["exact"]
        assert ledger.to_json()["totals"]["tokens_consumed"] == (step + 1) * 8 * 32


@settings(max_examples=20, deadline=None)
@given(start=st.integers(0, 40), stop=st.integers(0, 40), share=st.sampled_from([0.05, 0.1, 0.35]))
def test_a_resumed_ledger_equals_an_uninterrupted_one(toy_recipe, start, stop, share):
    toy_recipe.phases.second.replay.share = share
    mix = MixPlan(resolve(load(toy_recipe)), ROWS)
    start, stop = sorted((start, stop))
    whole, resumed = Ledger(mix, 3.0), Ledger(mix, 3.0, start)
    trained(mix, whole, range(stop))
    trained(mix, resumed, range(start, stop))
    resumed.check()
    assert resumed.to_json() == whole.to_json()


@pytest.fixture(scope="module")
def toy_recipe(toy_root):
    import toy

    return toy.get_config(str(toy_root))


@pytest.mark.parametrize(
    ("step", "off", "phase", "column"),
    [
        (3, [-1, 0, 0], "first", "old"),
        (25, [0, 1, 0], "second", r"replay\(first\)"),
        (25, [-32, 32, 0], "second", "new"),
    ],
)
def test_a_wrong_count_names_phase_column_and_numbers(mix, step, off, phase, column):
    ledger = Ledger(mix, 1.0, step)
    column_B, _, _ = mix.batch_at(step)
    ledger.add(step, np.bincount(column_B, minlength=3) * 32 + off)
    inside = step - mix.plan.phase_at(step).first_step
    planned = int(mix.counts(mix.plan.phase_at(step), inside + 1)[np.flatnonzero(off)[0]]) * 32
    numbers = f"consumed {planned + off[np.flatnonzero(off)[0]]:,} tokens, planned {planned:,}"
    with pytest.raises(RunError, match=f"ledger: at step {step + 1}, phase {phase}: {column} {numbers}"):
        ledger.check()
    assert not ledger.to_json()["exact"]


def test_a_step_that_is_counted_twice_is_noticed(mix):
    ledger = Ledger(mix, 1.0)
    trained(mix, ledger, range(4))
    trained(mix, ledger, range(3, 4))
    with pytest.raises(RunError, match=r"phase first: old consumed 1,280 tokens, planned 1,024"):
        ledger.check()


def test_rows_and_totals_of_a_finished_run(mix):
    ledger = Ledger(mix, 2.0)
    trained(mix, ledger, range(40))
    told = ledger.to_json()
    rows = {(r["phase"], r["source"]): r for r in told["phases"]}
    assert list(rows) == [("first", "old"), ("second", "new"), ("second", "replay(first)")]
    assert rows["first", "old"] == {
        "phase": "first",
        "source": "old",
        "role": "new",
        "domain": None,
        "tokens_planned": 5120,
        "tokens_consumed": 5120,
        "unique_tokens": 5120,
        "repeats": 0,
        "epochs": 5120 / 32_000,
        "flops": 10240.0,
    }
    replay = rows["second", "replay(first)"]
    assert (replay["role"], replay["tokens_consumed"], replay["epochs"]) == ("replay", 512, 512 / 5120)
    assert told["totals"] == {
        "tokens_planned": 10240,
        "tokens_consumed": 10240,
        "new_tokens": 9728,
        "replay_tokens": 512,
        "unique_replay_tokens": 512,
        "replay_share": 0.05,
        "replay_repeats": 0,
        "flops": 20480.0,
        "replay_flops": 1024.0,
    }
    assert told["step"] == 40 and told["exact"]


def test_planned_is_for_the_whole_phase_from_the_start(mix):
    told = Ledger(mix, 1.0).to_json()
    assert [r["tokens_planned"] for r in told["phases"]] == [5120, 4608, 512]
    assert [r["tokens_consumed"] for r in told["phases"]] == [0, 0, 0]
    assert told["totals"]["replay_share"] == 0.0


def test_repeated_data_is_not_unique(toy_config):
    toy_config.phases.second.replay.share, toy_config.phases.second.replay.max_repeats = 0.5, 3.0
    toy_config.phases.first.steps = 5
    mix = MixPlan(resolve(load(toy_config)), {"old": 40, "new": 50}, {"new": 2.0})
    ledger = Ledger(mix, 1.0)
    trained(mix, ledger, range(25))
    rows = {r["source"]: r for r in ledger.to_json()["phases"]}
    assert (rows["replay(first)"]["tokens_consumed"], rows["replay(first)"]["unique_tokens"]) == (2560, 1280)
    assert rows["replay(first)"]["epochs"] == 2.0
    assert (rows["new"]["tokens_consumed"], rows["new"]["unique_tokens"], rows["new"]["epochs"]) == (2560, 1600, 1.6)
