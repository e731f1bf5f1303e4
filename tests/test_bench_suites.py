"""The suites of `python -m cpt.bench` at toy sizes: what they measure is there, is finite, and belongs together."""

import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from cpt.bench import gpu, gpu_parts, growth, growth_data, growth_model
from cpt.bench.evaluation import bench_evaluation
from cpt.bench.peers import environment, suite
from cpt.bench.peers.talking import Peer
from cpt.bench.stamps import KIND
from cpt.bench.step import Loop, bench_step, timed_round
from cpt.bench.updates import Updates, opened, shortened
from cpt.config import load
from cpt.errors import ConfigError, RunError
from cpt.models.spec import flops_per_token
from cpt.plan import resolve
from cpt.training.accounting import BUCKETS

ROOT = Path(__file__).parents[1]


def quiet(line: str) -> None:
    """Says nothing."""


def command(*arguments: str) -> subprocess.CompletedProcess:
    env, python = os.environ | {"PYTHONPATH": str(ROOT)}, [sys.executable, "-m", "cpt.bench"]
    return subprocess.run([*python, *arguments], cwd=ROOT, env=env, capture_output=True, text=True)


# ---- in the trainer ----


@pytest.mark.slow
def test_the_trainer_is_timed_beside_its_own_update_and_a_plain_loop(toy_plan):
    said = bench_step(toy_plan, 8, 1, quiet)
    for loop in ("trainer", "bare", "plain"):
        r = said[loop]
        assert 0 < r["median_s"] <= r["p95_s"]
        assert r["tokens_per_second"] == pytest.approx(8 * 32 / r["median_s"])
        assert 0 < r["of_matmul_causal"] < r["of_matmul_palm"]
        assert 0 < r["counted"] <= said["steps"]
    assert said["steps"] == said["turn"] == 8  # one turn of the trainer, between two of each other
    for loop, ratios in said["ratios"].items():
        assert ratios == [[said["ratio"][loop]]] and 0.1 < said["ratio"][loop] == said["ratio_of_all"][loop] < 20
    assert 0 <= said["data_stall"] < 1
    assert said["peak_memory_bytes"] > 10**7
    wall = said["buckets"].pop("wall")
    assert set(said["buckets"]) == set(BUCKETS)
    assert sum(said["buckets"].values()) == pytest.approx(wall, rel=0.005)
    assert min(said["buckets"][k] for k in ("compile", "data", "step", "log", "checkpoint")) > 0


@pytest.mark.parametrize("spike", ["off", "skip"])
def test_a_bare_update_is_given_what_the_plan_of_any_run_gives_it(toy_config, spike):
    """Limits of spikes, a weight decay that varies: the compiled update takes exactly these."""
    toy_config.guard.spike = spike
    toy_config.phases.second.weight_decay.value, toy_config.phases.second.weight_decay.to = 0.2, 0.0
    plan = resolve(load(toy_config))
    updates = Updates(plan, opened(plan, quiet))
    updates.run(2)
    assert plan.varies and updates.step == 2


@pytest.mark.slow
def test_no_turn_of_others_is_in_a_step_of_the_trainer(toy_plan):
    """Whose turns take far longer here than any update, and not in its account either."""
    plan = shortened(toy_plan, 40, (KIND,))
    calls = []

    def slow(batch):
        calls.append(batch)
        time.sleep(0.5)
        return 1

    done = timed_round(plan, opened(plan, quiet), {"bare": Loop(slow, lambda: 1)}, 5, 3, 11, [{}] * 5)
    assert len(calls) == 20 and [len(t) for t in done.turns["bare"]] == [4, 4, 4, 4]
    assert [len(t) for t in done.turns["trainer"]] == [3, 3, 3]
    assert max(s.seconds for turn in done.turns["trainer"] for s in turn) < 0.45
    assert min(s.seconds for turn in done.turns["bare"] for s in turn[:-1]) >= 0.5
    wall = done.buckets.pop("wall")
    assert sum(done.buckets.values()) == pytest.approx(wall, rel=0.005)


@pytest.mark.slow
def test_the_seconds_of_a_run_sum_to_its_wall_time(toy_plan, tmp_path):
    """As `cpt.main` leaves them, of a run that evaluates, probes nothing and saves; the report shows them."""
    from cpt.evaluators.summary import summarise
    from cpt.training.run import run_training
    from cpt.training.workdir import prepare_workdir

    prepare_workdir(tmp_path)
    with open(os.devnull, "w") as nowhere:
        run_training(toy_plan, tmp_path, Console(file=nowhere))
    facts = json.loads((tmp_path / "environment.json").read_text())
    seconds = summarise(tmp_path)["seconds"]
    assert set(seconds) == set(BUCKETS)
    assert sum(seconds.values()) == pytest.approx(facts["wall_s"], rel=0.005)
    assert all(seconds[k] > 0 for k in BUCKETS)
    assert seconds["compile"] > seconds["log"]


@pytest.mark.slow
def test_evaluations_are_timed_in_the_loop_and_later(toy_plan):
    said = bench_evaluation(toy_plan, 12, 4, quiet)
    dense, later = said["dense"], said["checkpoints"]
    assert dense["evaluated_tokens"] == dense["tokens_per_step"] == 8 * 32
    assert dense["model_s"] == pytest.approx(dense["without_s"] / 3)
    assert later["checkpoints"] == 3  # of four, the loop evaluated the last one
    assert later["alone_s"] >= max(later["alone_restore_s"], later["alone_forward_s"]) > 0
    assert later["over_alone"] == pytest.approx(later["each_s"] / later["alone_s"])


def test_a_recipe_without_sets_has_no_evaluation_to_time(toy_plan):
    nothing = dataclasses.replace(toy_plan.spec.evaluation, sets={})
    plan = dataclasses.replace(toy_plan, spec=dataclasses.replace(toy_plan.spec, evaluation=nothing))
    with pytest.raises(ConfigError, match="no evaluation sets"):
        bench_evaluation(plan, 12, 4, quiet)


# ---- growth ----


@pytest.mark.slow
def test_an_update_is_timed_with_the_columns_of_a_larger_mix():
    spec = dataclasses.replace(suite.SMALL.spec, layers=1)
    assert growth_model.update_seconds(spec, 16, columns=7, at_least_s=0.01) > 0


@pytest.mark.slow
def test_every_axis_of_growth_is_measured_and_drawn(tmp_path, monkeypatch):
    """Updates, of which one was timed above, take here what their arithmetic says: compiling eight is slow."""
    monkeypatch.setattr(
        growth_model, "update_seconds", lambda spec, length, columns=1: 1e-12 * flops_per_token(spec, length)
    )
    said = growth.bench_growth(True, tmp_path, quiet)
    assert len(said["axes"]) == 9
    for name, axis in said["axes"].items():
        assert len(axis["sizes"]) == 2 and min(axis["seconds"]) > 0, name
        assert math.isfinite(axis["exponent"]), name
    assert said["axes"]["layers"]["arithmetic"] > 0.5 > said["axes"]["run length"]["arithmetic"] == 0
    assert (tmp_path / "growth.png").stat().st_size > 10_000


def test_a_host_reads_its_own_rows_of_the_batch_of_all():
    plan = growth_data.plan_of(sequences=64)
    step = plan.phases[1].first_step + 3
    whole = growth_data.batches_of(plan)[step]["tokens_BxL"]
    mine = growth_data.batches_of(plan, np.arange(4) + 4 * 8)[step]["tokens_BxL"]
    assert (mine == whole[32:36]).all()


# ---- peers ----

FAKE = """
import sys
print("a library that talks")
class make:
    def __init__(self, setting):
        self.facts, self.setting, self.n = {"name": setting["name"]}, setting, 0
    def step(self, times):
        self.n += times
        if self.n > self.setting["dies_after"]:
            sys.exit("out of memory")
        print("and goes on")
        return self.setting["loss"]
    def evaluate(self, times):
        return self.setting["loss"]
    def memory(self):
        return 1000 + self.n
"""


@pytest.fixture
def fake(tmp_path):
    """Starts a peer that only pretends to train."""

    def start(name: str, loss: float = 3.0, dies_after: int = 99) -> Peer:
        (tmp_path / f"{name}.py").write_text(FAKE)
        setting = tmp_path / f"{name}.json"
        setting.write_text(json.dumps({"name": name, "loss": loss, "dies_after": dies_after}))
        peer = Peer(str(tmp_path / name), setting)
        peer.name = name
        return peer

    return start


def test_a_peer_answers_and_what_it_prints_is_no_answer(fake):
    with fake("one") as peer:
        assert peer.facts == {"name": "one"}
        first, second = peer.ask("step"), peer.ask("evaluate", 3)
        assert first["loss"] == 3.0 and first["memory"] == 1001
        assert first["begin"] <= first["end"] <= second["begin"] <= time.monotonic()


def test_a_peer_that_ends_says_why_and_the_others_go_on(fake):
    missing: dict[str, str] = {}
    with fake("ours") as ours, fake("other", dies_after=2) as other:
        heard = dict(suite.measure([ours, other], 4, 1, missing, quiet))
    assert set(heard) == {"ours"} and "out of memory" in missing["other"]
    assert [len(heard["ours"]["answers"][w]) for w in ("step", "evaluate")] == [5, 5]
    assert len(heard["ours"]["timed"]["step"]) == 4  # the first turn compiles


def test_losses_that_differ_are_told(fake):
    with fake("ours") as ours, fake("near", 3.0 + 2e-5) as near, fake("far", 3.0 + 4e-5) as far:
        heard = dict(suite.measure([ours, near, far], 4, 1, {}, quiet))
    said = suite.told(suite.SMALL, {k: heard[k] for k in ("ours", "near")})
    assert said["same_loss"] and said["loss"]["near"]["apart"] == pytest.approx(2e-5 / 3, rel=1e-3)
    assert set(said["ratio"]) == {"step", "evaluate"} and said["ratio"]["step"]["near"] > 0
    assert not suite.told(suite.SMALL, heard)["same_loss"]


@pytest.mark.slow
def test_ours_and_plain_flax_are_one_model():
    """At the same weights to 1e-5, and still together after updates of each: same optimizer, same tokens."""
    said = suite.bench_peers(suite.SMALL, 4, None, None, quiet, names=("ours", "plain_flax"))
    assert said["same_loss"]
    assert said["loss"]["plain_flax"]["apart_at_the_end"] < 1e-5
    ours = said["loss"]["ours"]
    assert abs(ours["evaluation_at_the_end"] - ours["evaluation"]) > 1e-3  # they did train
    assert said["peers"]["plain_flax"]["memory_bytes"] > 10**7
    assert "jax_linear_attention" in said["missing"]


@pytest.mark.slow
def test_hugging_face_is_the_same_model(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    said = suite.bench_peers(suite.SMALL, 4, sys.executable, tmp_path, quiet, names=("ours", "hf_torch"))
    assert said["same_loss"] and said["loss"]["hf_torch"]["apart_at_the_end"] < 1e-5


def test_a_python_that_cannot_be_a_peers_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"--peer_python=.*cannot be used"):
        environment.peer_python(str(tmp_path / "python"), None, quiet)


def test_an_environment_that_cannot_be_made_is_a_reason_not_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(environment.NoPeer, match="could not be made"):
        environment.peer_python(None, tmp_path / "file", quiet)


# ---- GPU ----


def test_without_a_gpu_its_suite_ends_with_one_line():
    done = command("--suite=gpu")
    assert done.returncode == 2
    line = "run error: --suite=gpu: no GPU here (the backend is cpu); --small runs the plan without one"
    assert done.stderr.strip() == line


@pytest.mark.slow
@pytest.mark.parametrize("part", [p for p in gpu.ORDER if p != "peers"])
def test_each_part_of_the_plan_for_a_gpu_runs_at_toy_size(part, tmp_path, capsys):
    gpu_parts.main([part, str(tmp_path / "part.json"), "small"])
    found = json.loads((tmp_path / "part.json").read_text())
    failed = {item: said["failed"] for item, said in found.items() if "failed" in said}
    assert found and set(failed) <= {"jax.nn cudnn"}  # there is no such kernel on a CPU
    for item, said in found.items():
        assert item in failed or all(v is None or v >= 0 for v in said.values()), item
    if part == "head":
        assert found["ours"]["loss"] == pytest.approx(found["all logits"]["loss"], rel=1e-5)


def test_a_part_that_fails_or_takes_too_long_costs_only_itself(tmp_path, monkeypatch):
    said = {"good": {"x": {"ms": 1.0}}, "bad": {"failed": "no memory"}}
    monkeypatch.setattr(gpu, "PARTS", dict.fromkeys(said, 60))
    monkeypatch.setattr(gpu, "ORDER", ("bad", "good"))
    monkeypatch.setattr(gpu, "run_part", lambda name, *_: dict(said[name]))
    lines: list[str] = []
    result = gpu.bench_gpu(True, 1.0, None, tmp_path, lines.append)
    assert result["parts"] == said and json.loads((tmp_path / "gpu.json").read_text())["parts"] == said
    assert "  good · x: ms 1" in lines and "  bad · failed: no memory" in lines
    late = gpu.bench_gpu(True, 0.1, None, tmp_path, lines.append)["parts"]
    assert "not begun" in late["good"]["failed"]


@pytest.mark.slow
def test_a_part_is_stopped_at_its_limit_and_a_wrong_one_says_why():
    assert gpu.run_part("ceilings", True, None, 0.2)["failed"] == "stopped after 0 s"
    assert "KeyError" in gpu.run_part("nothing", True, None, 60)["failed"]


def test_no_gpu_is_an_error_that_the_suite_raises_itself(monkeypatch):
    monkeypatch.setattr(gpu, "backend_here", lambda: "tpu")
    with pytest.raises(RunError, match="backend is tpu"):
        gpu.bench_gpu(False, 9.0, None, None, quiet)


# ---- the command ----


@pytest.mark.slow
def test_a_suite_leaves_its_figures_with_what_they_were_measured_on(tmp_path):
    done = command("--suite=peers", "--small", "--steps=4", f"--out={tmp_path}", f"--peer_python={sys.executable}")
    if "cannot be used" in done.stderr:  # no torch in this Python, which is a mistake of whoever gave it
        assert done.returncode == 2 and done.stderr.startswith("config error: --peer_python=")
        return
    said = json.loads((tmp_path / "peers.json").read_text())
    assert {"machine", "devices", "versions", "commit", "time"} <= set(said)


def test_help_names_every_suite():
    done = command("--help")
    assert done.returncode == 0
    for name in ("loader", "prepare", "eval", "checkpoint", "resume", "peers", "growth", "gpu", "all"):
        assert f"--suite={name}" in done.stdout
