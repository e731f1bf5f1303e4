"""Snapshots after a switch: the worst update is found, the rows are those of a dense evaluation, resumed or not."""

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from cpt.config import load
from cpt.plan import resolve
from cpt.training.run import run_training
from cpt.training.snapshots import beside_the_worst, spaced

FIRST = 12
SILENT = Console(file=io.StringIO())


# ---- which are evaluated ---------------------------------------------------------------------------------------------
@given(st.integers(0, 80), st.integers(2, 81), st.integers(1, 9), st.booleans())
def test_the_peak_of_a_curve_with_one_is_found_to_the_update(peak, ring, spacing, sharp):
    peak = min(peak, ring)
    curve = {s: -abs(s - peak) if sharp else -((s - peak) ** 2) / 7 for s in range(ring + 1)}
    losses, kept = {0: {"a": curve[0]}}, set(range(1, ring + 1))
    wanted, asked = spaced(sorted(kept), losses, spacing), 0
    assert wanted and np.diff([0, *wanted]).max() <= spacing
    while wanted:
        for step in wanted:
            kept.remove(step)
            losses[step] = {"a": curve[step]}
            asked += 1
        wanted = beside_the_worst(losses, kept)
    assert max(losses, key=lambda s: losses[s]["a"]) == peak
    assert {peak - 1, peak + 1} & set(range(ring + 1)) <= set(losses)
    assert asked <= -(-ring // spacing) + 1 + 2 * (spacing.bit_length() + 1)


def test_each_set_has_a_worst_of_its_own():
    losses = {0: {"a": 1.0, "b": 9.0}, 8: {"a": 5.0, "b": 2.0}, 16: {"a": 2.0, "b": 1.0}}
    assert beside_the_worst(losses, range(1, 16)) == [4, 12]  # b falls from the start: 4 as well
    losses[4] = {"a": 3.0, "b": 3.0}
    assert beside_the_worst(losses, {1, 2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15}) == [2, 6, 13]
    assert beside_the_worst(losses, ()) == []


def test_a_loss_that_is_not_finite_is_not_the_worst():
    losses = {0: {"a": float("nan")}, 4: {"a": 1.0}, 8: {"a": float("inf")}, 12: {"a": 0.5}}
    assert beside_the_worst(losses, range(1, 12)) == [2, 6]


def test_evaluated_steps_count_for_the_spacing():
    assert spaced([1, 2, 4, 5, 6, 7, 9, 10], {0, 3, 8}, 3) == [6, 10]
    assert spaced([3], {0}, 10) == [3]


# ---- in a run --------------------------------------------------------------------------------------------------------
def trained(config, workdir, **grid):
    config.phases.second.evaluate = {"geometric": 0, "every": {"steps": 20}, **grid}
    run_training(resolve(load(config)), workdir, SILENT)
    return rows(workdir)


def rows(workdir):
    lines = [json.loads(line) for line in (workdir / "eval.jsonl").read_text().splitlines()]
    sequences = [json.loads(line) for line in (workdir / "eval_sequences.jsonl").read_text().splitlines()]
    return {(r["set"], r["step"]): (r["nats"], s["nats"], r["tokens"]) for r, s in zip(lines, sequences, strict=True)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_are_those_of_a_dense_evaluation_and_hold_the_worst(toy_config, tmp_path, dtype):
    toy_config.model.compute_dtype = dtype
    toy_config.checkpoints = {"rolling": {"steps": 40}}
    dense = trained(toy_config, tmp_path / "dense", dense=FIRST)
    ring = trained(toy_config, tmp_path / "ring", snapshots=FIRST)
    extra = set(ring) - set(trained(toy_config, tmp_path / "neither"))
    assert {step for _, step in extra} < {*range(21, 21 + FIRST)}
    assert all(ring[key] == dense[key] for key in ring)
    for name in ("old", "new"):
        curve = {step: dense[name, step][0] for of, step in dense if of == name and 20 <= step <= 20 + FIRST}
        found = {step: ring[name, step][0] for of, step in ring if of == name and 20 <= step <= 20 + FIRST}
        top = max(found, key=found.get)
        beside = {top - 1, top + 1} & set(curve)
        assert beside <= set(found)
        assert all(curve[top] >= curve[s] for s in beside)  # a summit of the whole curve
    metrics = [(tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in ("dense", "ring")]
    losses = [[(r["step"], r["loss"]) for r in map(json.loads, lines)] for lines in metrics]
    assert losses[0] == losses[1]


def test_a_run_that_is_stopped_among_the_snapshots_keeps_what_it_found(toy_config, tmp_path, monkeypatch):
    from cpt.training import loop

    whole = trained(toy_config, tmp_path / "whole", snapshots=FIRST)  # with a checkpoint every 5 updates
    real = loop.Snapshots.at

    def cut(self, step, params, nats):
        if step == 28:
            raise KeyboardInterrupt
        real(self, step, params, nats)

    monkeypatch.setattr(loop.Snapshots, "at", cut)
    with pytest.raises(KeyboardInterrupt):
        trained(toy_config, tmp_path / "cut", snapshots=FIRST)
    monkeypatch.undo()
    run_training(resolve(load(toy_config)), tmp_path / "cut", SILENT)
    assert rows(tmp_path / "cut") == whole


def test_snapshots_longer_than_its_phase_ends_with_it(toy_config, tmp_path):
    toy_config.phases.first.evaluate = {"geometric": 0, "every": {"steps": 20}, "snapshots": 50}
    found = trained(toy_config, tmp_path)
    assert {step for _, step in found if step < 20} > {0}
    assert len(found) == len(set(found))


def test_snapshots_must_be_a_number_of_updates(toy_config):
    from cpt.errors import ConfigError

    toy_config.phases.second.evaluate.snapshots = -1
    with pytest.raises(ConfigError, match=r"phases.second.evaluate.snapshots: -1 is not at least 0"):
        load(toy_config)


def test_snapshots_need_a_set_of_the_grid(toy_config):
    from cpt.errors import ConfigError

    toy_config.phases.second.evaluate.snapshots = 5
    for evaluated in toy_config.evaluation.sets.values():
        evaluated.at = "edges"
    with pytest.raises(ConfigError, match=r"phases.second.evaluate.snapshots: no evaluation set is at='grid'"):
        load(toy_config)


def test_an_update_is_not_charged_for_the_evaluation_of_snapshots(toy_config, tmp_path, monkeypatch):
    import time

    from cpt.training.evaluation import Evaluation

    real, asked = Evaluation.__call__, []

    def slow(self, params, kinds):
        if kinds := tuple(kinds):
            asked.append(kinds)
            time.sleep(0.3)
        return real(self, params, kinds)

    monkeypatch.setattr(Evaluation, "__call__", slow)
    toy_config.phases.first.steps, toy_config.phases.second.steps = 3, 6
    trained(toy_config, tmp_path, snapshots=5)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(asked) >= 3 + 3  # the ends of phases, and at least as many snapshots
    assert max(r["step_s"] for r in rows) < 0.8  # of those at least 0.9 s would be in one update
