"""Spikes: what is one, what is done about it, and that the same is done again."""

import io
import json
import math
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import toy
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from cpt.config import load
from cpt.data.preparing import open_sources
from cpt.errors import ConfigError, RunError
from cpt.plan import resolve
from cpt.training import loop, step, workdir
from cpt.training.feed import Data
from cpt.training.guard import LAG, Guard, read_incidents


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("guard")


def config_of(root, **guard):
    config = toy.get_config(str(root))
    config.phases.first.steps, config.phases.second.steps = 12, 12
    config.checkpoints.rolling.fraction, config.checkpoints.rolling.steps = None, 4
    config.checkpoints.grid = None
    config.guard.update(window=4, deviations=50.0, back=3, **guard)
    return config


def plan_of(root, **guard):
    return resolve(load(config_of(root, **guard)))


def fed(guard, losses, start=0):
    for i, loss in enumerate(losses, start):
        guard.saw(i, loss, 1.0, True, False)
    return guard


# ---- the limits ------------------------------------------------------------------------------------------------------


def test_the_limit_is_mean_plus_deviations_of_what_is_surely_known(root):
    guard = fed(Guard(plan_of(root, spike="skip")), [1.0, 2.0, 3.0, 4.0, 100.0])
    known = np.array([1.0, 2.0, 3.0, 4.0])  # at step 5 that of update 4 need not be there yet
    assert guard.limits(5)[0] == pytest.approx(known.mean() + 50 * known.std())
    assert guard.limits(5)[1] == 1.0
    assert guard.limits(6)[0] > 1000  # now it is


def test_nothing_is_judged_before_half_a_window_of_the_phase(root):
    plan = plan_of(root, spike="skip")
    at = lambda t: math.isfinite(fed(Guard(plan), np.ones(t)).limits(t)[0])  # noqa: E731
    assert [at(t) for t in range(5)] == [False, False, False, True, True]
    # A new phase reads other data: its loss is compared with its own.
    assert [at(t) for t in range(10, 17)] == [True, True, False, False, False, True, True]


def test_switched_off_it_gives_no_limits(root):
    assert fed(Guard(plan_of(root)), np.ones(9)).limits(8) is None


@given(st.integers(0, 11), st.lists(st.floats(0.1, 10), min_size=11, max_size=11))
def test_what_a_checkpoint_keeps_gives_the_same_limits(toy_root, cut, losses):
    plan = plan_of(toy_root, spike="skip")
    whole = fed(Guard(plan), losses)
    first = fed(Guard(plan), losses[:cut])
    again = fed(Guard(plan, json.loads(json.dumps(first.to_json()))), losses[cut:], cut)
    assert [again.limits(t) for t in range(cut, 13)] == [whole.limits(t) for t in range(cut, 13)]


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("window", 1, r"guard\.window: 1 is not at least 2"),
        ("back", 0, r"guard\.back: 0 is not at least 1"),
        ("deviations", 0.0, r"guard\.deviations: 0\.0 is not positive"),
        ("stall_s", -1.0, r"guard\.stall_s: -1\.0 is not at least 0"),
        ("spike", "ignore", r"guard\.spike: 'ignore' is not allowed"),
    ],
)
def test_bad_settings_are_named(root, field, value, says):
    config = config_of(root)
    config.guard[field] = value
    with pytest.raises(ConfigError, match=says):
        load(config)


# ---- in the loop -----------------------------------------------------------------------------------------------------


def train(config, into, out=None):
    plan = resolve(load(config))
    sources, tokenizer = open_sources(plan.spec.sources, plan.spec.tokenizer, Path(plan.spec.stores), lambda _: None)
    workdir.prepare_workdir(into)
    return loop.train(plan, Data(sources, tokenizer), into, Console(file=out or io.StringIO(), width=300))


@pytest.fixture
def spiking(monkeypatch):
    """The gradient of the updates in `spiking.steps` is a thousand times what it should be."""
    made, plan_lr = step.make_train_step, loop.RunPlan.lr

    class Spiking:
        steps = (18,)

    def make(*args, **options):
        train_step = made(*args, **options)

        def spiked(state, batch, lr, multipliers_K, *rest):
            # Told by the learning rate, the only argument that knows the step.
            factor = jax.numpy.where(lr < 0, 1000.0, 1.0)
            return train_step(state, batch, jax.numpy.abs(lr), multipliers_K * factor, *rest)

        return spiked

    monkeypatch.setattr(step, "make_train_step", make)
    monkeypatch.setattr(loop.RunPlan, "lr", lambda self, t: plan_lr(self, t) * (-1 if t in Spiking.steps else 1))
    return Spiking


def rows(run, name="metrics.jsonl"):
    keep = ("step", "loss", "grad_norm", "skipped", "set", "nats")
    return [{k: row.get(k) for k in keep} for row in map(json.loads, (run / name).read_text().splitlines())]


def ledger(run):
    return json.loads((run / "ledger.json").read_text())


def test_a_skipped_spike_leaves_no_trace_but_in_the_ledger(root, tmp_path, spiking):
    out = io.StringIO()
    train(config_of(root, spike="skip"), tmp_path / "run", out)
    assert "step 18: loss" in out.getvalue() and "are a spike (limits" in out.getvalue()
    told = ledger(tmp_path / "run")
    (incident,) = told["guard"]
    assert (incident["step"], incident["why"], incident["rewound_to"]) == (18, "spike", None)
    assert incident["grad_norm"] > incident["limits"][1]
    assert told["totals"]["tokens_skipped"] == 256 and told["totals"]["tokens_undone"] == 0
    assert told["exact"] and told["totals"]["tokens_consumed"] == 24 * 256  # they were read
    skipped = [r["step"] for r in rows(tmp_path / "run") if r["skipped"]]
    assert skipped == [19]
    spiking.steps = ()
    train(config_of(root), tmp_path / "plain")
    # Up to the spike it is the same run; without its update it is another one afterwards.
    assert rows(tmp_path / "run")[:18] == rows(tmp_path / "plain")[:18]
    assert rows(tmp_path / "run")[20]["loss"] != rows(tmp_path / "plain")[20]["loss"]


def test_going_back_is_exact_recorded_and_repeated(root, tmp_path, spiking):
    out = io.StringIO()
    train(config_of(root, spike="rewind"), tmp_path / "run", out)
    # Checkpoints of the phase before the spike: 12 (its edge) and 16; 3 updates before 18 is 15.
    assert "step 18: back to the state of step 12 (anchor/12)" in out.getvalue()
    told = ledger(tmp_path / "run")
    (incident,) = told["guard"]
    assert (incident["step"], incident["rewound_to"]) == (18, 12)
    assert told["totals"]["tokens_undone"] == (18 + LAG - 12) * 256 and told["totals"]["tokens_skipped"] == 0
    assert told["exact"] and told["totals"]["tokens_consumed"] == 24 * 256
    # The same again, from the ledger alone, in a run that would never have thought of it.
    again = config_of(root, replay=str(tmp_path / "run" / "ledger.json"))
    train(again, tmp_path / "again")
    assert rows(tmp_path / "again") == rows(tmp_path / "run")
    assert rows(tmp_path / "again", "eval.jsonl") == rows(tmp_path / "run", "eval.jsonl")
    assert ledger(tmp_path / "again")["guard"][0]["rewound_to"] == 12
    # And of a run that is killed anywhere and resumed: whatever of its checkpoints is left.
    for kept in (("anchor/12",), ("anchor/12", "rolling/16"), ("anchor/12", "rolling/16", "rolling/20")):
        cut = Path(shutil.copytree(tmp_path / "run", tmp_path / "-".join(kept).replace("/", "_")))
        for saved in loop.Checkpoints(cut / "checkpoints").finished():
            if str(saved) not in kept:
                shutil.rmtree(saved.path)
        if all((cut / "checkpoints" / k).is_dir() for k in kept):
            train(config_of(root, spike="rewind"), cut)
            assert rows(cut) == rows(tmp_path / "run") and ledger(cut)["guard"] == told["guard"]


def test_a_run_that_was_stopped_in_between_goes_back_to_the_same_step(root, tmp_path, spiking):
    def config_with(**grids):
        config = config_of(root, spike="rewind")
        config.guard.back, config.checkpoints.keep_rolling = 2, 1
        config.phases.second.steps = 20
        config.checkpoints.update(grids)
        return config

    spiking.steps = (27,)  # back from 29: the rolling ones at 20 (pushed out) and 24, so 24
    train(config_with(), tmp_path / "run")
    assert [i["rewound_to"] for i in ledger(tmp_path / "run")["guard"]] == [24]
    # Stopped at 25 and saved there, which is near enough to go back to and would push out the one at 24.
    cut = tmp_path / "cut"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop.Requests, "stopping", property(lambda self: "SIGTERM" if self.now >= 25 else None))
        patched.setattr(loop.Requests, "now", 0, raising=False)
        patched.setattr(
            loop.Watchdog,
            "at",
            lambda self, doing: (
                setattr(loop.Requests, "now", int(doing[5:] or 0)) if doing.startswith("step ") else None
            ),
        )
        assert train(config_with(), cut).stopped_by == "SIGTERM"
    assert (cut / "checkpoints" / "rolling" / "25").is_dir()
    # Killed before it had let go of an older one.
    shutil.copytree(cut / "checkpoints" / "rolling" / "25", cut / "checkpoints" / "rolling" / "22")
    train(config_with(), cut)
    assert rows(cut) == rows(tmp_path / "run") and ledger(cut)["guard"] == ledger(tmp_path / "run")["guard"]


def test_going_back_over_an_edge_keeps_the_policy_of_the_new_phase(root, tmp_path, spiking, monkeypatch):
    # The last update of the first phase; when that is known the second, which begins with fresh moments, is under way.
    spiking.steps = (11,)
    policies, make = [], loop.make_machine

    def watched(plan):
        machine = make(plan)
        switch = machine.switch[12]
        machine.switch[12] = lambda state: policies.append(12) or switch(state)
        return machine

    monkeypatch.setattr(loop, "make_machine", watched)
    train(config_of(root, spike="rewind"), tmp_path / "run")
    assert [(i["step"], i["rewound_to"]) for i in ledger(tmp_path / "run")["guard"]] == [(11, 8)]
    assert policies == [12, 12]  # once for the state that was given up, once for the one that the run went on with


def test_with_no_checkpoint_to_go_back_to_it_goes_on(root, tmp_path, spiking):
    spiking.steps = (6,)
    config = config_of(root, spike="rewind")
    config.checkpoints.rolling.steps = 100
    out = io.StringIO()
    assert train(config, tmp_path / "run", out).step == 24
    assert "step 6: this phase has no checkpoint to go back to; on without the update" in out.getvalue()


def test_a_spike_can_end_the_run(root, tmp_path, spiking):
    with pytest.raises(RunError, match=r"step 18: .* are a spike \(limits .*the last good checkpoint is .*rolling/16"):
        train(config_of(root, spike="stop"), tmp_path / "run")


def test_spikes_without_end_end_the_run(root, tmp_path, spiking):
    spiking.steps = tuple(range(17, 24))
    with pytest.raises(RunError, match="5 updates in a row were skipped, the last, a spike, at step 21"):
        train(config_of(root, spike="skip"), tmp_path / "run")


def test_a_ledger_that_cannot_be_replayed_is_named(root, tmp_path):
    with pytest.raises(ConfigError, match=r"guard\.replay: .*none\.json: no ledger of a run"):
        read_incidents(tmp_path / "none.json")
    (tmp_path / "old.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"guard\.replay: .*old\.json: no ledger of a run that lists its incidents"):
        train(config_of(root, replay=str(tmp_path / "old.json")), tmp_path / "run")
