"""A run directory belongs to a past: its future may be edited, what was trained on may not."""

import copy
import dataclasses
import io
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt.config import load
from cpt.errors import ConfigError, RunError
from cpt.plan import RunPlan, resolve
from cpt.training import workdir

CONSTANT = {"lr.kind": "constant", "lr.value": 1e-3}


@pytest.fixture(scope="module")
def planned(toy_root):
    """`planned({"phases.second.steps": 30})`: the plan of the toy recipe (twice 20 steps) with these fields."""
    import toy

    recipe = toy.get_config(str(toy_root))

    def change(fields: dict | None = None, **more) -> RunPlan:
        config = copy.deepcopy(recipe)
        for path, value in {**(fields or {}), **more}.items():
            *parents, last = path.split(".")
            node = config
            for name in parents:
                node = node[name]
            node[last] = value
        return resolve(load(config))

    return change


def constant(phase: str, **more) -> dict:
    return {f"phases.{phase}.{k}": v for k, v in {**CONSTANT, **more}.items()}


# ---- what is past, what is not ----
FUTURE_OF_25 = {
    "more tokens": {"phases.second.steps": 30} | constant("second"),
    "grids": {"phases.second.evaluate.dense": 0, "checkpoints.rolling.steps": 3, "checkpoints.keep_rolling": 5},
    "tags of a set": {"evaluation.sets.old.tags": ("other",)},
    "a third phase": None,
    "how it is executed": {"stores": "/elsewhere", "mesh.tensor": 2, "guard.max_skipped": 9, "notice": "x"},
    "allowed epochs": {"sources.new.epochs": 3.0},
    "allowed repeats": {"phases.second.replay.max_repeats": 9.0},
}


@pytest.mark.parametrize("name", FUTURE_OF_25)
def test_the_future_may_change(planned, name):
    fields = FUTURE_OF_25[name]
    base = constant("second") if name == "more tokens" else {}
    if fields is None:
        spec = planned().spec
        third = {**spec.phases, "third": spec.phases["first"]}
        new = resolve(dataclasses.replace(spec, phases=third, order=("first", "second", "third")))
    else:
        new = planned(base | fields)
    old = planned(base)
    assert old.hash != new.hash or name == "how it is executed"
    assert workdir.changed_past(old, new, 25) is None


PAST_OF_25 = {
    "seed": ({"seed": 1}, "seed: it was 0, the new plan says 1"),
    "model": ({"model.width": 64}, "model.width: it was 32, the new plan says 64"),
    "batch": ({"batch.sequences": 16}, "batch.sequences: it was 8, the new plan says 16"),
    "optimizer": ({"optimizer.eps": 1e-6}, "optimizer.eps: it was 1e-08, the new plan says 1e-06"),
    "tokenizer": ({"tokenizer.max_bytes": 9}, "tokenizer.max_bytes: it was None, the new plan says 9"),
    "source": ({"sources.new.validation": 0.2}, "sources.new.validation: it was 0.1, the new plan says 0.2"),
    "set": ({"evaluation.sets.old.sequences": 4}, "evaluation.sets.old.sequences: it was 12, the new plan says 4"),
    "length of an earlier phase": (
        {"phases.first.steps": 21},
        "phases.first.tokens: 5,120 were trained, the new plan s",
    ),
    "end before the present": (
        {"phases.second.steps": 4},
        "phases.second.tokens: the run is at step 25, the new plan e",
    ),
    "peak of an earlier phase": (
        {"phases.first.lr.peak": 2e-2},
        "phases.first.lr: at step 1 it was 0.005, the new plan",
    ),
    "decay of this phase": ({"phases.second.lr.floor": 2e-3}, "phases.second.lr: at step 23 it was 0.00993"),
    "longer cosine": ({"phases.second.steps": 30}, "phases.second.lr: at step 23 it was"),
    "mix": (
        {"phases.second.mix": {"new": 0.5, "old": 0.5}},
        "phases.second.mix.new: it was 1.0, the new plan says 0.5",
    ),
    "source of share 0": ({"phases.second.mix.old": 0.0}, "phases.second.mix.old: it was None, the new plan says 0.0"),
    "replay share": (
        {"phases.second.replay.share": 0.2},
        "phases.second.mix: at step 20 it was (0.9, 0.1), the new plan",
    ),
    "no replay": ({"phases.second.replay.share": 0.0}, "phases.second.replay.share: it was 0.1, the new plan says 0.0"),
    "order of replay": ({"phases.second.replay.order": "shuffled"}, "phases.second.replay.order: it was 'original'"),
    "weights": (
        {"phases.second.weights": {"new": 2.0}},
        "phases.second.weights.new: it was None, the new plan says 2.0",
    ),
    "policy": ({"phases.second.optimizer.policy": "keep"}, "phases.second.optimizer.policy: it was 'reset', the new"),
}


@pytest.mark.parametrize("name", PAST_OF_25)
def test_the_past_may_not_change_and_is_named(planned, name):
    fields, says = PAST_OF_25[name]
    found = workdir.changed_past(planned(), planned(fields), 25)
    assert found is not None and found.startswith(says)


def test_a_phase_that_was_trained_must_stay(planned):
    spec = planned().spec
    only = resolve(dataclasses.replace(spec, order=("first",), phases={"first": spec.phases["first"]}))
    assert workdir.changed_past(planned(), only, 20) is None  # the second had not begun
    assert workdir.changed_past(planned(), only, 21).startswith("phases.second: the run trained it already")


def test_everything_of_a_phase_that_has_not_begun_may_change(planned):
    changes = {
        "mix": {"new": 0.5, "old": 0.5},
        "replay.share": 0.3,
        "lr.peak": 1.0,
        "optimizer.policy": "keep",
        "steps": 7,
    }
    new = planned({f"phases.second.{k}": v for k, v in changes.items()})
    assert workdir.changed_past(planned(), new, 20) is None
    assert workdir.changed_past(planned(), new, 21) is not None
    assert workdir.changed_past(planned(), planned({"sources.new.validation": 0.2}), 20) is None


def test_the_present_phase_grows_in_place_where_the_schedule_up_to_now_is_the_same(planned):
    old = planned(constant("second"))
    longer = planned(constant("second", steps=50))
    for step in (21, 30, 40):  # at its very end as well: a finished run is trained further
        assert workdir.changed_past(old, longer, step) is None
    assert workdir.changed_past(longer, old, 40) is None
    assert "the run is at step 41" in workdir.changed_past(longer, old, 41)
    grown = planned(constant("first", steps=30))
    assert workdir.changed_past(planned(constant("first")), grown, 20) is None
    assert "5,120 were trained" in workdir.changed_past(planned(constant("first")), grown, 21)


def test_another_schedule_with_the_same_rates_so_far_is_no_change(planned):
    """What counts is what was done: a hold followed by a decay equals a constant until the decay begins."""
    wsd = {"lr.kind": "wsd", "lr.peak": 1e-3, "lr.floor": 1e-4, "lr.warmup.steps": 0, "lr.decay.steps": 5}
    decays, holds = planned(constant("second", **wsd)), planned(constant("second"))
    # Both start at 1e-3 at once and leave it at step 35; the first update at another rate is number 36.
    assert [decays.lr(s) for s in range(20, 36)] == [holds.lr(s) for s in range(20, 36)]
    assert workdir.changed_past(holds, decays, 36) is None
    assert workdir.changed_past(holds, decays, 37).startswith("phases.second.lr: at step 36 it was 0.001")


def test_shares_that_would_have_moved_rows_are_refused(planned):
    """Where shares vary, later ones decide on remainders of earlier batches; equal shares so far are not enough."""
    mix = {"phases.first.mix": {"old": 0.5, "new": 0.5}, "phases.first.mixer.kind": "linear"} | constant("first")
    end = {"phases.first.mixer.options": {"end": {"old": 0.1, "new": 0.9}}}
    found = workdir.changed_past(planned(mix | end), planned(mix | end, **{"phases.first.steps": 30}), 10)
    assert found.startswith("phases.first.mix: at step 1 it was")


@settings(max_examples=40, deadline=None)
@given(
    step=st.integers(1, 40),
    peak=st.sampled_from([1e-2, 2e-2]),
    share=st.sampled_from([0.1, 0.5]),
    seed=st.integers(0, 1),
)
def test_allowed_means_equal_up_to_now(planned, step, peak, share, seed):
    """The law: if a change is let through, every update so far would be the same under the new plan."""
    old = planned()
    new = planned({"phases.second.lr.peak": peak, "phases.second.replay.share": share, "seed": seed})
    same = seed == 0 and all(
        (old.lr(s), old.phase_at(s).shares(s % 20)) == (new.lr(s), new.phase_at(s).shares(s % 20)) for s in range(step)
    )
    assert (workdir.changed_past(old, new, step) is None) == same


# ---- claiming a directory ----
def test_a_new_directory_gets_plan_and_config(planned, tmp_path):
    plan = planned()
    workdir.claim(tmp_path, plan, 0)
    stored, raw = workdir.stored_plan(tmp_path)
    assert stored.hash == plan.hash == raw["hash"] and raw["history"] == []
    assert json.loads((tmp_path / "config.json").read_text()) == raw["spec"]
    before = (tmp_path / "plan.json").read_text()
    workdir.claim(tmp_path, plan, 7)
    assert (tmp_path / "plan.json").read_text() == before


def test_a_change_of_the_future_is_recorded(planned, tmp_path):
    plans = [planned(constant("second", steps=n)) for n in (20, 30, 40)]
    for plan, step in zip(plans, (0, 25, 45), strict=True):
        workdir.claim(tmp_path, plan, step)
    _, raw = workdir.stored_plan(tmp_path)
    assert raw["history"] == [{"hash": plans[0].hash, "until_step": 25}, {"hash": plans[1].hash, "until_step": 45}]
    assert raw["hash"] == plans[2].hash


def test_a_change_of_the_past_is_refused_and_nothing_is_written(planned, tmp_path):
    workdir.claim(tmp_path, planned(), 0)
    before = (tmp_path / "plan.json").read_text(), (tmp_path / "config.json").read_text()
    with pytest.raises(
        ConfigError, match=rf"{tmp_path} belongs to another plan: phases\.first\.lr: .* another --workdir"
    ):
        workdir.claim(tmp_path, planned({"phases.first.lr.peak": 2e-2}), 25)
    assert before == ((tmp_path / "plan.json").read_text(), (tmp_path / "config.json").read_text())


def test_before_anything_is_recorded_everything_may_change(planned, tmp_path):
    """A mistake that stops the run before its first result can be mended in place; one result later, it is a run."""
    workdir.claim(tmp_path, planned(), 0)
    (tmp_path / "metrics.jsonl").write_text("")
    workdir.claim(tmp_path, planned({"seed": 1, "sources.old.validation": 0.2}), 0)
    assert workdir.stored_plan(tmp_path)[1]["history"] == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ConfigError, match="seed: it was 1, the new plan says 0"):
        workdir.claim(tmp_path, planned(), 0)


def test_parameters_that_an_abandoned_future_left_are_set_aside(planned, tmp_path):
    """Killed at step 33 with a full checkpoint of 30 and a grid one of 32: the new plan trains step 31 on anew."""
    old, new = planned(constant("second")), planned(constant("second", steps=60))
    workdir.claim(tmp_path, old, 0)
    for kind, step in (("rolling", 25), ("rolling", 30), ("grid", 30), ("grid", 32)):
        (tmp_path / "checkpoints" / kind / str(step)).mkdir(parents=True)
    (tmp_path / "checkpoints" / "grid" / "32" / "params").write_text("old")
    workdir.claim(tmp_path, old, 30)
    assert (tmp_path / "checkpoints" / "grid" / "32").is_dir()  # the same plan trains the same parameters again
    workdir.claim(tmp_path, new, workdir.newest_step(tmp_path))
    kept = sorted(str(p.relative_to(tmp_path / "checkpoints")) for p in (tmp_path / "checkpoints").glob("*/*"))
    assert kept == ["grid/30", "rolling/25", "rolling/30", f"superseded/{old.hash[:8]}"]
    moved = tmp_path / "checkpoints" / "superseded" / old.hash[:8] / "grid-32" / "params"
    assert moved.read_text() == "old"


def test_the_newest_step_is_that_of_a_full_checkpoint(tmp_path):
    assert workdir.newest_step(tmp_path) == 0
    for name in ("anchor/20", "rolling/25", "grid/30", "rolling/35.orbax-checkpoint-tmp-1", "damaged/anchor-40"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert workdir.newest_step(tmp_path) == 25


def test_the_default_directory_is_named_by_recipe_and_hash(planned):
    plan = planned()
    assert workdir.default_workdir(plan) == Path("runs") / f"toy-{plan.hash[:8]}"
    assert workdir.default_workdir(planned({"seed": 1})) != workdir.default_workdir(plan)


# ---- directories that cannot be ours ----
@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"spec": {"name": "x"}}', '{"spec": 3}'])
def test_a_plan_that_cannot_be_read(planned, tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(RunError, match=r"plan\.json: not a plan that this version reads .*another --workdir"):
        workdir.claim(tmp_path, planned(), 0)
    assert (tmp_path / "plan.json").read_text() == text


def test_checkpoints_without_a_plan_are_not_ours(planned, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(RunError, match=r"holds checkpoints but no plan\.json"):
        workdir.claim(tmp_path, planned(), 0)


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunError, match=r"cannot write there .*give another --workdir"):
            workdir.prepare_workdir(place)
    workdir.prepare_workdir(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_directory(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="cannot write there"):
        workdir.prepare_workdir(tmp_path)


@pytest.mark.slow
def test_a_finished_run_that_grows_equals_one_that_was_longer_from_the_start(toy_root, tmp_path):
    """Really trained: 6 + 4 steps, then 6 more in place, against 6 + 10 in one go; the same updates bit for bit."""
    import toy
    from rich.console import Console

    from cpt.data.preparing import open_sources
    from cpt.training import loop

    def train(steps: int, run: Path) -> list[dict]:
        config = copy.deepcopy(toy.get_config(str(toy_root)))
        config.phases.first.steps, config.phases.second.steps = 6, steps
        config.phases.second.lr.update({"kind": "constant", "value": 2e-3})
        plan = resolve(load(config))
        sources, tokenizer = open_sources(plan.spec.sources, plan.spec.tokenizer, toy_root / "stores", lambda _: None)
        workdir.prepare_workdir(run)
        workdir.claim(run, plan, workdir.newest_step(run))
        loop.train(plan, loop.Data(sources, tokenizer), run, Console(file=io.StringIO()))
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [{k: r[k] for k in ("step", "tokens", "phase", "loss", "lr", "grad_norm")} for r in rows]

    assert [r["step"] for r in train(4, tmp_path / "grown")] == list(range(1, 11))
    assert train(10, tmp_path / "grown") == train(10, tmp_path / "whole")
