"""Quality subsets: the best documents up to the budget, in the order of the store, whenever the work was stopped."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt.data import selecting
from cpt.data.corpora._base import Document, Part
from cpt.data.selecting import best, select
from cpt.data.store import TokenStore
from cpt.data.tokenizers.byte import byte
from cpt.data.tokenizing import Options, prepare
from cpt.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [Document(f"document {i} {'x' * (i * 7 % 40)}", "ab"[i % 2]) for i in range(300)]


@pytest.fixture
def store(tmp_path):
    options = Options(validation=0.1, replay_holdout=0.1, shard_tokens=2000)
    prepare([Part("p", lambda: iter(DOCUMENTS))], byte(), tmp_path / "all", options, {})
    return tmp_path / "all"


def by_length(documents):
    """A score that can be told by looking: the length."""
    return np.array([float(len(ids)) for ids in documents])


def texts(folder, split="train"):
    return [byte().decode(ids) for _, _, ids in TokenStore.open(folder, split).documents()]


@given(
    st.lists(st.tuples(st.floats(0, 3), st.integers(1, 9)), min_size=1, max_size=30), st.integers(1, 80), st.booleans()
)
def test_the_best_are_taken_until_one_does_not_fit(documents, budget, worst):
    scores, sizes = (np.array(x) for x in zip(*documents, strict=True))
    key = -scores if worst else scores
    try:
        chosen, threshold = best(scores, sizes, budget, worst)
    except DataError:
        assert sizes[np.argsort(key, kind="stable")[0]] > budget
        return
    assert 0 < sizes[chosen].sum() <= budget
    assert not chosen.all() or sizes.sum() <= budget
    left = ~chosen
    assert not left.any() or key[chosen].max() <= key[left].min()
    assert threshold == scores[chosen][np.argmax(key[chosen])]
    if left.any():  # the next one would not have fitted
        following = np.flatnonzero(left)[np.argmin(key[left])]
        assert sizes[chosen].sum() + sizes[following] > budget


def test_what_has_no_score_or_is_short_is_not_taken():
    chosen, _ = best(np.array([np.nan, 1.0, 0.5, np.inf]), np.array([5, 5, 2, 5]), 100, min_tokens=3)
    assert chosen.tolist() == [False, True, False, False]
    with pytest.raises(DataError, match="--keep_tokens: 3 hold none of the 1 documents"):
        best(np.array([1.0]), np.array([5]), 3)


def test_a_subset_is_a_store_in_the_order_of_the_old_one(store, tmp_path):
    made = select(store, lambda: by_length, {"kind": "length"}, tmp_path / "hq", 2000)
    train = texts(store)
    longest = max(len(t) for t in texts(tmp_path / "hq"))
    assert texts(tmp_path / "hq", "validation") == texts(store, "validation")
    assert texts(tmp_path / "hq", "replay_holdout") == texts(store, "replay_holdout")
    assert set(texts(tmp_path / "hq")) <= set(train) and made["selection"]["tokens"] <= 2000
    assert made["selection"]["threshold"] == longest + 1 and made["selection"]["documents"] == len(
        texts(tmp_path / "hq")
    )
    assert [t for t in train if len(t) < longest] == [t for t in texts(tmp_path / "hq") if len(t) < longest]
    assert set(TokenStore.open(tmp_path / "hq").domains) == {"a", "b"}
    entry = made["splits"]["train"]
    assert entry["text_bytes"] == sum(len(t.encode()) for t in texts(tmp_path / "hq"))
    control = select(store, lambda: by_length, {"kind": "length"}, tmp_path / "lq", 2000, worst=True)
    assert control["selection"]["threshold"] > made["selection"]["threshold"]


def test_scores_are_kept_for_another_budget_and_after_a_stop(store, tmp_path, monkeypatch):
    monkeypatch.setattr(selecting, "CHUNK_TOKENS", 500)
    asked = []

    def stops(documents):
        if len(asked) == 4:
            raise KeyboardInterrupt
        asked.append(len(documents))
        return by_length(documents)

    with pytest.raises(KeyboardInterrupt):
        select(store, lambda: stops, {"kind": "length"}, tmp_path / "hq", 2000)
    scored = []
    made = select(
        store, lambda: lambda d: scored.append(len(d)) or by_length(d), {"kind": "length"}, tmp_path / "hq", 2000
    )
    assert sum(asked) + sum(scored) == len(texts(store)) and sum(asked) > 20
    whole = select(store, lambda: by_length, {"kind": "length"}, tmp_path / "whole", 2000)
    assert made["splits"] == whole["splits"]

    def nobody():
        raise AssertionError("scored again")

    assert select(store, nobody, {"kind": "length"}, tmp_path / "hq", 2000) == made
    with pytest.raises(DataError, match="holds a finished store with another description"):
        select(store, nobody, {"kind": "length"}, tmp_path / "hq", 3000)
    (tmp_path / "hq" / "manifest.json").unlink()
    assert select(store, nobody, {"kind": "length"}, tmp_path / "hq", 3000)["selection"]["tokens"] > 2000
    (tmp_path / "hq" / "manifest.json").unlink()
    with pytest.raises(AssertionError, match="scored again"):  # by another scorer
        select(store, nobody, {"kind": "other"}, tmp_path / "hq", 3000)


def test_mistakes(store, tmp_path):
    with pytest.raises(ConfigError, match="--keep_tokens: 0 is out of range"):
        select(store, lambda: by_length, {}, tmp_path / "x", 0)
    with pytest.raises(DataError, match="holds no finished store"):
        select(tmp_path, lambda: by_length, {}, tmp_path / "x", 10)


def command(*flags, cwd):
    return subprocess.run([sys.executable, "-m", "cpt.select", *flags], cwd=cwd, capture_output=True, text=True)


def test_the_command(store, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    flags = [f"--store={store}", f"--reference={store}", "--keep_tokens=2e3", "--out=hq", "--min_tokens=10"]
    done = command(*flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "hq/manifest.json").read_text())
    kept = manifest["selection"]
    assert f"hq: {kept['documents']:,} documents, {kept['tokens']:,} tokens, their score below" in done.stdout
    assert 1900 < kept["tokens"] <= 2000 and command(*flags, cwd=tmp_path).stdout == done.stdout
    mended = manifest["command"]
    assert mended.startswith("python -m cpt.select --store=") and "--keep_tokens=2e3" in mended
    for wrong, says in (
        (["--store=none", *flags[1:]], "data error: none"),
        (flags[1:], "config error: --store: required"),
        ([*flags, "--scorer=ngrm"], "did you mean 'ngram'?"),
        ([flags[0], *flags[2:3], "--out=y"], "config error: --reference: the ngram scorer needs"),
    ):
        failed = command(*wrong, cwd=tmp_path)
        assert failed.returncode == 2 and says in failed.stderr and len(failed.stderr.strip().splitlines()) == 1
    assert "Example:" in command("--help", cwd=tmp_path).stdout
