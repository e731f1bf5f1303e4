"""One schedule over several phases: cut where they end, and nowhere else different from the whole."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt import config as c
from cpt.config import load
from cpt.errors import ConfigError
from cpt.plan import resolve


def plan_of(toy_config, first, *others):
    config = copy.deepcopy(toy_config)
    base = config.phases.second
    base.replay.of, base.replay.share = None, 0.0
    names = ["first", *(f"more{i}" for i in range(len(others)))]
    phases = {}
    for name, fields in zip(names, (first, *others), strict=True):
        phase = copy.deepcopy(base)
        phase.optimizer.policy = "keep"
        phase.tokens, phase.steps = fields.get("tokens"), fields.get("steps")
        phase.until_lr = fields.get("until_lr")
        phase.lr = fields.get("lr", c.lr(kind="continue"))
        phases[name] = phase
    config.order, config.phases = tuple(names), phases
    config.sources.new.epochs = 100.0
    return resolve(load(config))


WSD = dict(kind="wsd", peak=1e-2, warmup=c.duration(steps=3), decay=c.duration(fraction=0.25))


@settings(deadline=None, max_examples=25)
@given(budgets=st.lists(st.integers(1, 30), min_size=2, max_size=4))
def test_phases_that_continue_are_the_whole_schedule(toy_recipe, budgets):
    if sum(budgets) < 6:
        budgets = [*budgets, 6]
    parts = plan_of(toy_recipe, {"steps": budgets[0], "lr": c.lr(**WSD)}, *({"steps": b} for b in budgets[1:]))
    whole = plan_of(toy_recipe, {"steps": sum(budgets), "lr": c.lr(**WSD)})
    assert [p.steps for p in parts.phases] == budgets
    assert (
        np.concatenate([p.learning_rates() for p in parts.phases]).tolist() == whole.phases[0].learning_rates().tolist()
    )
    assert parts.phases[-1].schedule.end == whole.phases[0].schedule.end


@pytest.fixture(scope="module")
def toy_recipe(toy_root):
    import toy

    return toy.get_config(str(toy_root))


def test_the_data_switch_of_parmar(toy_recipe):
    """From 4.5e-5 to a hundredth without re-warming; the second blend begins where the rate is at a fifth."""
    lr = c.lr(kind="no_rewarm", value=4.5e-5)
    plan = plan_of(toy_recipe, {"steps": 200, "lr": lr, "until_lr": 4.5e-5 / 5}, {})
    general, qa = plan.phases
    assert general.steps + qa.steps == 200 and qa.schedule.end == 4.5e-5 / 100
    assert plan.lr(qa.first_step) <= 9e-6 < plan.lr(qa.first_step - 1)
    assert qa.schedule.describe() == "cosine 8.798e-6..4.5e-7"


def test_an_infinite_trunk_switches_data_without_a_jump(toy_recipe):
    lr = c.lr(kind="infinite_cosine", peak=1e-2, warmup=c.duration(steps=2), cooldown=c.duration(steps=10),
              decay=c.duration(steps=0))  # fmt: skip
    plan = plan_of(toy_recipe, {"steps": 20, "lr": lr}, {"steps": 20}, {"steps": 20})
    assert [plan.lr(t) for t in (12, 19, 20, 39, 40, 59)] == [5.5e-3] * 6
    assert plan.phases[2].schedule.describe() == "hold 20 at 5.5e-3"


@pytest.mark.parametrize(
    ("first", "others", "says"),
    [
        ({"steps": 20}, [], r"phases\.first\.lr\.kind: there is no phase before"),
        ({"steps": 20, "lr": c.lr(**WSD)}, [{}], r"phases\.more0: give exactly one of tokens and steps, or until_lr"),
        (
            {"steps": 20, "lr": c.lr(**WSD), "until_lr": 1e-4},
            [{}],
            r"first\.until_lr: the learning rate never falls to",
        ),
        ({"steps": 20, "lr": c.lr(**WSD), "until_lr": 5e-3}, [], r"until_lr: 3 steps of the schedule come after it"),
        ({"steps": 20, "lr": c.lr(**WSD), "until_lr": 2e-2}, [{}], r"until_lr: .* before the phase begins"),
    ],
)
def test_what_cannot_be_continued(toy_recipe, first, others, says):
    with pytest.raises(ConfigError, match=says):
        plan_of(toy_recipe, first, *others)
