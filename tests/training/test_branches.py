"""Annealed branches: a child is its parent up to the branch, and the parent does not notice."""

import io
import json
import shutil
from pathlib import Path

import pytest
import toy
from rich.console import Console

from cpt import config as c
from cpt.config import load
from cpt.data.preparing import open_sources
from cpt.errors import ConfigError, RunError
from cpt.evaluators.summary import summarise
from cpt.plan import resolve
from cpt.reports.page import write_report
from cpt.training import loop, workdir
from cpt.training.branches import branch_plans, finished
from cpt.training.feed import Data
from cpt.training.run import run_training

TIMINGS = ("tokens_per_second", "data_wait_s", "step_s")


def trunk_config(root):
    """An infinite schedule over two phases of 12 updates, with branches inside the first and at both ends."""
    config = toy.get_config(str(root))
    first, second = config.phases.first, config.phases.second
    first.steps = second.steps = 12
    first.lr = c.lr(kind="infinite_cosine", peak=1e-2, warmup=c.duration(steps=2), cooldown=c.duration(steps=4),
                    decay=c.duration(steps=0))  # fmt: skip
    second.lr = c.lr(kind="continue")
    second.optimizer.policy = "keep"
    config.anneal = c.anneal(at=(8,), phase_ends=True, decay=c.duration(steps=4))
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("branches")
    plan, run = resolve(load(trunk_config(root))), root / "run"
    workdir.prepare_workdir(run)
    outcome = run_training(plan, run, Console(file=io.StringIO()))
    assert outcome.stopped_by is None and finished(plan, run)
    return root, plan, run


def rows(run, name="metrics.jsonl"):
    out = [json.loads(line) for line in (run / name).read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in out]


def test_a_branch_is_its_parent_until_it_cools_down(trained):
    _, plan, run = trained
    trunk = rows(run)
    assert plan.branch_points == (8, 12, 24)
    for folder, child in branch_plans(plan, run).items():
        at, own = child.spec.branch.at, rows(folder)
        assert [r["step"] for r in own] == list(range(1, at + 5)) == list(range(1, child.total_steps + 1))
        assert own[:at] == trunk[:at]
        # The loss of the first update of the cooldown is that of the trunk's parameters on the trunk's next batch.
        if at not in (12, 24):
            assert own[at]["loss"] == trunk[at]["loss"] and own[at]["lr"] == trunk[at]["lr"]
        assert child.phases[-1].schedule.end == pytest.approx(0.1 * plan.lr(at - 1)) and own[-1]["lr"] < own[at]["lr"]
        ledger = json.loads((folder / "ledger.json").read_text())
        assert ledger["exact"] and ledger["totals"]["tokens_consumed"] == child.total_tokens


def test_a_branch_at_a_switch_stays_with_the_data_of_before(trained):
    _, plan, run = trained
    child = next(p for p in branch_plans(plan, run).values() if p.spec.branch.at == 12)
    assert [p.name for p in child.phases] == ["first"] and child.phases[0].steps == 16
    assert {k for r in rows(run / "branches" / "step-12") for k in r if k.startswith("source/")} == {
        "source/old/loss", "source/old/tokens"}  # fmt: skip


def test_the_trunk_is_what_it_would_be_without_branches(trained, tmp_path):
    root, _, run = trained
    config = trunk_config(root)
    config.anneal = c.anneal()
    plan = resolve(load(config))
    sources, tokenizer = open_sources(plan.spec.sources, plan.spec.tokenizer, Path(plan.spec.stores), lambda _: None)
    loop.train(plan, Data(sources, tokenizer), tmp_path / "plain", Console(file=io.StringIO()))
    assert rows(tmp_path / "plain") == rows(run)


def test_the_report_shows_trunk_and_branches(trained):
    _, _, run = trained
    found = summarise(run)["branches"]
    assert [(b["step"], b["set"]) for b in found] == [(s, n) for s in (8, 12, 24) for n in ("new", "old")]
    assert all(b["finished"] and b["trunk"] is not None for b in found)
    page = write_report(run).read_text()
    assert "Annealed branches" in page and "old, annealed" in page


def test_a_child_by_hand(trained, tmp_path):
    """`--config.init.from_run=RUN --config.branch.at=N`: the same child as the automatic one, to the last digit."""
    root, _, run = trained
    config = trunk_config(root)
    config.anneal = c.anneal()
    config.init.from_run, config.branch = str(run), c.branch(at=8, decay=c.duration(steps=4))
    plan = resolve(load(config))
    assert (plan.spec.init.what, plan.spec.init.step) == ("all", 8)
    sources, tokenizer = open_sources(plan.spec.sources, plan.spec.tokenizer, Path(plan.spec.stores), lambda _: None)
    data = Data(sources, tokenizer)
    loop.train(plan, data, tmp_path / "child", Console(file=io.StringIO()))
    assert rows(tmp_path / "child") == rows(run / "branches" / "step-8")
    assert rows(tmp_path / "child", "eval.jsonl") == rows(run / "branches" / "step-8", "eval.jsonl")

    config.init.step = 9
    with pytest.raises(RunError, match=r"no full checkpoint of step 9; nearest: 8, 12, "):
        loop.train(resolve(load(config)), data, tmp_path / "none", Console(file=io.StringIO()))
    config.init.step, config.seed = 8, 1
    with pytest.raises(ConfigError, match=r"init\.what=all: .* has another past: seed: it was 0"):
        loop.train(resolve(load(config)), data, tmp_path / "other", Console(file=io.StringIO()))


def test_a_child_that_begins_again_takes_the_rows_of_where_its_parent_is_now(trained, tmp_path):
    """Killed before its first checkpoint, it begins at the parent's newest one, which may have moved on."""
    _, plan, trunk = trained
    run = Path(shutil.copytree(trunk, tmp_path / "run"))
    with (run / "metrics.jsonl").open("a") as f:
        f.write('{"step": 25, "lo')  # it is just writing
    child = tmp_path / "child"
    workdir.prepare_workdir(child)
    for step in (8, 20):
        workdir.inherit(run, child, plan, step)
        assert [r["step"] for r in rows(child)] == list(range(1, step + 1))
        with (child / "metrics.jsonl").open("a") as f:
            f.write(json.dumps({"step": step + 1}) + "\n")  # trained since, and not saved
    # Once it has a checkpoint its rows are its own.
    (child / "checkpoints" / "rolling" / "21").mkdir(parents=True)
    workdir.inherit(run, child, plan, 22)
    assert [r["step"] for r in rows(child)] == list(range(1, 22))


def test_a_run_that_began_from_hugging_face_has_branches(trained, tmp_path):
    root, _, run = trained
    config = trunk_config(root)
    config.init.from_hf = str(tmp_path / "model")
    inits = [child.spec.init for child in branch_plans(resolve(load(config)), run).values()]
    assert {(i.from_run, i.from_hf, i.what) for i in inits} == {(str(run), None, "all")}


def test_a_branch_goes_on_under_another_path_of_its_parent(trained, tmp_path):
    _, plan, run = trained
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    for folder, child in branch_plans(plan, moved).items():
        assert json.loads((folder / "plan.json").read_text())["spec"]["init"]["from_run"] == str(run)
        workdir.check(folder, child, child.total_steps - 1)


@pytest.mark.parametrize(
    ("branch", "says"),
    [
        (dict(at=0), r"branch\.at: 0 is no step of this plan of 24 steps"),
        (dict(at=25), r"branch\.at: 25 is no step"),
        (dict(at=9, floor=1.0), r"branch\.floor: must lie between 0 and 0\.0055"),
        (dict(at=9, shape="1sqrt"), r"branch\.shape: no shape '1sqrt'; did you mean '1-sqrt'"),
        (dict(at=9, decay=c.duration(fraction=2.0)), r"branch\.decay\.fraction: 2\.0 is out of range"),
    ],
)
def test_impossible_branches(toy_root, branch, says):
    config = trunk_config(toy_root)
    config.branch = c.branch(**branch)
    with pytest.raises(ConfigError, match=says):
        resolve(load(config))


def test_a_branch_point_beyond_the_end(toy_root):
    config = trunk_config(toy_root)
    config.anneal = c.anneal(at=(30,))
    with pytest.raises(ConfigError, match=r"anneal\.at: 30 is no step of this plan of 24 steps"):
        resolve(load(config))
