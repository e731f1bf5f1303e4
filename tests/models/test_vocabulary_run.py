"""A run that starts on another tokenizer, and the command that changes a model's tokenizer."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import toy
from rich.console import Console
from safetensors.numpy import load_file

from cpt import config as c
from cpt.config import load
from cpt.data.tokenizers._base import TokenizerSpec
from cpt.data.tokenizers._base import load as load_tokenizer
from cpt.data.tokenizers.bpe import bpe
from cpt.data.tokenizers.byte import ByteTokenizer
from cpt.errors import ConfigError, DataError, RunError
from cpt.models import base, convert
from cpt.models.spec import ModelSpec
from cpt.models.vocabulary import VocabularySpec
from cpt.plan import resolve
from cpt.sections import parse
from cpt.training import checkpoint
from cpt.training.exchange import import_model
from cpt.training.initialise import params_at
from cpt.training.machine import make_machine
from cpt.training.run import run_training
from cpt.training.spec import InitSpec
from cpt.training.vocabulary import Change, change_vocabulary, of_folder
from cpt.training.workdir import prepare_workdir

ROOT = Path(__file__).resolve().parents[2]


class Killed(BaseException):
    """Stands for kill -9 inside one process."""


def plan_of(root, **fields):
    """The toy recipe, 4 updates in each phase, with other sections."""
    config = toy.get_config(str(root))
    for name in ("first", "second"):
        config.phases[name].steps = 4
    for name, section in fields.items():
        setattr(config, name, section)
    return resolve(load(config))


def toy_run(root, workdir, **fields):
    """Train that; its lines."""
    plan = plan_of(root, **fields)
    prepare_workdir(workdir)
    told = io.StringIO()
    run_training(plan, workdir, Console(file=told, width=400))
    return told.getvalue()


def on_another_tokenizer(init, vocab_size=320, **model):
    """The fields of a run whose tokenizer is a BPE of 300 ids."""
    sizes = dict(layers=1, width=32, heads=2, vocab_size=vocab_size, context=32)
    tokenizer = c.tokenizer(kind="bpe", vocab_size=300, train_on="new")
    return dict(tokenizer=tokenizer, model=c.model(**sizes, **model), init=init)


@pytest.fixture(scope="module")
def brought(tmp_path_factory):
    """(root, run, folder): a made-up model on bytes, as a Hugging Face directory and as what `import` makes of it."""
    root = tmp_path_factory.mktemp("vocabulary")
    spec = ModelSpec(layers=1, width=32, heads=2, vocab_size=257, context=32)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0.1, 0.1, x.shape).astype(np.float32), base.build(spec).abstract())
    ByteTokenizer().save(root / "tokenizer.json")
    convert.write(root / "hf", spec, params, root / "tokenizer.json")
    import_model(root / "hf", root / "run", print)
    toy.write_corpora(root)
    return root, root / "run", root / "hf"


def losses(run):
    return [(r["step"], r["loss"]) for r in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())]


@pytest.mark.slow
def test_a_run_starts_with_an_extended_vocabulary_and_resumes(brought, tmp_path, monkeypatch):
    """From the directory and from the run it is the same run; cut in the middle it goes on to the same digits."""
    root, run, folder = brought
    gaussian = c.vocabulary(method="gaussian", seed=3)
    of_folder_ = on_another_tokenizer(c.init(from_hf=str(folder), vocabulary=gaussian))
    told = toy_run(root, tmp_path / "a", **of_folder_)
    assert "257 tokens become 300; 257 keep their row, 43 get one by gaussian" in told
    assert "0 of 257 before, 20 of 320 now" in told
    assert f"from the Hugging Face directory {folder}, with the vocabulary of this run's tokenizer" in told
    save = checkpoint.Checkpoints.save

    def killed_at_6(self, kind, step, *args, **kwargs):
        if step > 5:
            self.wait()  # until what was begun before is on disk
            raise Killed
        return save(self, kind, step, *args, **kwargs)

    of_run = on_another_tokenizer(c.init(from_run=str(run), vocabulary=gaussian))
    monkeypatch.setattr(checkpoint.Checkpoints, "save", killed_at_6)
    with pytest.raises(Killed):
        toy_run(root, tmp_path / "b", **of_run)
    monkeypatch.undo()
    told = toy_run(root, tmp_path / "b", **of_run)
    assert "initialised from own checkpoint" in told and "tokens become" not in told
    assert losses(tmp_path / "a") == losses(tmp_path / "b") and len(losses(tmp_path / "a")) == 8
    # A probe may ask for the parameters of step 0, which no checkpoint has.
    plan = plan_of(root, **of_run)
    machine, checkpoints = make_machine(plan), checkpoint.Checkpoints(tmp_path / "b" / "checkpoints")
    tokenizer = load_tokenizer(next((root / "stores").glob("tokenizer-*.json")))
    start = params_at(plan, checkpoints, 0, machine.model, machine.abstract, tokenizer)
    _, before = convert.read(folder)
    assert np.array_equal(
        np.asarray(start["layers"]["0"]["mlp"]["up"]["kernel"]), before["layers"]["0"]["mlp"]["up"]["kernel"]
    )
    byte_of = {piece.text: i for i, piece in enumerate(load_tokenizer(folder).pieces())}
    kept = [(i, byte_of[p.text]) for i, p in enumerate(tokenizer.pieces()) if p.text in byte_of]
    ours, theirs = np.array(kept).T
    assert len(kept) == 257
    assert np.array_equal(np.asarray(start["embed"]["embedding"])[ours], before["embed"]["embedding"][theirs])
    assert np.array_equal(np.asarray(start["head"]["kernel"])[:, ours], before["head"]["kernel"][:, theirs])


def test_what_a_run_cannot_start_from_is_said(brought, tmp_path):
    root, run, folder = brought
    mean = c.vocabulary(method="mean")

    def fails(error, line, init, vocab_size=320, **model):
        with pytest.raises(error, match=line) as raised:
            toy_run(root, tmp_path / "no", **on_another_tokenizer(init, vocab_size, **model))
        assert "\n" not in str(raised.value)

    start = c.init(from_hf=str(folder), vocabulary=mean)
    fails(DataError, r"tokenizer: its 300 ids exceed model.vocab_size=290", start, 290)
    line = r"init.from_hf: model.rotary_fraction is 0.25 in the Hugging Face directory .*, 0.5 here"
    fails(RunError, line, start, rotary_fraction=0.5)
    bpe(TokenizerSpec(vocab_size=257), lambda: iter(["abc"])).save(tmp_path / "other.json")
    wrong = c.vocabulary(method="mean", tokenizer_of=str(tmp_path / "other.json"))
    fails(
        ConfigError,
        r"tokenizer_of=.*other.json: not the tokenizer that .*run was trained with",
        c.init(from_run=str(run), vocabulary=wrong),
    )
    (tmp_path / "words.json").write_text('{"the": 1}')
    none = c.vocabulary(method="mean", tokenizer_of=str(tmp_path / "words.json"))
    fails(DataError, r"words.json: .*cannot read this file", c.init(from_hf=str(folder), vocabulary=none))
    for given, line in (
        (dict(vocabulary=mean), "a model from scratch has none to change"),
        (dict(from_run=str(run), what="params+opt", vocabulary=mean), "init.what=params.opt brings moments of rows"),
    ):
        with pytest.raises(ConfigError, match=f"init.vocabulary: {line}"):
            parse(InitSpec, c.init(**given).to_dict(), "init")
    both = c.init(from_run=str(run), vocabulary=mean, transform=c.transform(kind="g_stack"))
    with pytest.raises(ConfigError, match=r"init: vocabulary and transform; do one with"):
        parse(InitSpec, both.to_dict(), "init")


def test_the_command_writes_a_directory(brought, tmp_path):
    root, run, folder = brought
    text = [json.loads(line)["text"] for line in (root / "new.jsonl").read_text().splitlines()]
    bpe(TokenizerSpec(vocab_size=290), lambda: iter(text)).save(tmp_path / "new.json")

    def command(*argv):
        line = [sys.executable, "-m", "cpt.convert", "vocabulary", *map(str, argv)]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(line, cwd=root, capture_output=True, text=True, timeout=120, env=env)
        return done.returncode, done.stdout, done.stderr

    asked = f"--workdir={run}", f"--tokenizer={tmp_path}/new.json", "--extend", "--multiple=64", f"--out={tmp_path}/out"
    code, out, err = command(*asked, "--method=gaussian", "--option=scale=1e-4", "--seed=5")
    assert code == 0, err
    record = json.loads((tmp_path / "out" / "vocabulary.json").read_text())
    tokenizer = load_tokenizer(tmp_path / "out")
    assert f"257 tokens become {tokenizer.vocab_size}" in out and f"init.from_hf={tmp_path}/out" in out
    assert record["kept"] == 257 and record["made"] == tokenizer.vocab_size - 257 > 20 and record["rows"] == 320
    assert record["options"] == {"scale": 1e-4} and record["tokenizer"] == tokenizer.hash
    new, old = (load_file(f / "model.safetensors") for f in (tmp_path / "out", folder))
    for name, tensor in old.items():
        assert np.array_equal(new[name][: len(tensor)], tensor), name
    assert convert.inspect(tmp_path / "out").problem is None
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == 256
    assert command(*asked) == (
        2,
        "",
        f"config error: --out={tmp_path}/out: is there already; name another folder, or remove it first\n",
    )


def test_the_command_says_what_is_wrong(brought, tmp_path):
    """Through its function: what the shell sees is in `test_convert_command`."""
    _, _, folder = brought
    gaussian, out = VocabularySpec(method="gaussian"), tmp_path / "out"
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in folder.iterdir():
        if "token" not in file.name:
            (bare / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ConfigError, match=r"--tokenizer_of: .*bare has no tokenizer; name the one"):
        of_folder(str(bare), None, "--")
    model = of_folder(str(bare), str(folder), "--")
    with pytest.raises(DataError, match=r"none.json: the tokenizer cannot be read"):
        change_vocabulary(model, gaussian, Change(tmp_path / "none.json"), out, print)
    change_vocabulary(model, gaussian, Change(folder), out, print)  # its own: nothing changes
    before, after = (load_file(f / "model.safetensors") for f in (folder, out))
    assert all(np.array_equal(before[name], after[name]) for name in before | after)
    focus = VocabularySpec(method="focus", auxiliary="none.vec")
    with pytest.raises(ConfigError, match=r"--auxiliary=none.vec: no such file"):
        change_vocabulary(model, focus, Change(folder), tmp_path / "more", print)
    assert not (tmp_path / "more").exists()
