"""Merged checkpoints are averages to float precision, and ordinary checkpoints."""

import io
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import toy
from rich.console import Console

from cpt import config as c
from cpt.config import load
from cpt.data.preparing import open_sources
from cpt.errors import RunError
from cpt.models import base
from cpt.optimizers import building as optimizers
from cpt.plan import resolve
from cpt.schedules.merging import effective_weights, named_coefficients
from cpt.training import loop, workdir
from cpt.training.checkpoint import Checkpoints, restore
from cpt.training.feed import Data
from cpt.training.machine import abstract_state
from cpt.training.merging import average, find_checkpoints, merge
from cpt.training.sharding import make_mesh
from cpt.training.state import State

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def constant(tmp_path_factory):
    """(plan, run, abstract state): a run at a constant rate with a grid checkpoint at every 4th step."""
    root = tmp_path_factory.mktemp("merging")
    config = toy.get_config(str(root))
    for name in ("first", "second"):
        config.phases[name].steps = 20
        config.phases[name].lr = c.lr(kind="constant", value=5e-3)
    config.checkpoints.grid = c.duration(steps=4)
    plan, run = resolve(load(config)), root / "run"
    sources, tokenizer = open_sources(plan.spec.sources, plan.spec.tokenizer, Path(plan.spec.stores), lambda _: None)
    workdir.prepare_workdir(run)
    loop.train(plan, Data(sources, tokenizer), run, Console(file=io.StringIO()))
    tx = optimizers.build(plan)
    return plan, run, abstract_state(base.build(plan.spec.model), tx, make_mesh(plan.spec.mesh, 8))


def params_at(run, step, abstract):
    return jax.device_get(restore(find_checkpoints(run, [step])[0], abstract, params_only=True)[0].params)


def test_the_average_is_the_average(constant, tmp_path):
    _, run, abstract = constant
    steps, lines = [24, 28, 32, 36], []
    weights = named_coefficients("1-sqrt", 4)
    path = merge(run, steps, weights, tmp_path / "merged", evaluate=True, say=lines.append)
    assert path.is_dir()
    merged = params_at(tmp_path / "merged", 36, abstract)
    want = jax.tree.map(lambda *p: sum(np.float64(w) * x for w, x in zip(weights, p, strict=True)),
                        *(params_at(run, s, abstract) for s in steps))  # fmt: skip
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), merged, want)
    rows = [json.loads(line) for line in (tmp_path / "merged" / "eval.jsonl").read_text().splitlines()]
    assert {r["set"] for r in rows} == {"old", "new"} and {r["checkpoint"] for r in rows} == {"merged"}
    assert json.loads((tmp_path / "merged" / "merged.json").read_text())["steps"] == steps


def test_a_run_can_start_from_it(constant, tmp_path):
    plan, run, _ = constant
    merge(run, [32, 36], named_coefficients("uniform", 2), tmp_path / "merged", evaluate=False, say=lambda _: None)
    config = toy.get_config(plan.spec.sources["old"].path.rpartition("/")[0])
    config.phases.first.steps = config.phases.second.steps = 2
    config.init.from_run = str(tmp_path / "merged")
    other, out = resolve(load(config)), io.StringIO()
    sources, tokenizer = open_sources(other.spec.sources, other.spec.tokenizer, Path(other.spec.stores), lambda _: None)
    workdir.prepare_workdir(tmp_path / "next")
    loop.train(other, Data(sources, tokenizer), tmp_path / "next", Console(file=out, width=300))
    assert "initialised params from" in out.getvalue() and "checkpoint grid/36" in out.getvalue()


def test_frozen_gradients_through_the_checkpoints(constant, tmp_path):
    """The identity W4 on disk: checkpoints of SGD with frozen gradients average to the decayed run, in float32."""
    _, _, abstract = constant
    rng = np.random.default_rng(0)
    like = lambda scale: jax.tree.map(lambda a: np.float32(scale * rng.normal(size=a.shape)), abstract.params)  # noqa: E731
    start, gradients, rate = like(1.0), [like(1.0) for _ in range(4)], np.float32(0.05)
    saver, theta = Checkpoints(tmp_path / "checkpoints"), start
    for j in range(5):
        saver.save(
            "grid", j + 1, State(jax.device_put(theta, jax.tree.map(lambda a: a.sharding, abstract.params)), None), {}
        )
        if j < 4:
            theta = jax.tree.map(lambda p, g: p - rate * g, theta, gradients[j])
    saver.close()
    weights = named_coefficients("cosine", 5)
    merged, _, _ = average(find_checkpoints(tmp_path, range(1, 6)), weights, abstract, lambda _: None)
    decayed = start
    for w, g in zip(effective_weights(weights), gradients, strict=True):
        decayed = jax.tree.map(lambda p, x, w=w: p - rate * np.float32(w) * x, decayed, g)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), jax.device_get(merged), decayed)


def test_a_missing_step_names_the_nearest(constant):
    _, run, _ = constant
    with pytest.raises(RunError, match=r"no checkpoint of step 33; nearest: 32, 35, 30, 36"):
        find_checkpoints(run, [28, 33])


def test_the_command(constant, tmp_path):
    _, run, _ = constant

    def command(*flags):
        return subprocess.run([sys.executable, "-m", "cpt.merge", *flags], capture_output=True, text=True, cwd=ROOT)

    done = command(f"--workdir={run}", "--steps=36,32,28", "--weights=linear", f"--out={tmp_path / 'm'}")
    assert done.returncode == 0, done.stderr
    assert "the updates between them count 0.667, 0.333" in done.stdout and "merged: old" in done.stdout
    for flags, says in (
        ((f"--workdir={run}", "--steps=28,33", f"--out={tmp_path / 'n'}"), "no checkpoint of step 33; nearest: 32"),
        ((f"--workdir={run}", "--steps=28,x", f"--out={tmp_path / 'n'}"), "--steps: whole numbers"),
        ((f"--workdir={run}", "--steps=28,32", "--weights=lin", f"--out={tmp_path / 'n'}"), "did you mean 'linear'"),
        ((f"--workdir={run}", "--steps=28,32"), "--out: required"),
    ):
        wrong = command(*flags)
        assert wrong.returncode == 2 and says in wrong.stderr and len(wrong.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "n").exists()
