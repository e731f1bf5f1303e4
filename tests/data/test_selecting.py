"""Quality subsets: the best documents up to the budget, in the order of the store, whenever the work was stopped."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt.data import selecting
from cpt.data.corpora._base import Document, Part
from cpt.data.scorers._base import Scorer
from cpt.data.selecting import SCORES, best, select
from cpt.data.store import TokenStore
from cpt.data.tokenizers.byte import ByteTokenizer, byte
from cpt.data.tokenizing import Options, prepare
from cpt.data.writing import StoreWriter
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


def scored_again():
    raise AssertionError("scored again")


BY_LENGTH = Scorer({"of": "length"}, lambda: by_length)
NOBODY = Scorer({"of": "length"}, scored_again)


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
    made = select(store, BY_LENGTH, tmp_path / "hq", 2000)
    train = texts(store)
    longest = max(len(t) for t in texts(tmp_path / "hq"))
    assert texts(tmp_path / "hq", "validation") == texts(store, "validation")
    assert texts(tmp_path / "hq", "replay_holdout") == texts(store, "replay_holdout")
    assert set(texts(tmp_path / "hq")) <= set(train) and made["selection"]["tokens"] <= 2000
    kept = len(texts(tmp_path / "hq"))
    assert made["selection"]["threshold"] == longest + 1 and made["selection"]["documents"] == kept
    assert [t for t in train if len(t) < longest] == [t for t in texts(tmp_path / "hq") if len(t) < longest]
    assert set(TokenStore.open(tmp_path / "hq").domains) == {"a", "b"}
    entry = made["splits"]["train"]
    assert entry["text_bytes"] == sum(len(t.encode()) for t in texts(tmp_path / "hq"))
    assert made["description"]["selected_from"] == {
        "of": TokenStore.open(store).fingerprint,
        "scorer": {"of": "length"},
    }
    control = select(store, BY_LENGTH, tmp_path / "lq", 2000, worst=True)
    assert control["selection"]["threshold"] > made["selection"]["threshold"]


def test_bytes_of_a_tokenizer_whose_ids_have_no_fixed_number(store, tmp_path, monkeypatch):
    expected = select(store, BY_LENGTH, tmp_path / "a", 2000)["splits"]
    monkeypatch.setattr(ByteTokenizer, "token_bytes", lambda self: None)
    assert select(store, BY_LENGTH, tmp_path / "b", 2000)["splits"] == expected


def test_scores_are_kept_after_a_stop(store, tmp_path, monkeypatch):
    monkeypatch.setattr(selecting, "CHUNK_TOKENS", 500)
    asked = []

    def stops(documents):
        if len(asked) == 4:
            raise KeyboardInterrupt
        asked.append(len(documents))
        return by_length(documents)

    with pytest.raises(KeyboardInterrupt):
        select(store, Scorer({"of": "length"}, lambda: stops), tmp_path / "hq", 2000)
    with pytest.raises(ValueError):  # nobody takes a part for the whole
        np.load(tmp_path / "hq" / SCORES)
    with (tmp_path / "hq" / SCORES).open("ab") as f:
        f.write(b"\0\0")  # half a score
    scored = []
    again = Scorer({"of": "length"}, lambda: lambda documents: scored.append(len(documents)) or by_length(documents))
    made = select(store, again, tmp_path / "hq", 2000)
    assert sum(asked) + sum(scored) == len(texts(store)) and sum(asked) > 20
    assert made["splits"] == select(store, BY_LENGTH, tmp_path / "whole", 2000)["splits"]
    lengths = [len(ids) for _, _, ids in TokenStore.open(store).documents()]
    assert np.load(tmp_path / "hq" / SCORES).tolist() == lengths
    assert select(store, NOBODY, tmp_path / "hq", 2000) == made


@pytest.mark.parametrize("split, at", [("train", 1), ("train", 30), ("validation", 5), ("replay_holdout", 9)])
def test_a_stopped_write_goes_on_without_a_document_twice(store, tmp_path, monkeypatch, split, at):
    whole = select(store, BY_LENGTH, tmp_path / "whole", 4000)
    monkeypatch.setattr(selecting, "COMMIT_TOKENS", 200)
    add, seen = StoreWriter.add, []

    def stops(self, to, *rest):
        seen.append(to)
        if seen.count(split) == at:
            raise KeyboardInterrupt
        add(self, to, *rest)

    monkeypatch.setattr(StoreWriter, "add", stops)
    with pytest.raises(KeyboardInterrupt):
        select(store, BY_LENGTH, tmp_path / "hq", 4000)
    before = len(seen)
    made = select(store, NOBODY, tmp_path / "hq", 4000)
    assert made["splits"] == whole["splits"]
    if before > 20:
        assert len(seen) - before < sum(s["documents"] for s in whole["splits"].values())  # it did go on


def test_another_budget_takes_the_scores_that_are_there(store, tmp_path):
    select(store, BY_LENGTH, tmp_path / "hq", 2000)
    more = select(store, NOBODY, tmp_path / "more", 3000, scores=tmp_path / "hq")
    assert more["splits"] == select(store, BY_LENGTH, tmp_path / "x", 3000)["splits"]
    assert not (tmp_path / "more" / SCORES).exists()
    for asked, said in (
        (dict(keep_tokens=3000), "keep_tokens=2000"),
        (dict(keep_tokens=2000, worst=True), "worst=False"),
    ):
        with pytest.raises(DataError, match=rf"finished selection with --{said}; name another --out, and --scores="):
            select(store, NOBODY, tmp_path / "hq", **asked)
    other = Scorer({"of": "something else"}, NOBODY.make)
    with pytest.raises(DataError, match="holds scores of another store or scorer"):
        select(store, other, tmp_path / "y", 3000, scores=tmp_path / "hq")
    assert (tmp_path / "hq" / SCORES).is_file()
    with pytest.raises(DataError, match="holds a finished store with another description"):
        select(store, other, tmp_path / "hq", 2000)
    (tmp_path / "hq" / "manifest.json").unlink()
    with pytest.raises(AssertionError, match="scored again"):  # an unfinished folder is taken over by another scorer
        select(store, other, tmp_path / "hq", 2000)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_damaged_scores_are_made_anew(store, tmp_path, content):
    expected = select(store, BY_LENGTH, tmp_path / "hq", 2000)["splits"]
    for name in ("scores.json", SCORES):
        (tmp_path / "hq" / "manifest.json").unlink()
        (tmp_path / "hq" / name).write_bytes(content)
        assert select(store, BY_LENGTH, tmp_path / "hq", 2000)["splits"] == expected
    (tmp_path / "hq" / "manifest.json").unlink()
    with (tmp_path / "hq" / SCORES).open("ab") as f:
        f.write(bytes(400))
    assert select(store, NOBODY, tmp_path / "hq", 2000)["splits"] == expected


def test_mistakes(store, tmp_path):
    with pytest.raises(ConfigError, match="--keep_tokens: 0 is out of range"):
        select(store, BY_LENGTH, tmp_path / "x", 0)
    with pytest.raises(DataError, match="holds no finished store"):
        select(tmp_path, BY_LENGTH, tmp_path / "x", 10)
    with pytest.raises(ConfigError, match=r"gave scores of shape \(3,\) for 2\d\d documents"):
        select(store, Scorer({}, lambda: lambda documents: np.zeros(3)), tmp_path / "x", 10)


def command(*flags, cwd):
    return subprocess.run([sys.executable, "-m", "cpt.select", *flags], cwd=cwd, capture_output=True, text=True)


def test_the_command(store, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    flags = [f"--store={store}", f"--reference={store}", "--keep_tokens=2e3", "--out=hq", "--min_tokens=10"]
    done = command(*flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "hq/manifest.json").read_text())
    kept = manifest["selection"]
    assert f"hq: {kept['documents']:,} documents, {kept['tokens']:,} tokens, their score at or below" in done.stdout
    assert 1900 < kept["tokens"] <= 2000 and command(*flags, cwd=tmp_path).stdout == done.stdout
    assert manifest["command"] == shlex.join(["python", "-m", "cpt.select", *flags])
    row = next(line for line in done.stdout.splitlines() if line.startswith("a "))
    assert f"{manifest['splits']['train']['domains']['a']['tokens']:,}" in row and "█" in row
    apart = ["--store", str(store), "--reference", str(store), "--keep_tokens", "2e3", "--out", "hq2"]
    command(*apart, "--scores=hq", "--min_tokens=10", cwd=tmp_path)
    again = json.loads((tmp_path / "hq2/manifest.json").read_text())
    assert again["splits"] == manifest["splits"] and "--store " + str(store) in again["command"]
    (tmp_path / "hq" / SCORES).unlink()  # to make room
    assert command(*flags, cwd=tmp_path).stdout.splitlines()[-1] == done.stdout.splitlines()[-1]
    for wrong, says in (
        (["--store=none", *flags[1:]], "data error: none"),
        (flags[1:], "config error: --store: required"),
        ([*flags, "--keep_tokens=inf"], "--keep_tokens: inf is out of range"),
        ([*flags, "--reference_tokens=nan"], "--reference_tokens: nan is out of range"),
        ([*flags, "--scorer=ngrm"], "did you mean 'ngram'?"),
        ([flags[0], *flags[2:3], "--out=y"], "config error: --reference: the ngram scorer needs"),
    ):
        failed = command(*wrong, cwd=tmp_path)
        assert failed.returncode == 2 and says in failed.stderr and len(failed.stderr.strip().splitlines()) == 1
    assert "Example:" in command("--help", cwd=tmp_path).stdout
