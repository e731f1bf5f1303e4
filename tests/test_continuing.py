"""`configs/continue_*.py` on tiny models, from the stores to the report; and the command that lets one speak."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from cpt.cli import read_plan
from cpt.continuing import Given
from cpt.data.shift import divergence
from cpt.data.store import TokenStore
from cpt.data.tokenizers.byte import ByteTokenizer
from cpt.errors import ConfigError
from cpt.models import convert
from cpt.models.base import build
from cpt.models.spec import LlamaSpec, ModelSpec
from cpt.overrides import config_files

ROOT = Path(__file__).resolve().parents[1]
TEXTS = {"old": "abcdefghijklm", "new": "nopqrstuvwxyz"}
SIZES = dict(layers=1, width=32, heads=2, vocab_size=257, context=32)
MODELS = {"pythia": ModelSpec(**SIZES), "llama": LlamaSpec(**SIZES, kv_heads=1, ff=48, tied=True)}


def run(root, *argv):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", *map(str, argv)]
    return subprocess.run(line, cwd=root, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two stores and two models, as files."""
    root = tmp_path_factory.mktemp("continuing")
    ByteTokenizer().save(root / "tokenizer.json")
    for name, letters in TEXTS.items():
        rng = random.Random(name)
        words = ["".join(rng.choices(letters, k=rng.randint(2, 6))) for _ in range(60)]
        lines = [json.dumps({"text": " ".join(rng.choices(words, k=40))}) for _ in range(200)]
        (root / f"{name}.jsonl").write_text("\n".join(lines))
        made = run(
            root, "cpt.prepare", f"--input={name}.jsonl", "--tokenizer=tokenizer.json", f"--out={name}",
            "--validation=0.1", "--workers=0",
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
    for name, spec in MODELS.items():
        params = build(spec).init(jax.random.key(0))
        convert.write(root / f"tiny-{name}", spec, params, root / "tokenizer.json")
    return root


def recipe(root, name, tokens="8e3", *more, new="new", old="old"):
    words = [str(root / f"tiny-{name}"), str(root / new), str(root / old), tokens, *more]
    return f"{ROOT / 'configs' / f'continue_{name}.py'}:{','.join(words)}"


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_recipe_runs_from_files_to_a_report_and_the_model_speaks(root, name):
    done = run(root, "cpt.main", f"--config={recipe(root, name)}", f"--workdir=run-{name}")
    assert done.returncode == 0, done.stderr
    for part in ("shift: strong", "replay: 25 % of each batch", "peak: ", "batch: 8 rows of 32", "schedule: from 0 up"):
        assert part in done.stdout, done.stdout
    assert "initialised params from the Hugging Face directory" in done.stdout
    ledger = json.loads((root / f"run-{name}" / "ledger.json").read_text())
    assert ledger["exact"] and [row["source"] for row in ledger["phases"]] == ["new", "replay(replay)"]
    summary = json.loads((root / f"run-{name}" / "summary.json").read_text())
    assert summary["sets"]["new"]["final"] < summary["sets"]["new"]["initial"] and "replay" in summary["sets"]
    asked = ("cpt.generate", f"--workdir=run-{name}", "--prompt=no", "--tokens=9", "--samples=2", "--seed=3")
    said = run(root, *asked)
    assert said.returncode == 0 and said.stdout.startswith("no") and "\n--- sample 2\nno" in said.stdout, said.stderr
    assert "checkpoint anchor/31 of run-" in said.stderr


def test_what_is_chosen_follows_from_shift_and_budget(root):
    def planned(*words, **stores):
        spec = read_plan(recipe(root, "pythia", *words, **stores), []).spec
        return spec, spec.phases["continued"]

    spec, strong = planned("8e3")
    assert (strong.replay.share, strong.lr.peak, strong.lr.floor) == (0.25, 1e-4, pytest.approx(1e-5))
    assert (spec.batch.sequences, spec.batch.length) == (8, 32) and spec.init.from_hf == str(root / "tiny-pythia")
    assert spec.model.compute_dtype == "float32" and spec.evaluation.sets["replay"].tags == ("upstream",)
    _, weak = planned("8e3", "weak")
    assert (weak.replay.share, weak.lr.peak) == (0.05, 5e-5)
    twice, long = planned("60e3")
    assert twice.sources["new"].epochs == 2 and "new: up to 2 passes" in twice.notice
    assert long.lr.warmup.steps == 10 and long.replay.max_repeats == 1
    spec, same = planned("8e3", new="old", old="new")
    assert same.replay.share == 0.25
    override = "--config.phases.continued.replay.share=0.1"
    assert read_plan(recipe(root, "pythia"), [override]).spec.phases["continued"].replay.share == 0.1


def test_a_store_of_another_tool_is_read_in_its_order_and_cannot_tell_what_is_forgotten(root):
    (shard,) = TokenStore.open(root / "old").shards
    spec = read_plan(recipe(root, "pythia", old=shard.prefix.relative_to(root)), []).spec
    assert spec.sources["replay"].order == "stored" and set(spec.evaluation.sets) == {"new"}
    assert "what is forgotten is not measured" in spec.notice


def test_mistakes_are_one_line(root):
    for words, line in (
        ("models/a,stores/b", r"write FILE\.py:MODEL_DIR,NEW_STORE,REPLAY_STORE,TOKENS"),
        ("a,b,c,many", r"'many' is no number of tokens; write 1e9"),
        ("a,b,c,nan", r"'nan' is no number of tokens"),
        ("a,b,c,1e9,stong", r"'stong' is no shift; did you mean 'strong'\?"),
    ):
        with pytest.raises(ConfigError, match=line):
            Given.read(words)
    for config, line in (
        (recipe(root, "pythia", "9e5"), r"passes over the .* it holds, and beyond 4"),
        (recipe(root, "pythia", "90"), r"TOKENS: 90 are less than one batch of 8 rows of 32 tokens"),
        (
            recipe(root, "pythia").replace("tiny-pythia", "tiny-llama"),
            r"its family is llama, this recipe is for gpt_neox",
        ),
        (recipe(root, "llama").replace("tiny-llama", "none"), r"none: no such folder"),
    ):
        with pytest.raises(ConfigError, match=line):
            read_plan(config, [])
    for flags, line in (
        (("--prompt=a",), "--workdir, --hf: give one of them"),
        (("--hf=tiny-llama",), "--prompt: required"),
        (("--hf=tiny-llama", "--prompt=a", "--step=3"), "--step: a Hugging Face directory has no steps"),
        (("--hf=tiny-llama", "--prompt=ab", "--tokens=31"), "ask for at most 30"),
    ):
        done = run(root, "cpt.generate", *flags)
        assert done.returncode == 2 and line in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_divergence_of_stores(root, monkeypatch):
    """By hand: the letters differ, blanks and ends of documents are shared."""
    old, new = (TokenStore.open(root / name) for name in TEXTS)
    p, q = (np.bincount(s.read(0, s.n_tokens), minlength=257) / s.n_tokens for s in (old, new))
    m = (p + q) / 2
    by_hand = sum(0.5 * x[i] * np.log2(x[i] / m[i]) for x in (p, q) for i in range(257) if x[i])
    assert divergence(old, new) == pytest.approx(by_hand) and 0.6 < by_hand < 1
    assert divergence(old, old) == 0 and divergence(old, new, 6400) == pytest.approx(by_hand, abs=0.05)


def test_commas_within_the_argument_of_a_recipe():
    assert config_files("a.py,c/b.py:x,y,1e9") == ["a.py", "c/b.py:x,y,1e9"]
    assert config_files("b.py:x,y,z/a.py") == ["b.py:x,y", "z/a.py"] and config_files("a.py") == ["a.py"]
