"""Damaged inputs and stores, by the thousand: each ends in one clear line, or in a counted skip and the right tokens.

What is right is said by readers of their own: `json` line by line, `gzip` and the like over the whole file, the bytes
of the store as they were written. A hang is a failure by the suite's time limit.
"""

import bz2
import gzip
import json
import lzma
import random
import shutil
import sqlite3

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from cpt.data import tokenizing
from cpt.data.corpora._base import Fields, Part
from cpt.data.corpora.array_record import array_record
from cpt.data.corpora.jsonl import jsonl
from cpt.data.corpora.megatron import megatron
from cpt.data.corpora.parquet import parquet
from cpt.data.corpora.text import text
from cpt.data.megatron import Writer
from cpt.data.preparing import SourceSpec, open_sources
from cpt.data.store import TokenStore
from cpt.data.tokenizers._base import TokenizerSpec
from cpt.data.tokenizers.byte import byte
from cpt.data.tokenizing import Options, prepare
from cpt.errors import UserError

TEXTS = [f"Dokument {i} ü {'wort ' * (i % 11)}" for i in range(60)]
ROWS = [json.dumps({"text": t, "meta": {"set": "ab"[i % 2]}}, ensure_ascii=False).encode() for i, t in enumerate(TEXTS)]
CONTENT = b"\n".join(ROWS) + b"\n"


def zst(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


def unzst(content: bytes) -> bytes:
    out = b""
    while content:
        frame = zstandard.ZstdDecompressor().decompressobj()
        out += frame.decompress(content)
        if not frame.eof:
            raise EOFError
        content = frame.unused_data
    return out


COMPRESSIONS = {
    "": (bytes, bytes),
    ".gz": (gzip.compress, gzip.decompress),
    ".zst": (zst, unzst),
    ".bz2": (bz2.compress, bz2.decompress),
    ".xz": (lzma.compress, lzma.decompress),
}


def corrupt(content: bytes, rng: random.Random) -> bytes:
    """One to three of: flip a bit, cut off, leave out, insert, blank out, move, double a stretch."""
    out = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(out) + 1)
        stretch = slice(at, at + rng.choice((1, 2, 8, 64, 500)))
        kind = rng.choice(("flip", "flip", "flip", "cut", "drop", "insert", "blank", "random", "swap", "double"))
        if kind == "flip" and out:
            out[at % len(out)] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del out[at:]
        elif kind == "drop":
            del out[stretch]
        elif kind == "insert":
            out[at:at] = rng.randbytes(rng.choice((1, 3, 100)))
        elif kind == "blank":
            out[stretch] = bytes(len(out[stretch]))
        elif kind == "random":
            out[stretch] = rng.randbytes(len(out[stretch]))
        elif kind == "swap":
            other = rng.randrange(len(out) + 1)
            out[stretch], out[other : other + 8] = out[other : other + 8], out[stretch]
        else:
            out[at:at] = out[stretch]
    return bytes(out)


def attempt(reader, path, out, tolerant=True):
    """(texts in the store, its manifest), or None where it ended with one clear line."""
    options = Options(max_bad=1.0 if tolerant else 0.0)
    try:
        manifest = prepare(reader(str(path), Fields()), byte(), out, options, {})
    except UserError as e:
        assert "\n" not in str(e) and len(str(e)) < 1000
        assert not (out / "manifest.json").exists()
        return None
    store = TokenStore.open(out)
    store.verify()
    return [byte().decode(ids) for _, _, ids in store.documents()], manifest


def documents_in(content: bytes) -> list[str]:
    """What a file of JSON lines holds."""
    found = []
    for line in content.split(b"\n"):
        try:
            record = json.loads(line.decode("utf-8-sig"))
            document = record["text"]
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
        if isinstance(document, str) and isinstance(record, dict) and document.strip():
            found.append(document.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    return found


@pytest.mark.parametrize("suffix", list(COMPRESSIONS))
def test_damaged_json_lines(tmp_path, suffix):
    """In all 900: either skipped and counted with the rest intact, or an error."""
    pack, unpack = COMPRESSIONS[suffix]
    whole, kept = pack(CONTENT), 0
    for seed in range(180):
        rng = random.Random(f"{suffix}/{seed}")
        damaged = corrupt(whole, rng)
        path, out = tmp_path / f"c.jsonl{suffix}", tmp_path / f"s{seed}"
        path.write_bytes(damaged)
        got = attempt(jsonl, path, out)
        try:
            expected = documents_in(unpack(damaged))
        except Exception:  # the libraries raise what they like
            expected = None
        if expected is None:
            # The damage was noticed and counted; what came before it may be in the store.
            assert got is None or "damaged file" in got[1]["skipped"]
        elif expected:
            texts, manifest = got
            assert texts == expected
            lines = [t for t in unpack(damaged).split(b"\n") if t.strip()]
            accounted = len(texts) + manifest["empty"] + sum(manifest["skipped"].values())
            assert accounted == manifest["records"] == len(lines)
            kept += 1
        strict = attempt(jsonl, path, tmp_path / f"t{seed}", tolerant=False)
        assert strict is None or strict[0] == expected  # without tolerance nothing is skipped
    assert suffix or kept > 100


@pytest.mark.parametrize("kind", ["parquet", "array_record", "text", "megatron"])
def test_other_damaged_inputs(tmp_path, kind):
    """600 of them: no traceback, and no text but what the undamaged part of the file holds."""
    source = tmp_path / "source"
    source.mkdir()
    if kind == "parquet":
        pq.write_table(pa.table({"text": TEXTS}), source / "c.parquet", row_group_size=10, write_page_checksum=True)
    elif kind == "array_record":
        from array_record.python.array_record_module import ArrayRecordWriter

        writer = ArrayRecordWriter(str(source / "c.array_record"), "group_size:1")
        for t in TEXTS:
            writer.write(t.encode())
        writer.close()
    elif kind == "text":
        (source / "c.txt").write_text("\n".join(TEXTS))
    else:
        with Writer(source / "c", np.dtype("u2")) as writer:
            for t in TEXTS:
                writer.add(np.frombuffer(t.encode(), np.uint8))
    reader = {"parquet": parquet, "array_record": array_record, "text": text, "megatron": megatron}[kind]
    files = sorted(source.iterdir())
    for seed in range(150):
        rng, folder = random.Random(f"{kind}/{seed}"), tmp_path / f"f{seed}"
        shutil.copytree(source, folder)
        victim = folder / rng.choice(files).name
        damaged = corrupt(victim.read_bytes(), rng)
        victim.write_bytes(damaged)
        got = attempt(reader, folder, tmp_path / f"s{seed}")
        if got is None or kind == "parquet":
            continue  # pages of Parquet have checksums that not every reader of them compares
        if kind == "text":
            assert got[0] == [damaged.decode("utf-8-sig")]
        elif kind == "megatron" and victim.suffix == ".idx":
            # Every document is a stretch of the ids as they lie there.
            ids = "".join(TEXTS)
            assert all(t in ids for t in got[0] if "\ufffd" not in t)
        elif kind == "array_record":
            assert sum(t in TEXTS for t in got[0]) >= len(got[0]) - 3


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store of two splits and some shards, and the bytes and tokens it has."""
    folder = tmp_path_factory.mktemp("whole") / "s"
    prepare([Part("p", lambda: iter(TEXTS))], byte(), folder, Options(validation=0.3, shard_tokens=800), {})
    return folder, tokens_of(folder)


def tokens_of(folder):
    stores = (TokenStore.open(folder, split) for split in ("train", "validation"))
    return [s.read(0, s.n_tokens).tolist() for s in stores]


def test_damaged_stores(tmp_path, store):
    """500 of them: refused in one line, or not a digit changed."""
    whole, expected = store
    files = sorted(p.name for p in whole.iterdir() if not p.name.startswith("."))
    refused = 0
    for seed in range(500):
        rng, folder = random.Random(seed), tmp_path / "s"
        shutil.copytree(whole, folder)
        victim = folder / rng.choice(files)
        before = victim.read_bytes()
        if rng.random() < 0.05:
            victim.unlink()
        else:
            victim.write_bytes(corrupt(before, rng))
        try:
            sources, _ = open_sources({"a": SourceSpec(store=str(folder))}, TokenizerSpec(), tmp_path, print)
        except UserError as e:
            assert "\n" not in str(e) and len(str(e)) < 1000
            refused += 1
        else:
            source = sources["a"]
            assert [s.read(0, s.n_tokens).tolist() for s in (source.train, source.validation)] == expected
        shutil.rmtree(folder)
    assert refused > 400


def test_a_damaged_attempt_is_gone_on_with_to_the_same_store(tmp_path, monkeypatch):
    """150 half-made stores, damaged: the next run finds it out or is not touched by it, and makes the right one."""
    monkeypatch.setattr(tokenizing, "BATCH_CHARACTERS", 500)
    monkeypatch.setattr(tokenizing, "COMMIT_TOKENS", 0)
    options = Options(validation=0.2, shard_tokens=400, dedup=True)

    class Killed(BaseException):
        pass

    def stops():
        yield from TEXTS[:40]
        raise Killed

    prepare([Part("p", lambda: iter(TEXTS))], byte(), tmp_path / "whole", options, {})
    with pytest.raises(Killed):
        prepare([Part("p", stops)], byte(), tmp_path / "half", options, {})
    files = sorted(p.name for p in (tmp_path / "half").iterdir() if not p.name.startswith("."))
    closed = {p.name for p in (tmp_path / "half").glob("*.idx")}
    expected = tokens_of(tmp_path / "whole")
    for seed in range(150):
        rng, folder = random.Random(seed), tmp_path / "s"
        shutil.copytree(tmp_path / "half", folder)
        victim = folder / rng.choice(files)
        victim.write_bytes(corrupt(victim.read_bytes(), rng))
        try:
            prepare([Part("p", lambda: iter(TEXTS))], byte(), folder, options, {})
            for split in options.splits:
                TokenStore.open(folder, split).verify()
            assert tokens_of(folder) == expected
        except UserError as e:
            # Of a shard that was closed the damage shows when the store is opened; run again, it is made anew.
            assert victim.with_suffix(".idx").name in closed and "\n" not in str(e)
            prepare([Part("p", lambda: iter(TEXTS))], byte(), folder, options, {})
            assert tokens_of(folder) == expected
        shutil.rmtree(folder)


def test_a_locked_journal_is_one_line(tmp_path, monkeypatch):
    def locked(*args, **kwargs):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr("cpt.data.writing.StoreWriter._note", locked)
    with pytest.raises(UserError, match="database or disk is full; make room or mend it, then run the same again"):
        prepare([Part("p", lambda: iter(TEXTS))], byte(), tmp_path, Options(), {})
