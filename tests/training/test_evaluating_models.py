"""Models that are no run of ours, and benchmarks of any: the same losses, resumable, in the same reports."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from test_evaluating import config_of, norm, rows, train

from cpt import config as c
from cpt.config import load
from cpt.errors import ConfigError, RunError
from cpt.evaluators.summary import summarise
from cpt.models import base, convert
from cpt.optimizers import building as optimizers
from cpt.plan import resolve
from cpt.reports.page import write_report
from cpt.training.benchmarks import Benchmarks
from cpt.training.checkpoint import Checkpoints, restore
from cpt.training.evaluating import evaluate_run
from cpt.training.evaluating_models import evaluate_models, steps_of
from cpt.training.initialise import params_at
from cpt.training.machine import abstract_state
from cpt.training.merging import find_checkpoints
from cpt.training.sharding import make_mesh

ROOT = Path(__file__).resolve().parents[2]
EVERY = lambda steps: steps  # noqa: E731


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(recipe, run, directories): a run and its checkpoints as Hugging Face directories, by their step."""
    root = tmp_path_factory.mktemp("models")
    config = config_of(root)
    config.evaluation.probes = {}
    plan, run = resolve(load(config)), root / "run"
    train(plan, run)
    abstract = abstract_state(base.build(plan.spec.model), optimizers.build(plan), make_mesh(plan.spec.mesh, 8))
    folders = []
    for saved in find_checkpoints(run, [4, 12, 24]):
        params = jax.device_get(restore(saved, abstract, params_only=True)[0].params)
        folders.append(root / f"model-step{saved.step}")
        convert.write(folders[-1], plan.spec.model, params)
    config.evaluation.probes = {"norm": c.probe(kind="test_evaluating:norm")}
    return load(config), run, folders


def test_a_directory_has_the_losses_of_the_checkpoint_it_came_from(exported, tmp_path):
    recipe, run, folders = exported
    done = evaluate_models(folders, recipe, tmp_path / "out", None, print, tokens_per_step=256)
    assert done.checkpoints == 3 and done.rows == 3 * 5
    theirs = {(r["set"], r["step"]): r for r in rows(run)}
    ours = rows(tmp_path / "out")
    for row in ours:
        if (row["set"], row["step"]) in theirs:
            for key in ("nats", "tokens_scored", "bytes", "tokens"):
                assert row[key] == theirs[row["set"], row["step"]][key]
    assert {r["checkpoint"] for r in ours} == set(map(str, folders))
    assert [r["values"]["step"] for r in rows(tmp_path / "out", "probes.jsonl")] == [4, 12, 24]
    assert norm.__module__ == "test_evaluating"


def test_they_are_reported_like_a_run(exported, tmp_path):
    recipe, _, folders = exported
    evaluate_models(folders, recipe, tmp_path / "out", ["old", "new"], print)
    summary = summarise(tmp_path / "out")
    losses = {(r["set"], r["step"]): r["loss"] for r in rows(tmp_path / "out")}
    old = summary["sets"]["old"]
    assert old["forgetting"] == losses["old", 24] - losses["old", 4] and old["forgetting_ci95"]
    assert old["upstream"] and old["initial"] == losses["old", 4]
    assert "old" in write_report(tmp_path / "out").read_text()


def test_what_is_there_is_not_computed_again(exported, tmp_path, monkeypatch):
    recipe, _, folders = exported
    out = tmp_path / "out"
    evaluate_models(folders[:2], recipe, out, None, print)
    assert evaluate_models(folders, recipe, out, None, print).checkpoints == 1
    monkeypatch.setattr(convert, "read", None)
    assert evaluate_models(folders, recipe, out, None, print).checkpoints == 0
    with pytest.raises(RunError, match=r"step 4 there is .*model-step4; give another --out"):
        evaluate_models([tmp_path / "other-4"], recipe, out, None, print)


def test_steps_are_the_numbers_in_the_names():
    assert steps_of([Path("pythia-160m-step1000"), Path("pythia-160m-step512")]) == [1000, 512]
    assert steps_of([Path("base"), Path("chat")]) == [0, 1]
    with pytest.raises(ConfigError, match="a-1 and b-1 both end in 1"):
        steps_of([Path("a-1"), Path("b-1")])


def test_another_tokenizer_is_refused(exported, tmp_path):
    from cpt.data.tokenizers._base import TokenizerSpec
    from cpt.data.tokenizers.bpe import bpe

    recipe, _, folders = exported
    theirs = tmp_path / "model-4"
    theirs.mkdir()
    for file in folders[0].iterdir():
        (theirs / file.name).write_bytes(file.read_bytes())
    bpe(TokenizerSpec(kind="bpe", vocab_size=257), lambda: ["some words of it"] * 9).save(theirs / "tokenizer.json")
    with pytest.raises(ConfigError, match="its tokenizer is not that of the sets; prepare them with it"):
        evaluate_models([theirs], recipe, tmp_path / "out", None, print)


# ---- the parameters that a probe compares with ----
def test_a_probe_gets_the_parameters_of_any_checkpoint_and_of_the_start(exported):
    recipe, run, _ = exported
    plan = resolve(recipe)
    model = base.build(plan.spec.model)
    abstract = abstract_state(model, optimizers.build(plan), make_mesh(plan.spec.mesh, 8))
    checkpoints = Checkpoints(run / "checkpoints")
    first = params_at(plan, checkpoints, 0, model, abstract)
    fresh = jax.jit(model.init)(jax.random.key(plan.spec.seed))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), first, fresh))
    later = params_at(plan, checkpoints, 8, model, abstract)
    assert not jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), first, later))
    with pytest.raises(RunError, match="no checkpoint of step 9, which a probe compares with"):
        params_at(plan, checkpoints, 9, model, abstract)


# ---- benchmarks ----
@pytest.fixture
def tasks(tmp_path):
    pytest.importorskip("lm_eval")
    folder = tmp_path / "tasks"
    folder.mkdir()
    texts = [{"text": "abc abd abe " * n} for n in (1, 2, 5)]
    (folder / "texts.jsonl").write_text("".join(json.dumps(t) + "\n" for t in texts))
    (folder / "texts.yaml").write_text(
        "task: local_texts\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {folder / 'texts.jsonl'}}}}}\n"
        "test_split: test\noutput_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
        "metric_list: [{metric: bits_per_byte}]\nmetadata: {version: 1}\n"
    )
    return folder


@pytest.mark.slow
def test_benchmarks_are_rows_and_columns_and_run_once(exported, tasks, tmp_path):
    recipe, run, folders = exported
    subprocess.run(["cp", "-r", run, tmp_path / "run"], check=True)
    ours = tmp_path / "run"
    asked = Benchmarks(("local_texts",), tasks)
    done = evaluate_run(ours, lambda steps: [4, 24], None, None, False, print, asked)
    assert done.rows == done.checkpoints == 2
    found = {r["step"]: r["values"]["bits_per_byte"] for r in rows(ours, "probes.jsonl")}
    assert set(found) == {4, 24} and 1 < found[24] < 9
    assert evaluate_run(ours, lambda steps: [4, 24], None, None, False, print, asked).checkpoints == 0
    evaluate_models([folders[0], folders[2]], recipe, tmp_path / "out", None, print, asked)
    theirs = {r["step"]: r["values"]["bits_per_byte"] for r in rows(tmp_path / "out", "probes.jsonl")}
    assert theirs == found
    assert summarise(ours)["probes"]["harness/local_texts.bits_per_byte"] == {"first": found[4], "last": found[24]}


@pytest.mark.slow
def test_the_command(exported, tasks, tmp_path):
    _, run, folders = exported
    import toy

    command = [sys.executable, "-m", "cpt.evaluate", f"--models={folders[0].parent}/model-step*"]
    command += [f"--config={toy.__file__}:{run.parent}", f"--out={tmp_path / 'out'}", "--sets=old"]
    command += ["--harness=local_texts", f"--tasks={tasks}", "--limit=2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "6 rows of 3 checkpoints" in done.stdout, done.stdout + done.stderr
    failed = subprocess.run([*command[:4], f"--workdir={run}"], cwd=ROOT, capture_output=True, text=True)
    assert failed.returncode == 2 and "--workdir or --models: give one" in failed.stderr
