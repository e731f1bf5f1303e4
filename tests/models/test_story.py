"""`configs/story.py` from the first command to the last, on two artificial languages."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import toy

from cpt.cli import read_plan
from cpt.data.tokenizers._base import load
from cpt.errors import ConfigError
from cpt.models import convert
from cpt.models.base import build
from cpt.models.vocabulary import VocabularySpec
from cpt.training import exchange
from cpt.training.vocabulary import Change, change_vocabulary, of_folder

ROOT = Path(__file__).resolve().parents[2]
OLD, NEW = 320, 400
SOURCES = {"prose": "old", "code": "new"}
SMALL = [
    "--config.model.layers=1", "--config.model.width=32", "--config.model.heads=2", "--config.batch.length=32",
    "--config.batch.sequences=8",
]  # fmt: skip


def run(root, *argv):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", *map(str, argv)]
    done = subprocess.run(line, cwd=root, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def part(name, vocab_size, phase, steps):
    """The arguments that train a part of the story."""
    corpora = [f"--config.sources.{s}.{k}={v}" for s, file in SOURCES.items() for k, v in (
        ("corpus", "jsonl"), ("path", f"{file}.jsonl"), ("validation", 0.1))]  # fmt: skip
    sizes = [f"--config.model.vocab_size={vocab_size}", f"--config.tokenizer.vocab_size={vocab_size}"]
    tokens = f"--config.phases.{phase}.tokens={steps * 8 * 32}"
    recipe = f"--config={ROOT}/configs/story.py:{name}"
    return ["cpt.main", recipe, f"--workdir=runs/{name}", *corpora, *sizes, tokens, "--config.batch.length=32",
            "--config.batch.sequences=8"]  # fmt: skip


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """(folder, what the second part said)."""
    root = tmp_path_factory.mktemp("story")
    toy.write_corpora(root)
    run(root, *part("pretrain", OLD, "prose", 60), *SMALL[:3])
    run(root, "cpt.convert", "export", "--workdir=runs/pretrain", "--out=models/story")
    told = run(root, *part("continue", NEW, "code", 40))
    run(root, "cpt.report", "--workdir=runs/pretrain,runs/continue", "--out=story.html")
    return root, told


def rows(root, part, set_name):
    lines = map(json.loads, (root / "runs" / part / "eval.jsonl").read_text().splitlines())
    return [row for row in lines if row["set"] == set_name]


def nats_by_hand(spec, params, windows_RxM):
    """Summed over the targets of the windows, with a softmax written out."""
    model = build(spec)
    logits = np.asarray(model.apply(params, jnp.asarray(windows_RxM[:, :-1])) @ model.head(params), np.float64)
    largest = logits.max(-1, keepdims=True)
    log_p = logits - largest - np.log(np.exp(logits - largest).sum(-1, keepdims=True))
    return -np.take_along_axis(log_p, windows_RxM[:, 1:, None].astype(np.int64), -1).sum()


@pytest.mark.slow
def test_the_story_from_the_first_command_to_the_last(story):
    root, told = story
    assert f"{OLD} tokens become {NEW}; {OLD} keep their row, {NEW - OLD} get one by gaussian" in told
    assert "from the Hugging Face directory models/story, with the vocabulary of this run's tokenizer" in told

    # The prose has no letter of the new merges, so it is cut as it was: the same tokens, and the model loses only what
    # the probability of the new tokens takes.
    before, after = rows(root, "pretrain", "prose")[-1], rows(root, "continue", "prose")[0]
    assert [before[k] for k in ("bytes", "tokens_scored")] == [after[k] for k in ("bytes", "tokens_scored")]
    assert 0 < after["bits_per_byte"] - before["bits_per_byte"] < 0.1 < 1 < before["bits_per_byte"]
    # Of the new text a token is longer now, so nats per token say nothing, and bits per byte do.
    ends = rows(root, "pretrain", "code")[-1], *(rows(root, "continue", "code")[i] for i in (0, -1))
    longer = [row["bytes"] / row["tokens_scored"] for row in ends]
    assert longer[1] == longer[2] > 1.3 * longer[0] and max(r["bytes"] for r in ends) < 1.02 * ends[0]["bytes"]
    assert ends[2]["bits_per_byte"] < 0.9 * ends[1]["bits_per_byte"]

    ledger = json.loads((root / "runs/continue/ledger.json").read_text())
    (replayed,) = [e for e in ledger["phases"] if e["role"] == "replay"]
    assert ledger["exact"] and replayed["source"] == "replay(prose)" and replayed["tokens_consumed"] == 40 * 8 * 32 // 4
    sets = json.loads((root / "runs/continue/summary.json").read_text())["sets"]
    last = rows(root, "continue", "prose")[-1]
    assert sets["prose"]["upstream"] and sets["prose"]["bits_per_byte"] == {
        "initial": after["bits_per_byte"], "final": last["bits_per_byte"]
    }  # fmt: skip

    page = re.sub(r"<script.*?</script>|<[^>]+>", " ", (root / "story.html").read_text(), flags=re.DOTALL)
    assert "Runs have different tokenizers: losses are in bits per byte of text" in page
    assert "not the same text" not in page and "nats per token" not in page
    for name, curve in (("pretrain", rows(root, "pretrain", "prose")), ("continue", rows(root, "continue", "prose"))):
        first, final, n = curve[0]["bits_per_byte"], curve[-1]["bits_per_byte"], curve[0]["bytes"]
        assert re.search(rf"{name}\s+{first:.3f}\s+{final:.3f}\s+.{{0,200}}{n:,}", page, re.DOTALL), name


@pytest.mark.slow
def test_bits_per_byte_of_both_parts_are_those_computed_by_hand(story):
    """From the ids on disk, the text that they spell, and the parameters of the last checkpoints."""
    root, _ = story
    for name, vocab_size in (("pretrain", OLD), ("continue", NEW)):
        workdir = root / "runs" / name
        spec = exchange.model_of_run(workdir)
        params, meta = exchange.params_of(exchange.checkpoint_of_run(workdir, None), spec)
        (tokenizer,) = [t for t in map(load, (root / "stores").glob("tokenizer-*.json")) if t.hash == meta["tokenizer"]]
        assert tokenizer.vocab_size == vocab_size == spec.vocab_size
        for source in SOURCES:
            folders = [f for f in (root / "stores").glob(f"{source}-*") if load(f).hash == tokenizer.hash]
            ids = np.fromfile(next(folders[0].glob("validation*.bin")), np.uint16).astype(np.int32)
            n = (len(ids) - 1) // 32
            windows_RxM = np.stack([ids[32 * i : 32 * i + 33] for i in range(n)])
            text = tokenizer.decode(ids[1 : 32 * n + 1])
            bits = nats_by_hand(spec, params, windows_RxM) / math.log(2) / len(text.encode())
            said = rows(root, name, source)[-1]
            assert said["bits_per_byte"] == pytest.approx(bits, rel=1e-5) and said["bytes"] == len(text.encode())


@pytest.mark.slow
def test_the_extended_model_says_what_it_said(story, tmp_path):
    """On text of before: the same logits of the old tokens, and the same choices."""
    root, _ = story
    (file,) = [f for f in (root / "stores").glob("tokenizer-*.json") if load(f).vocab_size == NEW]
    brought = of_folder(str(root / "models/story"), None, "--")
    change_vocabulary(brought, VocabularySpec(method="gaussian"), Change(file), tmp_path / "out", print)
    text = json.loads((root / "old.jsonl").read_text().splitlines()[0])["text"]
    logits = []
    for folder in (root / "models/story", tmp_path / "out"):
        spec, params = convert.read(folder)
        tokens_1xL = jnp.asarray(load(folder).encode_batch([text])[0][None, :32])
        model = build(spec)
        logits.append(np.asarray(model.apply(params, tokens_1xL) @ model.head(params)))
    old, new = logits
    assert new.shape == (1, 32, NEW)
    np.testing.assert_allclose(new[..., :OLD], old, atol=1e-6)
    assert np.array_equal(new.argmax(-1), old.argmax(-1))


def test_without_the_model_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"models/story: no model there; train it with `:pretrain` and export it"):
        read_plan(f"{ROOT}/configs/story.py:continue", [])
    with pytest.raises(ConfigError, match=r"no such part of the story  \(parts: pretrain, continue\)"):
        read_plan(f"{ROOT}/configs/story.py:pretrained", [])
