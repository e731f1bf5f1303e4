"""From text to stores: the split, what is done again and what is not, and the command."""

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt import config as c
from cpt.data import tokenizing, writing
from cpt.data.corpora._base import Bad, Document, Part
from cpt.data.encoding import Encoder, Settings, chunked, in_pieces
from cpt.data.preparing import SourceSpec, open_sources
from cpt.data.shard import stem
from cpt.data.store import TokenStore
from cpt.data.tokenizers._base import TokenizerSpec, load
from cpt.data.tokenizers.bpe import bpe
from cpt.data.tokenizers.byte import byte
from cpt.data.tokenizing import Options
from cpt.errors import ConfigError, DataError
from cpt.plan import resolve
from cpt.prepare import _tokenizer

DOCUMENTS = [f"document {i}: {'x' * (i % 7)} ü" for i in range(200)]


def prepare(documents, tokenizer, out, validation, describe, progress=None, **how):
    """One part, in this process."""
    options = Options(validation=validation, **how)
    return tokenizing.prepare(
        [Part("p", lambda: iter(documents))], tokenizer, out, options, describe, progress=progress
    )


def documents_of(folder: Path, split: str = "train") -> list[str]:
    store = TokenStore.open(folder, split)
    documents = [ids for _, _, ids in store.documents()]
    # Every document ends with the end-of-document id, and only there.
    assert all(ids[-1] == 256 and np.sum(ids == 256) == 1 for ids in documents)
    return [byte().decode(ids) for ids in documents]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@given(documents=st.lists(st.text("ab\n", max_size=30), max_size=4), size=st.integers(1, 12))
def test_chunks_are_short_join_to_the_document_and_end_at_lines(documents, size):
    for document in documents:
        chunks = list(chunked([document], size))
        assert "".join(chunks) == document and all(len(c) <= size for c in chunks)
        start = 0
        for chunk in chunks[:-1]:
            window = document[start : start + size]
            # All lines that fit, or, where not even one does, as much of it as does.
            assert chunk == (window[: window.rindex("\n") + 1] if "\n" in window else window)
            start += len(chunk)
    assert list(chunked(documents, None)) == documents


def test_chunk_size_is_checked():
    with pytest.raises(ConfigError, match="max_chars: 0 is out of range"):
        list(chunked(["a"], 0))


def test_every_document_lands_in_exactly_one_split(tmp_path):
    seen = []
    manifest = prepare([*DOCUMENTS, "", " \n"], byte(), tmp_path / "s", 0.2, {"a": 1}, seen.append)
    train, validation = documents_of(tmp_path / "s"), documents_of(tmp_path / "s", "validation")
    assert sorted(train + validation) == sorted(DOCUMENTS) and not set(train) & set(validation)
    assert train == [d for d in DOCUMENTS if d in set(train)]  # in their order
    assert 20 < len(validation) < 60  # 0.2 of 200 is 40; 20 is 3.5 standard deviations off
    for name, texts in (("train", train), ("validation", validation)):
        size = sum(len(t.encode()) for t in texts)
        entry = manifest["splits"][name]
        tokens = size + len(texts)
        assert {k: entry[k] for k in ("documents", "tokens", "bytes", "text_bytes", "max_id")} == {
            "documents": len(texts), "tokens": tokens, "bytes": 2 * tokens, "text_bytes": size, "max_id": 256
        }  # fmt: skip
        store = TokenStore.open(tmp_path / "s", name)
        assert store.fingerprint == entry["shards"][0]["sha256"]
        assert store.max_id() == 256 == store.read(0, store.n_tokens).max()
    assert (manifest["records"], manifest["empty"], manifest["skipped"]) == (202, 2, {})
    tokens = sum(s["tokens"] for s in manifest["splits"].values())
    assert (seen[-1].documents, seen[-1].tokens, seen[-1].records) == (200, tokens, 202)
    assert manifest["tokenizer"]["hash"] == byte().hash == load(tmp_path / "s").hash


def test_the_split_depends_on_the_text_alone(tmp_path):
    prepare(DOCUMENTS, byte(), tmp_path / "a", 0.2, {})
    prepare([*reversed(DOCUMENTS), *DOCUMENTS[:50], "new"], byte(), tmp_path / "b", 0.2, {})
    a, b = (set(documents_of(tmp_path / n, "validation")) for n in "ab")
    assert a == b - {"new"}
    assert not b & set(documents_of(tmp_path / "b"))
    # A larger share keeps what was held out.
    prepare(DOCUMENTS, byte(), tmp_path / "c", 0.4, {})
    assert a < set(documents_of(tmp_path / "c", "validation"))


def test_two_runs_give_the_same_bytes_whatever_the_batches(tmp_path, monkeypatch):
    prepare(DOCUMENTS, byte(), tmp_path / "a", 0.1, {"x": [1]})
    monkeypatch.setattr(tokenizing, "BATCH_CHARACTERS", 50)
    prepare(iter(DOCUMENTS), byte(), tmp_path / "b", 0.1, {"x": [1]})
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def unread():
    raise AssertionError("the documents were read again")
    yield


def test_a_finished_store_is_left_alone(tmp_path):
    first = prepare(DOCUMENTS, byte(), tmp_path, 0.1, {"x": 1, "command": "one"})
    before = contents(tmp_path)
    assert prepare(unread(), byte(), tmp_path, 0.1, {"x": 1, "command": "another"}) == first
    for change, what in (((0.1, {"x": 2}), "description"), ((0.2, {"x": 1}), "validation")):
        with pytest.raises(DataError, match=f"holds a finished store with another {what}"):
            prepare(unread(), byte(), tmp_path, *change)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "damage", ["manifest.json", "train-00000.bin", "validation-00000.idx", "tokenizer.json", "cut", "complete"]
)
def test_an_unfinished_or_damaged_store_is_made_again(tmp_path, damage):
    prepare(DOCUMENTS, byte(), tmp_path, 0.1, {})
    before = contents(tmp_path)
    if damage == "cut":
        os.truncate(tmp_path / "train-00000.bin", 100)
    elif damage == "complete":
        (tmp_path / "manifest.json").write_bytes(before["manifest.json"].replace(b"true", b"false"))
    else:
        (tmp_path / damage).unlink()
    (tmp_path / "train-00000.bin.99.tmp").write_bytes(b"left by a killed process")
    prepare(DOCUMENTS, byte(), tmp_path, 0.1, {})
    assert contents(tmp_path) == before


def test_a_failure_leaves_no_finished_store(tmp_path):
    def breaks():
        yield from DOCUMENTS
        raise DataError("the corpus ends badly")

    with pytest.raises(DataError, match="ends badly"):
        prepare(breaks(), byte(), tmp_path, 0.1, {})
    assert not {p.suffix for p in tmp_path.iterdir()} & {".json", ".idx"}
    prepare(DOCUMENTS, byte(), tmp_path, 0.1, {})
    # Nor does a failure while a damaged store is made again.
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(DataError, match="ends badly"):
        prepare(breaks(), byte(), tmp_path, 0.1, {})
    assert not (tmp_path / "manifest.json").exists()


def test_a_full_disk_is_one_line_and_costs_nothing(tmp_path, monkeypatch):
    """It fills at every write in turn; making room and running again gives the store of a disk that never was full."""
    whole = prepare(DOCUMENTS, byte(), tmp_path / "whole", 0.1, {}, shard_tokens=500)
    real, out = writing.sync, tmp_path / "s"
    fails_at = 0

    def sync(file):
        nonlocal writes
        writes += 1
        if writes > fails_at:
            raise OSError(28, "No space left on device", "train-00000.bin")
        real(file)

    monkeypatch.setattr(tokenizing, "COMMIT_TOKENS", 0)
    monkeypatch.setattr(tokenizing, "BATCH_CHARACTERS", 4000)
    monkeypatch.setattr(writing, "sync", sync)
    while True:
        writes = 0
        try:
            made = prepare(DOCUMENTS, byte(), out, 0.1, {}, shard_tokens=500)
            break
        except DataError as e:
            assert (
                re.search(r"train-00000\.bin: the disk is full; make room", str(e))
                and not (out / "manifest.json").exists()
            )
        fails_at += 1
    assert fails_at > 3 and made == whole and contents(out) == contents(tmp_path / "whole")


# ---- stopped and gone on with

DOMAINS = ("", "Pile-CC", "PubMed Central", "a/b c")


def mixed(n=400):
    """Documents of several domains, with copies, blanks and records that are none."""
    for i in range(n):
        yield [
            Document(f"document {i} {'word ' * (i % 13)}", DOMAINS[i % 4]),
            Document(f"document {i // 100}", DOMAINS[i % 4]),
            Document(" \n", "a/b c"),
            Bad("invalid JSON", f"x:{i}", "invalid JSON; mend it"),
        ][0 if i % 7 else i % 4]


def corpus(parts=3, n=400):
    items = list(mixed(n))
    size = -(-n // parts)
    return [Part(f"p{j}", lambda j=j: iter(items[j * size : (j + 1) * size])) for j in range(parts)]


HOW = Options(validation=0.1, replay_holdout=0.2, dedup=True, max_bad=0.1, shard_tokens=900)


class Killed(BaseException):
    """What no handler of ours catches, as SIGKILL."""


def test_killed_at_every_commit_it_yields_the_same_bytes(tmp_path, monkeypatch):
    """Before and after each write of each commit in turn; the next start goes on from the commit before."""
    monkeypatch.setattr(tokenizing, "BATCH_CHARACTERS", 1500)
    monkeypatch.setattr(tokenizing, "COMMIT_TOKENS", 0)
    whole = tokenizing.prepare(corpus(), byte(), tmp_path / "whole", HOW, {})
    assert whole["duplicates"] > 5 and whole["empty"] > 5 and whole["skipped"] == {"invalid JSON": 15}
    out, append, left = tmp_path / "s", writing.StoreWriter._append, 0

    def dying(self, shard):
        nonlocal left
        if shard.waiting:
            if left == 0:
                raise Killed
            left -= 1
            if left == 0 and len(shard.waiting) > 1:  # half of it is written
                shard.waiting = shard.waiting[:1]
                append(self, shard)
                raise Killed
        append(self, shard)

    monkeypatch.setattr(writing.StoreWriter, "_append", dying)
    starts, begun = 0, []
    real = tokenizing.batches
    monkeypatch.setattr(tokenizing, "batches", lambda parts, start: begun.append(start) or real(parts, start))
    while True:
        # More is written before each kill, since one that comes within the first commit would never get further.
        left, starts = 5 + 3 * starts, starts + 1
        try:
            made = tokenizing.prepare(corpus(), byte(), out, HOW, {})
            break
        except Killed:
            pass
    assert starts > 5 and sorted(begun) == begun and len(set(begun)) > 4
    assert made == whole and contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_nothing(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(tokenizing, "BATCH_CHARACTERS", 1500)
    for name, n in (("a", 0), ("b", workers)):
        tokenizing.prepare(corpus(), byte(), tmp_path / name, HOW, {}, workers=n)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_another_identity_begins_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizing, "COMMIT_TOKENS", 0)

    def stops():
        yield from DOCUMENTS
        raise Killed

    monkeypatch.setattr(tokenizing, "BATCH_CHARACTERS", 1500)
    with pytest.raises(Killed):
        prepare(stops(), byte(), tmp_path / "s", 0.1, {"x": 1})
    assert (tmp_path / "s/journal.sqlite").exists()
    prepare(DOCUMENTS, byte(), tmp_path / "s", 0.1, {"x": 2})
    prepare(DOCUMENTS, byte(), tmp_path / "t", 0.1, {"x": 2})
    assert contents(tmp_path / "s") == contents(tmp_path / "t")


@pytest.mark.parametrize("damage", ["journal", "cut", "bin", "sizes"])
def test_what_is_left_may_be_damaged_too(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(tokenizing, "COMMIT_TOKENS", 0)
    monkeypatch.setattr(tokenizing, "BATCH_CHARACTERS", 1500)

    def stops():
        yield from DOCUMENTS
        raise Killed

    with pytest.raises(Killed):
        prepare(stops(), byte(), tmp_path / "s", 0.1, {})
    if damage == "journal":
        (tmp_path / "s/journal.sqlite").write_bytes(b"SQLite format 3\0 and then nothing of the kind")
    elif damage == "cut":
        os.truncate(tmp_path / "s/train-00000.bin", 3)
    else:
        file = tmp_path / f"s/train-00000.{damage}"
        file.write_bytes(b"\1" + file.read_bytes()[1:])
    prepare(DOCUMENTS, byte(), tmp_path / "s", 0.1, {})
    prepare(DOCUMENTS, byte(), tmp_path / "t", 0.1, {})
    assert contents(tmp_path / "s") == contents(tmp_path / "t")


# ---- what is counted and left out


def test_splits_are_disjoint_by_content_and_copies_are_dropped(tmp_path):
    documents = [f"document {i % 300}" for i in range(700)]
    made = prepare(documents, byte(), tmp_path, 0.1, {}, replay_holdout=0.2, dedup=True)
    splits = {s: documents_of(tmp_path, s) for s in ("train", "validation", "replay_holdout")}
    assert made["duplicates"] == 400 and sum(map(len, splits.values())) == 300
    assert len({d for texts in splits.values() for d in texts}) == 300
    assert 35 < len(splits["replay_holdout"]) < 90
    # What is held out for evaluation does not depend on the other holdout.
    prepare(documents, byte(), tmp_path / "v", 0.1, {}, dedup=True)
    assert documents_of(tmp_path / "v", "validation") == splits["validation"]


def test_a_few_bad_records_are_counted_and_many_are_an_error(tmp_path):
    def items(good, bad):
        yield from (f"document {i}" for i in range(good))
        yield from (Bad("invalid JSON" if i % 2 else "no such field", f"f:{i}", "is bad; mend it") for i in range(bad))

    made = prepare(items(2000, 2), byte(), tmp_path / "a", 0.0, {})
    assert made["skipped"] == {"invalid JSON": 1, "no such field": 1} and made["records"] == 2002
    assert made["examples"] == ["f:0: is bad; mend it", "f:1: is bad; mend it"]
    with pytest.raises(DataError, match=r"^data error: f:0: is bad; mend it, or skip it with max_bad=0\.0091$"):
        prepare(items(110, 1), byte(), tmp_path / "b", 0.0, {})
    with pytest.raises(
        DataError,
        match=r"f:0: .* \(and 2 more of 2,003 records: no such field 2, invalid JSON 1; a share of 0\.0015, max_bad",
    ):
        prepare(items(2000, 3), byte(), tmp_path / "c", 0.0, {})
    prepare(items(110, 1), byte(), tmp_path / "b", 0.0, {}, max_bad=0.0091)


def test_too_many_bad_records_are_told_long_before_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizing, "COMMIT_TOKENS", 0)
    read = 0

    def items():
        nonlocal read
        for i in range(200_000):
            read += 1
            yield Bad("no such field", f"f:{i}", "no field 'text'") if i % 2 else f"document {i}"

    with pytest.raises(DataError, match="no field 'text'"):
        prepare(items(), byte(), tmp_path, 0.0, {})
    assert read < 40_000


def test_a_damaged_file_of_few_is_an_error_at_once_and_of_many_is_counted(tmp_path):
    def part(n, damaged):
        def items():
            yield f"text {n}"
            if damaged:
                yield Bad("damaged file", f"f{n}:2", "damaged gzip file; copy it again", ends_part=True)

        return Part(f"f{n}", items)

    parts = [part(n, n == 3) for n in range(100)]
    message = r"f3:2: damaged gzip file; copy it again \(1 of 100 files\); or skip it with max_bad=0\.010"
    with pytest.raises(DataError, match=message):
        tokenizing.prepare(parts, byte(), tmp_path / "a", Options(), {})
    made = tokenizing.prepare(parts, byte(), tmp_path / "a", Options(max_bad=0.01), {})
    assert made["skipped"] == {"damaged file": 1} and made["splits"]["train"]["documents"] == 100


def test_identifiers_as_domains_are_refused(tmp_path):
    documents = [Document("text", f"id {i}") for i in range(1100)]
    with pytest.raises(DataError, match="more than 1,000 domains, such as 'id 1000'; is the domain field one that"):
        prepare(documents, byte(), tmp_path, 0.0, {})


def test_names_of_domains_become_names_of_files_one_to_one(tmp_path):
    names = ["Pile-CC", "Pile CC", "Pile_CC", "..", "/etc/passwd", "ü" * 99, "ü" * 98, "a" * 200]
    stems = [stem("train", n) for n in names]
    assert len(set(stems)) == len(names) and all(re.fullmatch(r"train-[A-Za-z0-9._-]{1,70}", s) for s in stems)
    prepare([Document(f"text of {n}", n) for n in names], byte(), tmp_path, 0.0, {})
    assert set(TokenStore.open(tmp_path).domains) == set(names)


def test_a_recipe_mixes_the_domains_of_a_store(tmp_path):
    """`config.domains`: in proportion to their tokens, each row from its own domain."""
    import toy

    documents = [Document(f"{n}: " + "y" * 50, n) for i in range(600) for n in ("Pile-CC", "", "ArXiv")[: 1 + i % 3]]
    prepare(documents, byte(), tmp_path / "pile", 0.0, {})
    config = toy.get_config(str(tmp_path))
    config.tokenizer, config.order = c.tokenizer(kind="byte"), ("first",)
    del config.sources.old, config.sources.new, config.phases.second
    config.evaluation.sets = {}
    config.sources.update(c.domains(str(tmp_path / "pile"), epochs=2.0))
    config.phases.first.mix = dict(pile_cc=0.2, rest=0.2, arxiv=0.6)
    config.phases.first.mixer = c.mixer(kind="proportional")
    plan = resolve(c.load(config))
    sources, _ = open_sources(plan.spec.sources, plan.spec.tokenizer, tmp_path, print)
    tokens = {n: sources[n].train.n_tokens for n in ("arxiv", "pile_cc", "rest")}
    assert plan.phases[0].shares(0) == pytest.approx([n / sum(tokens.values()) for n in tokens.values()])
    for name, domain in (("arxiv", "ArXiv"), ("pile_cc", "Pile-CC"), ("rest", "")):
        documents = [(d, byte().decode(ids)) for _, d, ids in sources[name].train.documents()]
        assert len(documents) > 100 and {(d, text[: text.index(":")]) for d, text in documents} == {(domain, domain)}
        assert sources[name].epochs == 2.0


def test_domains_that_would_share_a_name_are_refused(tmp_path):
    prepare([Document("a", "Pile-CC"), Document("b", "Pile CC")], byte(), tmp_path, 0.0, {})
    with pytest.raises(ConfigError, match="two of its domains would be 'pile_cc'; name the sources yourself"):
        c.domains(str(tmp_path))
    with pytest.raises(ConfigError, match="no finished store there"):
        c.domains(str(tmp_path / "x"))


# ---- encoding


@given(st.text("ab \n", max_size=200), st.integers(4, 40))
def test_pieces_join_to_the_text_and_are_short(text, limit):
    pieces = in_pieces(text, limit)
    assert "".join(pieces) == text and all(len(p) <= limit for p in pieces)


def test_a_huge_document_has_the_ids_it_has_in_one_go(tmp_path):
    words = " ".join(f"word{i % 977} und noch\neins" for i in range(4000))
    tokenizer = bpe(TokenizerSpec(vocab_size=400), lambda: iter([words[:20_000]]))
    (whole,) = tokenizer.encode_batch([words])
    cut = np.concatenate(tokenizer.encode_batch(in_pieces(words, 1000)))
    assert len(in_pieces(words, 1000)) > 50 and np.array_equal(cut, whole)


def test_a_batch_is_accounted_for():
    tokenised = [Document(ids=np.array([7, 300]), domain="t"), Document(ids=np.array([9]))]
    batch = Encoder(byte(), Settings())(["eins", Document("zwei", "d"), *tokenised, "", Bad("k", "w", "y")])
    assert [(ids.tolist(), d, n) for ids, d, _, n in batch.documents()] == [
        ([*b"eins", 256], "", 4), ([*b"zwei", 256], "d", 4), ([9, 256], "", 1),
    ]  # fmt: skip
    assert {b.kind for b in batch.bad} == {"k", "id outside the vocabulary"} and (batch.empty, batch.records) == (1, 6)


def test_processes_that_want_the_same_store_make_it_once(tmp_path):
    reads = []

    def documents():
        reads.append(1)
        yield from DOCUMENTS

    with ThreadPoolExecutor(4) as pool:  # a lock on a file belongs to the file handle: threads stand for processes
        made = list(pool.map(lambda _: prepare(documents(), byte(), tmp_path, 0.1, {}), range(4)))
    assert len(reads) == 1 and all(m == made[0] for m in made)


def test_empty_splits_and_shares_out_of_range(tmp_path):
    with pytest.raises(DataError, match="no documents with text"):
        prepare(["", " "], byte(), tmp_path, 0.1, {})
    with pytest.raises(DataError, match="none of the 1 documents went to validation; change the share"):
        prepare(["only one"], byte(), tmp_path, 1e-9, {})
    with pytest.raises(DataError, match="went to train"):
        prepare(["only one"], byte(), tmp_path, 1 - 1e-9, {})
    for share in (-0.1, 1.0):
        with pytest.raises(ConfigError, match="out of range"):
            prepare(["a"], byte(), tmp_path, share, {})
    assert set(prepare(["only one"], byte(), tmp_path, 0.0, {})["splits"]) == {"train"}


# ---- open_sources

BYTE = TokenizerSpec(kind="byte")


@pytest.fixture
def corpora(tmp_path):
    for name, language in (("old", "english"), ("new", "deutsch")):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps({"text": f"{language} {d}"}) + "\n" for d in DOCUMENTS)
        )
    return {n: SourceSpec("jsonl", str(tmp_path / f"{n}.jsonl"), validation=0.1) for n in ("old", "new")}


def test_corpora_are_prepared_once_and_the_tokenizer_trained_once(tmp_path, corpora):
    spec = TokenizerSpec(vocab_size=280, train_on="old")
    said = []
    sources, tokenizer = open_sources(corpora, spec, tmp_path / "stores", said.append)
    assert list(sources) == ["old", "new"] and [s.name for s in sources.values()] == ["old", "new"]
    assert (tokenizer.vocab_size, len(said)) == (280, 3)
    assert sources["old"].train.n_tokens > 1000 and sources["new"].validation.n_tokens > 100
    english, deutsch = tokenizer.encode_batch(["english", "deutsch"])
    assert len(english) < len(deutsch)  # trained on `old` only
    folders = sorted(p.name for p in (tmp_path / "stores").iterdir() if p.suffix != ".lock")
    assert all(map(re.fullmatch, ("new-[0-9a-f]{8}", "old-[0-9a-f]{8}", r"tokenizer-[0-9a-f]{8}\.json"), folders))
    again, same = open_sources(corpora, spec, tmp_path / "stores", said.append)
    assert len(said) == 3 and same.hash == tokenizer.hash
    assert again["new"].train.fingerprint == sources["new"].train.fingerprint


def test_a_changed_file_or_setting_is_prepared_anew(tmp_path, corpora):
    root = tmp_path / "stores"
    first, _ = open_sources(corpora, BYTE, root, lambda line: None)
    with Path(corpora["new"].path).open("a") as f:
        f.write('{"text": "one more"}\n')
    second, _ = open_sources(corpora, BYTE, root, lambda line: None)
    assert first["old"].train.folder == second["old"].train.folder
    assert first["new"].train.folder != second["new"].train.folder
    old = dataclasses.replace(corpora["old"], max_chars=5)
    third, _ = open_sources({"old": old}, BYTE, root, lambda line: None)
    assert third["old"].train.folder != first["old"].train.folder


def test_a_damaged_cache_is_mended(tmp_path, corpora):
    sources, _ = open_sources(corpora, BYTE, tmp_path / "stores", lambda line: None)
    prefix, before = sources["old"].train.folder, sources["old"].train.read(0, 1000).tolist()
    os.truncate(prefix / "train-00000.bin", 10)
    sources, _ = open_sources(corpora, BYTE, tmp_path / "stores", lambda line: None)
    assert sources["old"].train.folder == prefix and sources["old"].train.read(0, 1000).tolist() == before


def test_stores_bring_their_tokenizer(tmp_path):
    for name in "ab":
        prepare(DOCUMENTS, byte(), tmp_path / name, 0.1 if name == "a" else 0.0, {})
    specs = {n: SourceSpec(store=str(tmp_path / n), epochs=2.5) for n in "ab"}
    sources, tokenizer = open_sources(specs, TokenizerSpec(), tmp_path / "none", lambda line: None)
    assert tokenizer.hash == byte().hash and sources["a"].epochs == 2.5 and not (tmp_path / "none").exists()
    assert sources["a"].validation.n_tokens > 0 and sources["b"].validation is None
    bare = {"a": SourceSpec(store=str(tmp_path / "a/validation-00000.bin"))}
    assert open_sources(bare, BYTE, tmp_path, print)[0]["a"].train.folder == tmp_path / "a/validation-00000"


def test_bare_megatron_pairs_need_no_tokenizer(tmp_path):
    prepare(DOCUMENTS, byte(), tmp_path, 0.0, {})
    (tmp_path / "manifest.json").unlink()
    specs = {"a": SourceSpec(store=str(tmp_path / "train-00000"))}
    sources, tokenizer = open_sources(specs, TokenizerSpec(), tmp_path, print)
    assert tokenizer is None and sources["a"].validation is None and sources["a"].train.max_id() == 256
    assert open_sources(specs, BYTE, tmp_path, print)[1].kind == "byte"


def test_stores_of_different_tokenizers_are_refused(tmp_path, corpora):
    prepare(DOCUMENTS, byte(), tmp_path / "a", 0.1, {})
    bpe = TokenizerSpec(vocab_size=270, train_on="old")
    with pytest.raises(DataError, match=r"sources\.a and sources\.old: made with different tokenizers"):
        open_sources({"a": SourceSpec(store=str(tmp_path / "a")), **corpora}, bpe, tmp_path / "s", lambda line: None)
    made = next((tmp_path / "s").glob("old-*"))
    both = {"x": SourceSpec(store=str(tmp_path / "a")), "y": SourceSpec(store=str(made))}
    with pytest.raises(DataError, match=r"sources\.x and sources\.y: made with different tokenizers"):
        open_sources(both, bpe, tmp_path, print)
    (tmp_path / "a/tokenizer.json").write_bytes((made / "tokenizer.json").read_bytes())
    with pytest.raises(DataError, match="not the tokenizer that made this store"):
        open_sources({"x": both["x"]}, bpe, tmp_path, print)


def test_mistakes_in_sources_name_the_field(tmp_path, corpora):
    def opened(tokenizer=BYTE, **sources):
        return open_sources(sources, tokenizer, tmp_path, print)

    with pytest.raises(ConfigError, match=r"sources\.a: give exactly one of corpus and store \(got both\)"):
        opened(a=SourceSpec(corpus="text", store="x"))
    with pytest.raises(ConfigError, match=r"sources\.a: .*\(got neither\)"):
        opened(a=SourceSpec())
    with pytest.raises(ConfigError, match="sources: none"):
        opened()
    with pytest.raises(ConfigError, match=r"sources\.a\.epochs: 0"):
        opened(a=SourceSpec(corpus="text", epochs=0))
    with pytest.raises(ConfigError, match=r"sources\.a\.corpus: no 'jsonk'.*'jsonl'"):
        opened(a=SourceSpec(corpus="jsonk"))
    with pytest.raises(ConfigError, match=r"tokenizer\.train_on: no source 'odl'; did you mean 'old'"):
        opened(TokenizerSpec(vocab_size=270, train_on="odl"), **corpora)
    with pytest.raises(ConfigError, match=r"tokenizer\.train_on: name the source"):
        opened(TokenizerSpec(vocab_size=270), **corpora)


def test_a_missing_store_gives_the_command_that_makes_it(tmp_path):
    spec = SourceSpec(store=str(tmp_path / "new"), path="in/*.jsonl", text_field="meta.text", validation=0.05)
    with pytest.raises(DataError) as e:
        open_sources({"new": spec}, TokenizerSpec(vocab_size=4096), tmp_path, print)
    words = "'--input=in/*.jsonl' --format=jsonl --text_field=meta.text --tokenizer=bpe:4096"
    command = f"`python -m cpt.prepare {words} --out={tmp_path}/new --validation=0.05`"
    assert str(e.value) == f"data error: sources.new.store: {tmp_path}/new does not exist; make it with {command}"
    (tmp_path / "new").mkdir()
    with pytest.raises(DataError, match="holds no finished store; make it with"):
        open_sources({"new": spec}, BYTE, tmp_path, print)


def upper(path, fields):
    """A reader of a user's own."""
    yield from (d.upper() for d in DOCUMENTS)


def test_a_corpus_by_dotted_name(tmp_path):
    sources, _ = open_sources({"a": SourceSpec(f"{__name__}:upper", validation=0)}, BYTE, tmp_path, lambda line: None)
    assert documents_of(sources["a"].train.folder)[0].startswith("DOCUMENT 0")


# ---- the command


def command(*flags, cwd):
    return subprocess.run([sys.executable, "-m", "cpt.prepare", *flags], cwd=cwd, capture_output=True, text=True)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    (tmp_path / "in").mkdir()
    for i in range(4):
        (tmp_path / f"in/{i}.jsonl").write_text("".join(json.dumps({"text": d * (i + 1)}) + "\n" for d in DOCUMENTS))
    return tmp_path


@pytest.mark.parametrize("tokenizer", [TokenizerSpec(vocab_size=300), TokenizerSpec(kind="file")], ids=["bpe", "file"])
def test_the_commands_that_are_offered_for_missing_stores_make_them(workplace, monkeypatch, tokenizer):
    """One after the other, as a user would; none may need a store that is not there yet."""
    monkeypatch.chdir(workplace)
    if tokenizer.kind == "file":
        byte().save(Path("tokenizer.json"))  # the file that is named lies outside of the stores
    specs = {n: SourceSpec(store=f"stores/{n}", path="in/*.jsonl", validation=0.1) for n in ("pile", "slimpajama")}
    said = []
    for name in specs:
        with pytest.raises(DataError, match=rf"sources\.{name}\.store: .* does not exist; make it with") as e:
            open_sources(specs, tokenizer, workplace, print)
        said.append(str(e.value).split("`")[1])
        python, *words = shlex.split(said[-1])
        assert python == "python" and words[:2] == ["-m", "cpt.prepare"]
        run = command(*words[2:], cwd=workplace)
        assert run.returncode == 0, run.stderr
    assert "--tokenizer=stores/" not in said[0] and "--tokenizer=stores/pile " in said[1]
    sources, shared = open_sources(specs, tokenizer, workplace, print)
    assert set(sources) == set(specs) and shared.hash == sources["pile"].train.manifest["tokenizer"]["hash"]


def test_the_command_makes_a_store_and_ends_with_a_table(workplace):
    flags = ("--input=in/*.jsonl", "--tokenizer=bpe:300", "--out=stores/new", "--validation=0.1")
    done = command(*flags, cwd=workplace)
    assert done.returncode == 0 and done.stderr.strip() == "", done.stderr
    manifest = json.loads((workplace / "stores/new/manifest.json").read_text())
    rows = {w[0]: w[1:4] for line in done.stdout.splitlines() if (w := line.split())}
    for split, entry in manifest["splits"].items():
        assert rows[split] == [f"{entry[k]:,}" for k in ("documents", "tokens", "text_bytes")]
    assert sum(s["documents"] for s in manifest["splits"].values()) == 800 and manifest["complete"] is True
    before = contents(workplace / "stores/new")
    assert command(*flags, cwd=workplace).stdout == done.stdout
    assert contents(workplace / "stores/new") == before
    # The command that an error names mends the damage it was named for.
    os.truncate(workplace / "stores/new/train-00000.bin", 2)
    mend = manifest["command"].replace("python", sys.executable, 1)
    assert subprocess.run(["bash", "-c", mend], cwd=workplace).returncode == 0
    assert contents(workplace / "stores/new") == before
    other = command(*flags[:1], "--tokenizer=bpe:301", *flags[2:], cwd=workplace)
    assert other.returncode == 2 and "holds a finished store with another description" in other.stderr


def test_the_command_does_not_train_the_tokenizer_of_a_finished_store_again(tmp_path):
    prepare(DOCUMENTS, byte(), tmp_path, 0.1, {"tokenizer": "bpe:300"})
    unreadable = SourceSpec(f"{__name__}:unreadable")
    given = SimpleNamespace(tokenizer="bpe:300", eod_token=None, tokenizer_bytes=None)
    assert _tokenizer(given, unreadable, tmp_path, {"tokenizer": "bpe:300", "command": "x"}).kind == "byte"
    given.tokenizer = "bpe:301"
    with pytest.raises(AssertionError, match="read again"):
        _tokenizer(given, unreadable, tmp_path, {"tokenizer": "bpe:301", "command": "x"})


def unreadable(path, fields):
    yield from unread()


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--input=none/*", "--tokenizer=byte", "--out=x"], r"data error: none/\*: no such file"),
        (
            ["--input=in", "--format=jsonl", "--text_field=body", "--tokenizer=byte", "--out=x"],
            r"data error: in/0\.jsonl:1: ",
        ),
        (["--tokenizer=byte", "--out=x"], "config error: --input: "),
        (["--input=in", "--tokenizer=byte"], "config error: --out: required"),
        (["--input=in/0.jsonl", "--tokenizer=bpe", "--out=x"], "config error: --tokenizer=bpe: write bpe:SIZE"),
        (["--input=in/0.jsonl", "--tokenizer=none.json", "--out=x"], r"data error: none\.json: "),
    ],
)
def test_the_command_ends_with_one_line_and_2(workplace, flags, line):
    done = command(*flags, cwd=workplace)
    assert done.returncode == 2 and done.stdout == ""
    lines = [t for t in done.stderr.splitlines() if t.strip()]
    assert len(lines) == 1 and re.match(line, lines[0]), done.stderr
    assert not (workplace / "x/manifest.json").exists()


def test_help_has_an_example_and_the_import_is_light(workplace):
    done = command("--help", cwd=workplace)
    assert done.returncode == 0 and "Example:" in done.stdout and "--validation" in done.stdout
    program = (
        "import sys, cpt.prepare; from absl import flags;"
        "print({'jax', 'flax', 'grain', 'tokenizers'} & set(sys.modules), 'out' in flags.FLAGS)"
    )
    printed = subprocess.run([sys.executable, "-c", program], cwd=workplace, capture_output=True, text=True, check=True)
    assert printed.stdout == "set() False\n"
