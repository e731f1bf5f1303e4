"""Evaluation documents that are trained on as well are counted and told."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt.config import load
from cpt.data import tokenizing
from cpt.data.corpora._base import Document, Part
from cpt.data.preparing import open_sources
from cpt.data.store import TokenStore
from cpt.data.tokenizers.byte import byte
from cpt.data.tokenizing import Options
from cpt.evaluators.losses import spread
from cpt.evaluators.overlap import documents_of, overlap_lines, shared_documents
from cpt.plan import resolve

ROOT = Path(__file__).resolve().parents[2]


def store(folder, texts, **how):
    options = Options(**{"validation": 0.0, **how})
    tokenizing.prepare([Part("p", lambda: iter([Document(t, d) for t, d in texts]))], byte(), folder, options, {})
    return TokenStore.open(folder)


@settings(max_examples=30)
@given(st.lists(st.text("abc", min_size=1, max_size=4), max_size=12), st.lists(st.text("abc", min_size=1, max_size=4)))
def test_they_are_the_documents_of_both(tmp_path_factory, held_out, trained):
    root = tmp_path_factory.mktemp("overlap")
    if not held_out or not trained:
        return
    a = store(root / "a", [(t, "xy"[i % 2]) for i, t in enumerate(held_out)], shard_tokens=20)
    b = store(root / "b", [(t, "") for t in trained], shard_tokens=20)
    texts = {n: byte().decode(ids[:-1]) for n, _, ids in a.documents()}
    everything = np.arange(a.n_documents)
    last = {t: n for n, t in texts.items()}  # of equal ones one stands for all
    assert shared_documents(a, everything, b) == sorted(last[t] for t in set(trained) & set(last))
    assert shared_documents(a, everything, b, limit=0) in (None, [])


def test_the_documents_of_a_set_are_those_in_its_rows(tmp_path):
    a = store(tmp_path / "a", [("x" * n, "") for n in (3, 40, 5, 60, 2, 2, 30)])
    rows = a.rows(16)
    for sequences in (1, 3, rows):
        wanted = set()
        for row in spread(min(sequences, rows), rows):
            wanted |= set(a.document_at(np.arange(row * 16, row * 16 + 17)).tolist())
        assert documents_of(a, sequences, 16).tolist() == sorted(wanted)


@pytest.fixture
def leaking(tmp_path):
    """The toy recipe, whose new corpus holds all of the old one's held-out documents, and holds out fewer itself."""
    config = toy.get_config(str(tmp_path))
    config.sources.new.validation = 0.05
    plan = resolve(load(config))
    sources, _ = open_sources(plan.spec.sources, plan.spec.tokenizer, Path(plan.spec.stores), lambda _: None)
    old = [byte().decode(ids[:-1]) for _, _, ids in sources["old"].validation.documents()]
    with (tmp_path / "new.jsonl").open("a") as f:
        f.writelines(json.dumps({"text": t}) + "\n" for t in old)
    return config


def test_a_run_is_told(leaking, tmp_path):
    plan = resolve(load(leaking))
    sources, _ = open_sources(plan.spec.sources, plan.spec.tokenizer, Path(plan.spec.stores), lambda _: None)
    shared = list(overlap_lines(plan, sources, None))
    total = len(documents_of(sources["old"].validation, 12, 32))
    # The rest is held out in the other corpus too: a split depends on the text alone.
    (line,) = shared
    count = int(line.split(" of its ")[0].rpartition(" ")[2])
    assert line.startswith("evaluation.sets.old: ") and f"of its {total} documents" in line and "'new'" in line
    assert 0 < count < total
    unread = list(overlap_lines(plan, sources, 0))
    assert unread and all("not compared with the training data" in line for line in unread)


@pytest.mark.slow
def test_the_command(leaking, tmp_path):
    command = [sys.executable, "-m", "cpt.data", "overlap", f"--config={toy.__file__}:{tmp_path}"]
    command += ["--config.sources.new.validation=0.05"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "documents are in the training data of 'new' too" in done.stdout, done.stderr
    (tmp_path / "new.jsonl").unlink()  # the fixture's leak; the recipe writes it anew
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "no evaluation document is in the training data" in done.stdout
