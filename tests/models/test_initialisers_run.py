"""`init.transform` and `python -m cpt.convert grow`: runs that start from a grown model, directories of one."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import initialiser_cases as cases
import jax
import numpy as np
import pytest
import toy
from rich.console import Console

from cpt import config as c
from cpt import convert as command
from cpt.config import load
from cpt.data.tokenizers.byte import ByteTokenizer
from cpt.errors import ConfigError, RunError
from cpt.models import convert
from cpt.models.spec import LlamaSpec, ModelSpec
from cpt.plan import resolve
from cpt.training.checkpoint import Checkpoints
from cpt.training.exchange import Export
from cpt.training.growing import SIZES, Growth, grow_model, parse_options, target_of
from cpt.training.initialise import params_at
from cpt.training.machine import make_machine
from cpt.training.run import run_training
from cpt.training.workdir import prepare_workdir

ROOT = Path(__file__).resolve().parents[2]
SMALL = dict(layers=1, width=16, heads=2, vocab_size=257, context=32)
LARGE = SMALL | dict(layers=2, width=32, heads=4)


def run(root, workdir, model, **init):
    """The toy recipe, 4 updates on one source; what it says of its start."""
    config = toy.get_config(str(root))
    config.model = c.model(**model)
    config.order = ("first",)
    del config.phases["second"]
    config.phases.first.steps = 4
    config.checkpoints.rolling.steps = 2
    config.evaluation.sets = {"old": c.evaluation_set(source="old", sequences=8)}
    config.init = c.init(**{k: str(v) if k.startswith("from") else v for k, v in init.items()})
    plan, told = resolve(load(config)), io.StringIO()
    prepare_workdir(workdir)
    assert run_training(plan, workdir, Console(file=told, width=500)).step == 4
    return next(line for line in told.getvalue().splitlines() if line.startswith("initialised"))


def start_of(root, model, **init):
    """The parameters of step 0, as a probe asks for them."""
    config = toy.get_config(str(root))
    config.model, config.init = c.model(**model), c.init(**init)
    machine, checkpoints = make_machine(resolve(load(config))), Checkpoints(root / "none")
    try:
        return params_at(machine.plan, checkpoints, 0, machine.model, machine.abstract)
    finally:
        checkpoints.close()


def losses(workdir):
    return [json.loads(line)["loss"] for line in (workdir / "eval.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """(root, workdir) of a finished run of the small model."""
    root = tmp_path_factory.mktemp("grow")
    run(root, root / "parent", SMALL)
    return root, root / "parent"


def test_a_run_starts_from_a_grown_model_and_resumes(parent, tmp_path):
    root, small = parent
    transform = c.transform(kind="lemon", options={"seed": 1})
    said = run(root, tmp_path / "large", LARGE, from_run=small, transform=transform)
    assert said.startswith("initialised params from ") and "parent, checkpoint anchor/4, transformed by lemon" in said
    assert said.endswith("optimizer: fresh")
    grown = losses(tmp_path / "large")
    assert grown[0] == pytest.approx(losses(small)[-1], rel=1e-5)  # where the small one ended
    assert grown[-1] < grown[0] - 0.05
    # A preempted run goes on from its own checkpoint, whatever became of the parent.
    shutil.rmtree(tmp_path / "large" / "checkpoints" / "anchor")
    (tmp_path / "large" / "eval.jsonl").write_text("")
    small.rename(root / "elsewhere")
    try:
        again = run(root, tmp_path / "large", LARGE, from_run=small, transform=transform)
    finally:
        (root / "elsewhere").rename(small)
    assert again == "initialised from own checkpoint rolling/2 (step 2)"
    assert losses(tmp_path / "large")[-1] == grown[-1]


def test_a_grown_directory_and_a_transform_start_alike(parent, tmp_path):
    root, small = parent
    growth = Growth("hypercloning", {"width": 32})
    asked, said = Export(tokenizer=None), []
    target = grow_model(small, None, tmp_path / "hf", growth, asked, said.append)
    assert (target.width, target.heads, target.ff_dim, target.layers) == (32, 4, 128, 1)
    assert said == ["hypercloning: 11,536 parameters become 29,216"]
    assert "not trained since" in (tmp_path / "hf" / "README.md").read_text()
    assert "- from: parent" in (tmp_path / "hf" / "README.md").read_text()
    model = LARGE | dict(layers=1)
    run(root, tmp_path / "a", model, from_hf=tmp_path / "hf")
    run(root, tmp_path / "b", model, from_run=small, transform=c.transform(kind="hypercloning"))
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert losses(tmp_path / "a")[0] == pytest.approx(losses(small)[-1], rel=1e-5)
    stacked = start_of(root, LARGE, from_hf=str(tmp_path / "hf"), transform=c.transform(kind="g_stack"))
    theirs = convert.read(tmp_path / "hf")[1]["layers"]["0"]["mlp"]["up"]["kernel"]
    assert all(np.array_equal(stacked["layers"][i]["mlp"]["up"]["kernel"], theirs) for i in "01")


def test_scratch_is_drawn_by_the_transform(parent, tmp_path):
    root, small = parent
    said = run(root, tmp_path / "run", SMALL, transform=c.transform(kind="spike_no_more"))
    assert said == "initialised from scratch, transformed by spike_no_more; optimizer: fresh"
    with pytest.raises(ConfigError, match=r"'spike_no_more' draws parameters anew, and .*parent would not be read"):
        run(root, tmp_path / "no", SMALL, from_run=small, transform=c.transform(kind="spike_no_more"))
    with pytest.raises(ConfigError, match=r"'tvr' starts from a trained model; give init\.from_run or init\.from_hf"):
        run(root, tmp_path / "no", SMALL, transform=c.transform(kind="tvr"))


@pytest.mark.parametrize(
    ("init", "error", "says"),
    [
        (dict(transform=dict(kind="lemmon")), ConfigError, r"init\.transform\.kind: no 'lemmon'.*did you mean 'lemon'"),
        (dict(transform=dict(options={"seed": 1})), ConfigError, r"init\.transform\.kind: required, but not given"),
        (dict(from_run="parent", what="params+opt", transform=dict(kind="lemon")), ConfigError, r"leave init\.what"),
        (dict(from_run="parent", transform=dict(kind="g_stack")), ConfigError, r"model\.width: is 16 in the source"),
        (dict(from_run="parnt", transform=dict(kind="lemon")), ConfigError, r"parnt: no such folder; name a directory"),
        (dict(from_run="parent", step=3, transform=dict(kind="lemon")), RunError, r"no checkpoint of step 3; nearest"),
        (
            dict(from_run="parent", transform=dict(kind="fusing")),
            ConfigError,
            r"init\.transform\.models: 'fusing' needs",
        ),
    ],
)
def test_transforms_that_cannot_be_are_named(parent, tmp_path, init, error, says):
    root, _ = parent
    init = init | {"transform": c.transform(**init["transform"])}
    if "from_run" in init:
        init["from_run"] = root / init["from_run"]
    with pytest.raises(error, match=says):
        run(root, tmp_path / "run", LARGE, **init)


def written(folder, spec, seed=0, tokenizer=True):
    if tokenizer:
        ByteTokenizer().save(folder.with_suffix(".json"))
    convert.write(folder, spec, cases.made_up(spec, seed), folder.with_suffix(".json") if tokenizer else None)
    return folder


def grow_command(**given):
    """`python -m cpt.convert grow` in this process, with these flags."""
    flags = dict.fromkeys(("hf", "workdir", "step", "tokenizer", *SIZES))
    flags |= dict(option=[], models=[], dtype="float32", shard_bytes=10**9, overwrite=False)
    return command.grow(SimpleNamespace(**flags | given))


def test_the_command_grows_a_directory(tmp_path, capsys):
    spec = LlamaSpec(layers=2, width=16, heads=4, kv_heads=2, ff=24, vocab_size=257, context=32, tied=True)
    folder, out = written(tmp_path / "hf", spec), tmp_path / "wide"
    argv = ["grow", f"--hf={folder}", "--kind=hypercloning", "--width=32", "--option=snr_db=20", f"--out={out}"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "cpt.convert", *argv]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=200, env=env)
    assert done.returncode == 0, done.stderr
    assert f"start from it with --config.init.from_hf={out}\n" in done.stdout
    grown, params = convert.read(out)
    assert (grown.width, grown.heads, grown.kv_heads, grown.head_dim, grown.ff) == (32, 8, 4, 4, 48)
    before = cases.logits(*convert.read(folder))
    assert np.ptp(before) > 1 and np.abs(cases.logits(grown, params) - before).max() < 1e-5
    assert (out / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert "`hypercloning` (snr_db=20)" in (out / "README.md").read_text()
    grow_command(hf=str(out), kind="weight_selection", width=16, out=str(tmp_path / "back"))
    assert convert.read_spec(tmp_path / "back") == convert.read_spec(folder)
    with pytest.raises(ConfigError, match=r"wide: is there already"):
        grow_command(hf=str(folder), kind="hypercloning", width=32, out=str(out))
    with pytest.raises(ConfigError, match=r"grow: give one of --hf and --workdir"):
        grow_command(kind="hypercloning", out=str(out))
    with pytest.raises(ConfigError, match=r"'lir' draws parameters anew"):
        grow_command(hf=str(folder), kind="lir", out=str(tmp_path / "x"))


def test_the_command_averages(tmp_path, capsys):
    folders = [written(tmp_path / f"m{i}", cases.NEOX, i, tokenizer=False) for i in range(3)]
    out = tmp_path / "mean"
    grow_command(hf=str(folders[0]), models=list(map(str, folders[1:])), kind="fusing", out=str(out))
    *ones, mean = (jax.tree.leaves(convert.read(folder)[1]) for folder in [*folders, out])
    assert all(np.allclose(m, (a + b + c) / 3, atol=1e-6) for a, b, c, m in zip(*ones, mean, strict=True))
    assert not (out / "tokenizer.json").exists()


def test_models_of_other_tokenizers_are_not_averaged(tmp_path, parent):
    _, small = parent
    other = written(tmp_path / "other", ModelSpec(**SMALL))
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": 257, "content": "<x>"})
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(RunError, match=r"--models: .*other was trained with another tokenizer"):
        grow_model(small, None, tmp_path / "x", Growth("fusing", models=[other]), Export(), print)
    assert not (tmp_path / "x").exists()


def test_sizes_and_options_of_the_command():
    assert target_of(cases.LLAMA, {"width": 48}).kv_heads == 3
    assert target_of(cases.NEOX, {"width": 64, "ff": 100}).ff_dim == 100
    with pytest.raises(ConfigError, match=r"--kv_heads: 2 times 40 / 32, the growth of the width, is no whole number"):
        target_of(cases.LLAMA, {"width": 40, "heads": 5})
    with pytest.raises(ConfigError, match=r"--kv_heads: models of the family gpt_neox do not have it"):
        target_of(cases.NEOX, {"kv_heads": 2})
    given = parse_options(["seed=3", "blocks=cancel", "weights=[1, 2.5]", "per_layer=True"])
    assert given == {"seed": 3, "blocks": "cancel", "weights": [1, 2.5], "per_layer": True}
    for text in ("seed", "=3", "a b=1"):
        with pytest.raises(ConfigError, match=r"is not of the form name=value"):
            parse_options([text])


def test_the_probe_that_compares_with_the_start_finds_the_grown_model(parent):
    root, small = parent
    start = start_of(root, LARGE, from_run=str(small), transform=c.transform(kind="lemon"))
    assert start["layers"]["1"]["mlp"]["up"]["kernel"].shape == (32, 128)
    assert not np.any(np.asarray(start["layers"]["1"]["mlp"]["down"]["kernel"]))
