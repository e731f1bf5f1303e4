"""What is shown while a run trains says what is so at that moment."""

import io
import itertools
import json
import re
from types import SimpleNamespace

import pytest
import toy
from rich.console import Console

from cpt.config import load
from cpt.plan import resolve
from cpt.training import run
from cpt.training.progress import TrainingProgress


@pytest.fixture
def shown(toy_plan):
    """A progress that prints a line for every update, and the lines."""
    out = io.StringIO()
    progress = TrainingProgress(toy_plan, Console(file=out, width=300), line_every_s=0.0)
    return SimpleNamespace(progress=progress, plan=toy_plan, lines=lambda: out.getvalue().splitlines())


def update(plan, step, **more):
    row = {"step": step + 1, "loss": 2.5, "lr": 0.0125, "tokens_per_second": 12_345.6}
    return row | {f"source/{c.name}/tokens": 0 for c in plan.phase_at(step).columns} | more


def evaluation(plan, step, name, loss):
    return {"set": name, "loss": loss, "tokens": plan.clock(step).tokens}


def test_a_line_says_where_the_run_is(shown):
    shown.progress.trained(update(shown.plan, 4), None)
    shown.progress.trained(update(shown.plan, 5), 125.9, 0.052)
    assert shown.lines() == [
        "first 5/20  loss 2.500  lr 0.0125  12.3k tok/s",
        "first 6/20  loss 2.500  lr 0.0125  12.3k tok/s  eval 5 %  eta 2:05",
    ]


def test_the_gap_is_that_of_what_the_phase_can_forget(shown):
    """Since the phase began, with the highest and where it was; of the old set alone."""
    for step, old, new in ((20, 1.0, 3.0), (22, 1.5, 2.5), (24, 1.25, 2.0)):
        for name, loss in (("old", old), ("new", new)):
            shown.progress.evaluated(step, evaluation(shown.plan, step, name, loss))
        shown.progress.trained(update(shown.plan, step), None)
    gaps = [re.search(r"  old (.*)", line)[1] for line in shown.lines()]
    assert gaps == ["+0.00", "+0.50 (peak +0.50 at 512 tokens)", "+0.25 (peak +0.50 at 512 tokens)"]
    assert not any("new " in line for line in shown.lines())


def test_replay_is_its_share_of_what_was_trained_on(shown):
    phase = shown.plan.phase_at(20)
    names = {c.role: f"source/{c.name}/tokens" for c in phase.columns}
    shown.progress.trained(update(shown.plan, 20, **{names["replay"]: 64, names["new"]: 192}), None)
    shown.progress.trained(update(shown.plan, 21, **{names["replay"]: 0, names["new"]: 256}), None)
    assert [re.search(r"replay ([\d.]+ %)", line)[1] for line in shown.lines()] == ["25.0 %", "12.5 %"]


def test_the_share_of_evaluations_is_that_of_now(tmp_path, monkeypatch):
    """Once evaluated, each update that follows makes the share smaller: it is told with every one."""
    told = []
    monkeypatch.setattr(TrainingProgress, "trained", lambda self, row, left, share: told.append((row["step"], share)))
    run.prepare_workdir(tmp_path / "run")
    run.run_training(resolve(load(toy.get_config(str(tmp_path)))), tmp_path / "run", Console(quiet=True))
    evaluated = {json.loads(line)["step"] for line in (tmp_path / "run" / "eval.jsonl").open()}
    quiet = [(a, b) for (_, a), (step, b) in itertools.pairwise(told) if step - 1 not in evaluated]
    assert len(quiet) > 10
    assert all(after < before for before, after in quiet)
    assert all(0 < share < 1 for _, share in told)
