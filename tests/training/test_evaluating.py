"""Checkpoints evaluated after the fact: the loop's digits, only what is missing, sets and probes added later."""

import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import toy
from rich.console import Console

from cpt import config as c
from cpt import evaluate
from cpt.config import load
from cpt.data.preparing import open_sources
from cpt.errors import ConfigError, DataError, RunError
from cpt.evaluators.rows import read_run
from cpt.evaluators.summary import summarise
from cpt.plan import resolve
from cpt.training import evaluating, loop, workdir
from cpt.training.evaluating import evaluate_run
from cpt.training.feed import Data

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("eval.jsonl", "eval_sequences.jsonl", "probes.jsonl")


def norm(context):
    """A probe of a user's own: the norm of all parameters, and where it was asked."""
    options = context.read(scale=1.0)

    def ask(params, step):
        square = sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(jax.device_get(params)))
        return {"norm": options["scale"] * np.sqrt(square), "step": step}

    return ask


def config_of(root: Path):
    """Four sets, two of them only at the edges, and a probe."""
    config = toy.get_config(str(root))
    config.phases.first.steps = config.phases.second.steps = 12
    for name in ("old", "new"):
        config.evaluation.sets[f"{name}_full"] = c.evaluation_set(source=name, sequences=20, at="edges")
    config.evaluation.probes = {"norm": c.probe(kind=f"{__name__}:norm", at="edges", first=2)}
    config.checkpoints = c.checkpoints(rolling=c.duration(steps=12), grid=c.duration(steps=4))
    return config


def train(plan, run: Path) -> None:
    sources, tokenizer = open_sources(plan.spec.sources, plan.spec.tokenizer, Path(plan.spec.stores), lambda _: None)
    workdir.prepare_workdir(run)
    loop.train(plan, Data(sources, tokenizer), run, Console(file=io.StringIO()))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluating")
    plan, run = resolve(load(config_of(root))), root / "run"
    train(plan, run)
    return plan, run


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run that a test may change."""
    subprocess.run(["cp", "-r", trained[1], tmp_path / "run"], check=True)
    return tmp_path / "run"


def rows(run: Path, name: str = "eval.jsonl") -> list[dict]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def evaluated(run: Path, steps="all", names=None, added=None, again=False, said=None):
    say = (said if said is not None else []).append
    return evaluate_run(run, evaluate.steps_of(steps), names, added, again, say)


# ---- in the loop ----
def test_sets_of_the_edges_and_probes_are_asked_where_the_plan_says(trained):
    plan, run = trained
    at = {name: [r["step"] for r in rows(run) if r["set"] == name] for name in plan.spec.evaluation.sets}
    assert at["old_full"] == at["new_full"] == [0, 12, 24]
    assert at["old"] == at["new"] == sorted({0, 1, 2, 4, 10, 12, 13, 14, 15, 16, 17, 20, 22, 24})
    probed = rows(run, "probes.jsonl")
    assert [r["step"] for r in probed] == [0, 1, 12, 13, 24]
    assert all(r["probe"] == "norm" and r["values"]["step"] == r["step"] for r in probed)
    assert {r["phase"] for r in probed} == {"first", "second"}


def test_what_was_measured_is_in_the_summary(trained):
    summary = summarise(trained[1])
    first, *_, last = rows(trained[1], "probes.jsonl")
    assert summary["probes"]["norm.norm"] == {"first": first["values"]["norm"], "last": last["values"]["norm"]}
    assert set(summary["sets"]) == {"old", "new", "old_full", "new_full"}
    full = summary["sets"]["old_full"]  # two points tell a change and no excursion
    assert full["forgetting"] is not None and full["gap"] is None and summary["sets"]["old"]["gap"] is not None
    assert summary["worst_case_loss"] is not None


@pytest.mark.parametrize("stop", [12, 13, 18])
def test_a_resumed_run_has_every_row_once(trained, tmp_path, monkeypatch, stop):
    plan, whole = trained
    run, original, made = tmp_path / "run", loop.Recorder.trained, []

    class Stopped(Exception):
        pass

    class Kept(loop.Checkpoints):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    def dying(self, step, *args):
        if step == stop:
            raise Stopped
        return original(self, step, *args)

    monkeypatch.setattr(loop, "Checkpoints", Kept)
    monkeypatch.setattr(loop.Recorder, "trained", dying)
    with pytest.raises(Stopped):
        train(plan, run)
    made[0].wait()  # what another process would have lost is still being written by this one
    monkeypatch.undo()
    train(plan, run)
    for name in NAMES:
        assert rows(run, name) == rows(whole, name)


# ---- across checkpoints ----
def test_the_rows_are_those_of_the_loop_bit_for_bit(run):
    loops = {(r["set"], r["step"]) for r in rows(run)}
    done = evaluated(run, again=True)
    assert done.checkpoints == 6 and done.unequal == [] and done.compared == 14  # 4, 12, 16, 20, 24; 12, 24
    new = [r for r in rows(run) if r["checkpoint"] != "in-loop"]
    assert new and not {(r["set"], r["step"]) for r in new} & loops  # what is compared is not written twice
    assert evaluated(run, again=True).compared == 14
    kinds = {r["step"]: r["checkpoint"] for r in new}
    assert kinds == {4: "grid/4", 8: "grid/8", 16: "grid/16", 20: "grid/20"}
    ours = {r["step"]: r["values"] for r in rows(run, "probes.jsonl") if r["checkpoint"] != "in-loop"}
    assert set(ours) == {4, 8, 16, 20} and ours[8]["step"] == 8


def test_without_the_loops_rows_it_writes_the_same(run):
    """As if the loop had evaluated nothing: every row of a checkpoint is the loop's, to the last digit."""
    loops = {(r["set"], r["step"]): r for r in rows(run)}
    for name in NAMES:
        (run / name).write_text("")
    evaluated(run)
    both = [r for r in rows(run) if (r["set"], r["step"]) in loops]
    assert len(both) == 14
    for row in both:
        assert {**row, "checkpoint": "in-loop"} == loops[row["set"], row["step"]]


def test_a_row_of_another_model_is_found_out(run):
    changed = rows(run)
    (target,) = (r for r in changed if (r["set"], r["step"]) == ("new", 16))
    target["nats"] = np.nextafter(target["nats"], np.inf)
    (run / "eval.jsonl").write_text("".join(json.dumps(r) + "\n" for r in changed))
    done = evaluated(run, again=True)
    assert len(done.unequal) == 1 and done.unequal[0].startswith("new at step 16: ")


def test_only_what_is_missing_is_computed(run, monkeypatch):
    done = evaluated(run)
    new = [(r["set"], r["step"]) for r in rows(run) if r["checkpoint"] != "in-loop"]
    assert new == [
        *[("new_full", 4), ("old_full", 4)],
        *[(name, 8) for name in ("new", "old", "new_full", "old_full")],
        *[("new_full", 16), ("old_full", 16), ("new_full", 20), ("old_full", 20)],
    ]
    assert done.rows == len(new) + 4  # the probe at 4, 8, 16 and 20
    before = {name: (run / name).read_bytes() for name in NAMES}
    monkeypatch.setattr(evaluating, "restore", None)  # would fail
    assert evaluated(run).checkpoints == 0
    assert before == {name: (run / name).read_bytes() for name in NAMES}


@pytest.mark.parametrize("kill", range(4))
def test_killed_anywhere_it_goes_on(run, monkeypatch, kill):
    whole = run.with_name("whole")
    subprocess.run(["cp", "-r", run, whole], check=True)
    evaluated(whole)

    class Killed(BaseException):
        pass

    original, left = evaluating.Writer.write, kill

    def dying(self, at, checkpoint, params):
        nonlocal left
        if left == 0:
            with self.files[1].open("a") as f:
                f.write('{"step": 4, "se')  # in the middle of a line
            raise Killed
        left -= 1
        original(self, at, checkpoint, params)

    monkeypatch.setattr(evaluating.Writer, "write", dying)
    with pytest.raises(Killed):
        evaluated(run)
    monkeypatch.undo()
    done = evaluated(run)
    assert done.checkpoints == 4 - kill
    for name in NAMES:
        assert rows(run, name) == rows(whole, name)


def test_a_damaged_checkpoint_is_named_and_left_out(run):
    for file in (run / "checkpoints/grid/8").rglob("*"):
        if file.is_file() and file.stat().st_size > 500:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    said = []
    done = evaluated(run, said=said)
    assert done.skipped == ["grid/8"] and any(line.startswith("checkpoint grid/8 is damaged (") for line in said)
    assert 8 not in {r["step"] for r in rows(run)} and {4, 16, 20} <= {r["step"] for r in rows(run)}
    assert "damaged and left out: grid/8" in evaluate.told(done)


def test_steps_and_sets_are_chosen(run):
    evaluated(run, "8,20", ["old", "norm"])
    new = [(r["set"], r["step"]) for r in rows(run) if r["checkpoint"] != "in-loop"]
    assert new == [("old", 8)]  # the loop has the other one
    assert [r["step"] for r in rows(run, "probes.jsonl") if r["checkpoint"] != "in-loop"] == [8, 20]
    assert evaluate.steps_of("every:8")([4, 8, 12, 16]) == [8, 16]
    for text in ("every:0", "some", "1,x", ""):
        with pytest.raises(ConfigError, match="--steps="):
            evaluate.steps_of(text)
    with pytest.raises(RunError, match="no checkpoint of step 9; nearest: 4, 8, 12"):
        evaluated(run, "9")
    with pytest.raises(ConfigError, match="--sets=odl: no such set or probe; did you mean 'old'"):
        evaluated(run, names=["odl"])


def test_sets_are_added_later_and_the_report_knows_them(run, trained):
    config = config_of(trained[1].parent)
    config.evaluation.sets = {"tail": c.evaluation_set(source="old", sequences=5, tags=("probe",))}
    config.evaluation.probes = {"twice": c.probe(kind=f"{__name__}:norm", options={"scale": 2.0})}
    done = evaluated(run, names=["tail", "twice"], added=load(config))
    assert done.rows == 12
    read = read_run(run)
    assert read.curves["tail"].steps.tolist() == [4, 8, 12, 16, 20, 24]
    assert read.learned_in("tail") == 0 and read.is_upstream("tail") and len(read.documents("tail")) == 5
    summary = summarise(run)
    assert summary["sets"]["tail"]["forgetting"] is not None and "twice.norm" in summary["probes"]
    clash = config_of(trained[1].parent)
    clash.evaluation.sets.old.sequences = 3
    with pytest.raises(ConfigError, match=r"evaluation\.sets\.old: the run has another one of this name"):
        evaluated(run, added=load(clash))


def test_a_store_that_changed_is_not_compared_with_the_one_before(run):
    sets = json.loads((run / "eval_sets.json").read_text())
    sets["old"]["documents"][0] += 1
    (run / "eval_sets.json").write_text(json.dumps(sets))
    with pytest.raises(DataError, match=r"evaluation\.sets\.old: its rows are no longer those of the run"):
        evaluated(run)


def test_what_a_superseded_plan_evaluated_goes_with_its_checkpoints(run, trained):
    evaluated(run)
    before = {name: rows(run, name) for name in NAMES}
    config = config_of(trained[1].parent)
    config.phases.second.lr.peak = 2e-2
    workdir.claim(run, resolve(load(config)), 12)
    for name in NAMES:
        assert rows(run, name) == [r for r in before[name] if r["step"] <= 12] != before[name]
    assert not (run / "checkpoints/grid/16").exists() and (run / "checkpoints/grid/8").exists()


def test_a_resumed_run_keeps_what_is_known_of_added_sets(run, trained):
    config = config_of(trained[1].parent)
    config.evaluation.sets = {"tail": c.evaluation_set(source="old", sequences=5, tags=("upstream",))}
    evaluated(run, names=["tail"], added=load(config))
    before = json.loads((run / "eval_sets.json").read_text())["tail"]
    for kind in ("anchor", "rolling"):
        shutil.rmtree(run / "checkpoints" / kind / "24", ignore_errors=True)
    train(trained[0], run)
    assert json.loads((run / "eval_sets.json").read_text())["tail"] == before


def test_a_probe_may_not_change_its_meaning_half_way(run, trained):
    config = config_of(trained[1].parent)
    config.evaluation.probes.norm.options = {"scale": 2.0}
    with pytest.raises(ConfigError, match=r"evaluation\.probes\.norm\.options"):
        workdir.check(run, resolve(load(config)), 12)
    config.evaluation.probes.norm = c.probe(kind=f"{__name__}:norm", at="grid")  # asked more often is no other number
    workdir.check(run, resolve(load(config)), 12)


def test_the_time_of_a_probe_is_not_that_of_an_update(trained, tmp_path):
    config = config_of(trained[1].parent)
    config.evaluation.probes = {"slow": c.probe(kind=f"{__name__}:slow", first=4)}
    train(resolve(load(config)), tmp_path / "run")
    metrics = rows(tmp_path / "run", "metrics.jsonl")
    assert max(r["step_s"] for r in metrics[1:4] + metrics[13:16]) < 0.5


def slow(context):
    def ask(params, step):
        time.sleep(0.5)
        return {"step": step}

    return ask


def test_another_number_of_devices_is_no_obstacle(run):
    """A plan of eight devices, on the one that is here."""
    for name in ("plan.json", "config.json"):
        stored = json.loads((run / name).read_text())
        spec = stored["spec"] if name == "plan.json" else stored
        spec["mesh"] = {"data": 8, "fsdp": 1, "tensor": 1}
        (run / name).write_text(json.dumps(stored))
    said = []
    done = evaluated(run, "8", said=said)
    assert done.checkpoints == 1 and any("other devices than those of the run" in line for line in said)


def test_two_at_a_time_are_refused(run):
    with workdir.lock(run, name=".evaluating"), pytest.raises(RunError, match="another process evaluates there"):
        evaluated(run)


@pytest.mark.slow
def test_the_command(run):
    command = [sys.executable, "-m", "cpt.evaluate", f"--workdir={run}", "--sets=old,new", "--again"]
    # Where the probe is.
    env = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{ROOT / 'tests'}"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert "10 of 10 rows equal those of the loop bit for bit" in done.stdout and "report:" in done.stdout
    again = subprocess.run(command[:-1], cwd=ROOT, capture_output=True, text=True, env=env)
    assert "nothing is missing: every checkpoint has its rows" in again.stdout
    for flags, says in ((["--workdir=nowhere"], "no plan.json in it"), ([], "--workdir or --models: give one")):
        failed = subprocess.run([*command[:3], *flags], cwd=ROOT, capture_output=True, text=True, env=env)
        assert failed.returncode == 2 and says in failed.stderr and failed.stderr.count("\n") == 1
    listed = subprocess.run([*command[:3], "--list"], cwd=ROOT, capture_output=True, text=True, env=env)
    assert listed.returncode == 0 and "evaluation.probes.<name>.kind" in listed.stdout
