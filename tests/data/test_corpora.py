"""Readers of raw text: what they yield, in which order, and the line they end with when a file is wrong."""

import ast
import bz2
import gzip
import io
import json
import lzma
import pickle
import subprocess
import sys
import tracemalloc

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from cpt.data.corpora import _stdlib
from cpt.data.corpora import jsonl as lines
from cpt.data.corpora._base import METER, Bad, Fields, document_of, parts_of, texts
from cpt.data.corpora._files import existing, stamp, well_formed
from cpt.data.corpora.array_record import array_record
from cpt.data.corpora.jsonl import jsonl
from cpt.data.corpora.megatron import megatron
from cpt.data.corpora.parquet import parquet
from cpt.data.corpora.stdlib_code import stdlib_code
from cpt.data.corpora.stdlib_prose import stdlib_prose
from cpt.data.corpora.text import text
from cpt.data.megatron import Writer
from cpt.errors import ConfigError, DataError
from cpt.registry import available, find


def zst(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)  # as the `zstd` command does


def items(reader, path, text_field="text", domain=None):
    """Documents as their text (or ids), with the domain where there is one; what is bad as its line."""
    out = []
    for part in parts_of(reader, None if path is None else str(path), Fields(text_field, domain)):
        for item in part.open():
            found = document_of(pickle.loads(pickle.dumps(item)))  # as it reaches a worker
            if isinstance(found, Bad):
                out.append(str(found))
            else:
                content = found.text if found.ids is None else found.ids.tolist()
                out.append((found.domain, content) if domain else content)
    return out


def test_the_room_offers_the_readers_and_not_the_private_modules():
    offered = ["array_record", "jsonl", "megatron", "parquet", "stdlib_code", "stdlib_prose", "text", "tfds"]
    assert list(available("cpt.data.corpora")) == offered
    assert find("cpt.data.corpora", "jsonl", "x") is jsonl
    with pytest.raises(ConfigError, match=r"sources\.pile\.corpus: no 'jsnl'.*did you mean 'jsonl'"):
        find("cpt.data.corpora", "jsnl", "sources.pile.corpus")


# ---- which files


def test_text_reads_folders_globs_and_files_in_name_order(tmp_path):
    (tmp_path / "sub").mkdir()
    for name, content in {"b.txt": "two", "a.md": "one", "sub/c.rst": "three", "d.bin": "no", "e.txt": " \n"}.items():
        (tmp_path / name).write_text(content)
    assert items(text, tmp_path) == ["one", "two", " \n", "three"]
    assert items(text, tmp_path / "**/*.[tr]*") == ["two", " \n", "three"]
    assert items(text, tmp_path / "d.bin") == ["no"]
    several = f"{tmp_path}/sub,{tmp_path}/b.txt,{tmp_path}/*.txt"  # in the order given, none twice
    assert items(text, several) == ["three", "two", " \n"]
    assert items(text, f"{tmp_path}/sub, {tmp_path}/sub/../sub/c.rst") == ["three"]
    (tmp_path / "f,g.txt").write_text("comma")
    assert items(text, tmp_path / "f,g.txt") == ["comma"]


def test_a_list_of_files_may_be_long_and_each_must_be_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [f"part-{i:05}.txt" for i in range(400)]
    for name in names:
        (tmp_path / name).write_text(name)
    assert items(text, ",".join(reversed(names))) == names[::-1]
    with pytest.raises(DataError, match=r"data error: nope\.txt: no such file \(looked in "):
        items(text, ",".join([*names, "nope.txt"]))


def test_folders_as_domains_are_the_first_below_the_given_one(tmp_path, monkeypatch):
    for name in ("top.txt", "en/a.txt", "en/web/b.txt", "de/c.txt"):
        (tmp_path / "all" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "all" / name).write_text(name)
    of = {"de/c.txt": "de", "en/a.txt": "en", "en/web/b.txt": "en", "top.txt": "all"}
    domains = lambda path: {t: d for d, t in items(text, path, domain="folder")}  # noqa: E731
    assert domains(tmp_path / "all") == of == domains(f"{tmp_path}/all/**/*.txt") | {"top.txt": "all"}
    assert domains(f"{tmp_path}/all/en,{tmp_path}/all/de/c.txt") == {
        "en/a.txt": "en",
        "en/web/b.txt": "web",
        "de/c.txt": "de",
    }
    monkeypatch.chdir(tmp_path / "all")
    assert domains("*/*.txt") == {"de/c.txt": "de", "en/a.txt": "en"}
    assert domains("top.txt") == {"top.txt": "all"}
    memory = fsspec.filesystem("memory")
    memory.pipe("/domains/en/x/a.txt", b"a")
    memory.pipe("/domains/de/b.txt", b"b")
    for path in ("memory://domains", "memory://domains/**/*.txt"):
        assert domains(path) == {"a": "en", "b": "de"}


def test_text_errors_say_what_and_where(tmp_path):
    with pytest.raises(DataError, match=r"data error: .*none\.txt: no such file"):
        items(text, tmp_path / "none.txt")
    with pytest.raises(DataError, match=r"no \*\.txt.* file in this folder"):
        items(text, tmp_path)
    with pytest.raises(DataError, match="give a path"):
        items(text, None)
    with pytest.raises(DataError, match="text files have no field 'meta'; domain_field=folder takes their folders"):
        items(text, tmp_path, domain="meta")
    (tmp_path / "latin.txt").write_bytes("Grüße".encode("latin-1"))
    (only,) = items(text, tmp_path / "latin.txt")
    assert only.endswith("latin.txt: not UTF-8 text (byte 2); convert it with iconv, or leave it out")


def test_files_far_away_read_like_those_here(tmp_path):
    memory = fsspec.filesystem("memory")
    for name in ("b", "a"):
        memory.pipe(f"/bucket/{name}.jsonl.gz", gzip.compress(json.dumps({"text": name}).encode()))
    memory.pipe("/bucket/notes.md", b"no")
    (tmp_path / "x.jsonl").write_text('{"text": "here"}')
    table = pa.table({"text": ["p"]})
    with memory.open("/bucket/t.parquet", "wb") as f:
        pq.write_table(table, f)
    assert items(jsonl, "memory://bucket/*.jsonl.gz") == ["a", "b"]
    assert items(jsonl, "memory://bucket") == ["a", "b"]
    assert items(jsonl, "memory://bucket/b.jsonl.gz") == ["b"]
    assert items(parquet, "memory://bucket/t.parquet") == ["p"]
    before = stamp("memory://bucket/*.gz")
    memory.pipe("/bucket/a.jsonl.gz", gzip.compress(b'{"text": "changed"}'))
    assert stamp("memory://bucket/*.gz") != before and len(before) == 2
    with pytest.raises(DataError, match="memory://none/x: no such file"):
        items(jsonl, "memory://none/x")
    memory.pipe("/one.jsonl/notes.jsonl.md", b"no")  # of a folder only the suffixes are read, be it one file
    for path in ("memory://one.jsonl", "memory://one.jsonl/"):
        with pytest.raises(DataError, match=r"no folder with a \*\.jsonl"):
            items(jsonl, path)
    assert items(jsonl, f"file://{tmp_path}/x.jsonl") == ["here"]
    with pytest.raises(DataError, match="no such protocol as nope://"):
        items(jsonl, "nope://x")


def test_a_protocol_without_its_client_names_the_package(monkeypatch):
    def missing(path):
        raise ImportError(path)

    def locked(path):
        raise RuntimeError("no credentials")

    monkeypatch.setattr(fsspec, "url_to_fs", missing)
    with pytest.raises(DataError, match=r"gs://b/x: gs:// needs a client that is not installed; `pip install gcsfs`"):
        existing("gs://b/x", (".jsonl",))
    monkeypatch.setattr(fsspec, "url_to_fs", locked)
    with pytest.raises(DataError, match=r"gs://b/x: gs:// cannot be opened \(no credentials\)"):
        existing("gs://b/x", (".jsonl",))


def test_a_client_that_fails_while_reading_is_a_file_that_cannot_be_read(monkeypatch):
    class ConnectionLost(Exception):
        """As clients have of their own."""

    class Flaky(io.BytesIO):
        def read(self, n=-1):
            if self.tell():
                raise ConnectionLost("gone")
            return super().read(min(n, 300))

    memory = fsspec.filesystem("memory")
    memory.pipe("/flaky/a.jsonl", b'{"text": "x"}\n' * 50)
    monkeypatch.setattr(type(memory), "_open", lambda self, path, mode, **k: Flaky(self.cat(path)))
    *before, last = items(jsonl, "memory://flaky/a.jsonl")
    assert before == ["x"] * (300 // 14) and last.endswith("a.jsonl:22: cannot be read (gone)")


# ---- JSON lines


def test_jsonl_reads_nested_fields_and_skips_blank_lines_whatever_the_compression(tmp_path):
    rows = [{"meta": {"text": "ein\u2028s"}}, {"meta": {"text": "zwei\rdrei"}}]
    content = "\n\n".join(json.dumps(r, ensure_ascii=False) for r in rows).encode() + b"\r\n"
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + content)
    frames = zst(content[:20]) + zst(content[20:])  # as files that were put together have
    compressed = {
        "gz": gzip.compress(content),
        "zst": frames,
        "bz2": bz2.compress(content),
        "xz": lzma.compress(content),
    }
    for suffix, data in compressed.items():
        (tmp_path / f"b.jsonl.{suffix}").write_bytes(data)
    expected = ["ein\u2028s", "zwei\rdrei"]
    assert items(jsonl, tmp_path, "meta.text") == expected * 5
    assert items(jsonl, tmp_path / "b.*.zst", "meta.text") == expected


def test_domains_and_the_old_names_of_the_pile(tmp_path):
    names = ["Pile-CC", "CommonCrawl", "Bibliotik", "USPTO", "BookCorpus", "BookCorpus2", "Github"]
    rows = [{"text": str(i), "meta": {"pile_set_name": n, "other": n}} for i, n in enumerate(names)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    new = ["Pile-CC", "Pile-CC", "Books3", "USPTO Backgrounds", "BookCorpus2", "BookCorpus2", "Github"]
    assert [d for d, _ in items(jsonl, tmp_path, domain="meta.pile_set_name")] == new
    assert [d for d, _ in items(jsonl, tmp_path, domain="meta.other")] == names
    (line, *_) = items(jsonl, tmp_path, domain="meta.redpajama_set_name")
    assert "p.jsonl:1: no field 'meta.redpajama_set_name' (it has other, pile_set_name); set domain_field" in line


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', "invalid JSON ("),
        (b'{"text": "a" ' + b"[" * 100_000, "invalid JSON ("),
        (b"[" * 100_000, "invalid JSON ("),
        (b'{"txt": "a", "id": 1}', "no field 'text' (it has id, txt)"),
        (b'["text"]', "no field 'text' (not an object)"),
        (b'{"text": 3}', "field 'text' holds int, not a string"),
        (b'{"text": null}', "field 'text' holds NoneType, not a string"),
        (b'{"text": ["a", "b"]}', "field 'text' holds list, not a string"),
        (b'{"text": [1, 99999999999999999999]}', "field 'text' holds integers that are too large"),
        (b'{"text": "\xff"}', "not UTF-8 (byte 10 of the line)"),
        (b"\x00", "invalid JSON ("),
    ],
)
def test_a_bad_line_is_counted_with_its_true_number_and_the_rest_is_read(tmp_path, line, message):
    # Blank lines and a carriage return inside a line must not shift the count.
    (tmp_path / "c.jsonl").write_bytes(b'{"text": "x"}\n\n{"text":\r"y"}\n' + line + b'\n{"text": "z"}')
    x, y, bad, z = items(jsonl, tmp_path / "c.jsonl")
    assert (x, y, z) == ("x", "y", "z")
    assert bad.startswith(f"{tmp_path}/c.jsonl:4: {message}") and "\n" not in bad


@pytest.mark.parametrize("kind", ["gz", "zst", "bz2", "xz"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "plain"])
def test_a_damaged_file_ends_with_its_name_and_never_with_other_text(tmp_path, kind, damage):
    rows = [json.dumps({"text": f"line {i} {np.random.default_rng(i).bytes(30).hex()}"}) for i in range(5000)]
    content = "\n".join(rows).encode()
    pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zst}
    whole = pack[kind](content)
    middle = len(whole) // 2
    data = {
        "cut": whole[:middle],
        "flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "plain": b'{"text": "x"}\n',
    }[damage]
    (tmp_path / f"c.jsonl.{kind}").write_bytes(data)
    *before, last = items(jsonl, tmp_path)
    name = {"gz": "gzip", "zst": "zstd"}.get(kind, kind)
    assert f"damaged {name} file" in last and last.startswith(f"{tmp_path}/c.jsonl.{kind}:") and "\n" not in last
    if damage == "cut":
        assert before == [json.loads(r)["text"] for r in rows][: len(before)] and (before or kind != "gz")


def test_a_file_that_vanishes_is_a_bad_one(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text('{"text": "x"}\n')
    parts = jsonl(str(tmp_path), Fields())
    (tmp_path / "a.jsonl").unlink()
    (gone,), (there,) = (list(p.open()) for p in parts)
    assert gone.ends_part and gone.kind == "cannot be read"
    assert "a.jsonl:1: cannot be read (No such file" in str(gone)
    assert document_of(there).text == "x"


def test_a_zstd_window_that_is_too_large_is_named(tmp_path):
    large = zstandard.ZstdCompressionParameters.from_level(3, window_log=28)
    packer = zstandard.ZstdCompressor(compression_params=large).compressobj()  # so that the frame states the window
    (tmp_path / "c.jsonl.zst").write_bytes(packer.compress(b'{"text": "x"}\n') + packer.flush())
    (only,) = items(jsonl, tmp_path)
    assert "c.jsonl.zst:1: compressed with a window of more than 128 MiB (zstd --long)" in only


def test_lines_that_are_no_records_are_not_held_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "LONGEST", 1 << 16)
    (tmp_path / "c.jsonl").write_bytes(b'{"text": "a"}\n' + b"x" * (10 << 20) + b'\n{"text": "b"}\n')
    tracemalloc.start()
    a, bad, b = items(jsonl, tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (a, b) == ("a", "b") and "c.jsonl:2: a line of more than 65,536 bytes" in bad and peak < 4 << 20


@pytest.mark.parametrize("suffix", ["", ".zst", ".gz"])
def test_readers_stream_in_constant_memory_and_meter_what_they_read(tmp_path, suffix):
    row = json.dumps({"text": "word " * 2000}).encode() + b"\n"
    content = row * 2000  # 20 MB
    path = tmp_path / f"c.jsonl{suffix}"
    path.write_bytes({"": bytes, ".zst": zst, ".gz": gzip.compress}[suffix](content))
    before = METER.read
    tracemalloc.start()
    (part,) = jsonl(str(path), Fields())
    count = sum(len(document_of(item).text) for item in part.open())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 2000 * 10_000 and peak < 4 << 20
    assert METER.read - before == path.stat().st_size == part.size


@pytest.mark.slow
def test_records_of_200_megabytes_are_held_one_at_a_time(tmp_path):
    with (tmp_path / "c.jsonl.zst").open("wb") as f, zstandard.ZstdCompressor().stream_writer(f) as writer:
        for _ in range(3):
            writer.write(b'{"text": "' + b"word " * 40_000_000 + b'"}\n')
    (part,) = jsonl(str(tmp_path), Fields())
    peaks = []
    tracemalloc.start()
    for item in part.open():
        assert item.characters == 200_000_013
        peaks.append(tracemalloc.get_traced_memory()[1])
        del item
    tracemalloc.stop()
    assert len(peaks) == 3 and peaks[-1] < peaks[0] + (1 << 20) < 450e6  # in pieces and as a whole


# ---- columns, records and ids


def test_parquet_reads_columns_nested_fields_and_ids(tmp_path):
    meta = [{"name": "a", "n": 1}, {"name": "b", "n": 2}, None]
    table = pa.table({"content": ["eins", None, "drei"], "meta": meta, "ids": [[1, 2], [3], []]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    eins, bad, drei = items(parquet, tmp_path, "content")
    assert (eins, drei) == ("eins", "drei") and "t.parquet:2: field 'content' holds NoneType" in bad
    a, b, none = items(parquet, tmp_path, "meta.name", domain="content")
    assert a == ("eins", "a") and "t.parquet:2: field 'content'" in b and "t.parquet:3: no field 'meta.name'" in none
    assert items(parquet, tmp_path, "ids") == [[1, 2], [3], []]
    (missing,) = items(parquet, tmp_path, "text")
    assert "t.parquet: no column 'text' (it has content, ids.list.element, meta.n, meta.name)" in missing


def test_parquet_holds_a_batch_in_memory_and_not_a_row_group(tmp_path):
    rng = np.random.default_rng(0)
    table = pa.table({"text": [rng.bytes(5000).hex() for _ in range(6000)]})
    pq.write_table(table, tmp_path / "t.parquet", use_dictionary=False)  # 60 MB
    del table
    (part,) = parquet(str(tmp_path), Fields())
    before = pa.total_allocated_bytes()
    tracemalloc.start()  # what is read is held by Python, what is decoded by Arrow
    peak = max(pa.total_allocated_bytes() - before for _ in part.open())
    peak += tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.75 * part.size


def test_parquet_rows_that_are_not_utf8_are_counted(tmp_path):
    valid = pa.array([b"eins", b"\xff\xfe", b"drei"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, valid.buffers())
    pq.write_table(pa.table({"text": text}), tmp_path / "t.parquet")
    eins, bad, drei = items(parquet, tmp_path)
    assert (eins, drei) == ("eins", "drei") and "t.parquet:2: not UTF-8" in bad


def test_a_damaged_parquet_file_is_a_bad_one(tmp_path):
    pq.write_table(pa.table({"text": [f"text {i}" for i in range(5000)]}), tmp_path / "t.parquet", row_group_size=100)
    whole = (tmp_path / "t.parquet").read_bytes()
    for content in (whole[:-20], whole[:500], b"", b"PAR1" * 9):
        (tmp_path / "t.parquet").write_bytes(content)
        *_, last = items(parquet, tmp_path)
        assert "t.parquet:" in last and ("damaged file" in last or "cannot be read" in last)


def test_array_records_hold_text_or_ids(tmp_path):
    from array_record.python.array_record_module import ArrayRecordWriter

    for name, records in {"t": [b"eins", b"\xff"], "i": [np.array([1, 300], "<u2").tobytes(), b"abc"]}.items():
        writer = ArrayRecordWriter(str(tmp_path / f"{name}.array_record"), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()
    eins, bad = items(array_record, tmp_path / "t.array_record")
    assert eins == "eins" and "t.array_record:2: not UTF-8" in bad
    ids, bad = items(array_record, tmp_path / "i.array_record", "uint16")
    assert ids == [1, 300] and "i.array_record:2: 3 bytes are no ids of uint16" in bad
    with pytest.raises(DataError, match="no field 'unit16'; did you mean 'uint16'"):
        items(array_record, tmp_path / "i.array_record", "unit16")
    (tmp_path / "x.array_record").write_bytes(b"nothing of the kind")
    assert "x.array_record:1: damaged file" in items(array_record, tmp_path / "x.array_record")[0]


def test_megatron_pairs_give_their_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[megatron.__module__], "DOCUMENTS", 2)
    for name, documents in {"a": [[1, 2], [], [3]], "b": [[4]]}.items():
        with Writer(tmp_path / name, np.dtype("u2")) as writer:
            for ids in documents:
                writer.add(np.array(ids, np.int64))
    for path in (tmp_path, f"{tmp_path}/a,{tmp_path}/b.idx", f"{tmp_path}/*.idx"):
        assert items(megatron, path) == [[1, 2], [], [3], [4]]
    fsspec.filesystem("memory").pipe("/pairs/a.idx", b"")
    with pytest.raises(DataError, match=r"memory:.*a\.idx: Megatron pairs are read from local disks only"):
        items(megatron, "memory://pairs")
    (tmp_path / "b.bin").write_bytes(b"\0")
    with pytest.raises(DataError, match=r"1 bytes shorter than b\.idx says"):
        items(megatron, tmp_path / "b.idx")


def test_text_of_a_corpus_for_a_tokenizer(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"text": "good"}\nnot json\n{"text": "more"}\n')
    assert list(texts(jsonl(str(tmp_path), Fields()))) == ["good", "more"]
    with Writer(tmp_path / "a", np.dtype("u2")) as writer:
        writer.add(np.array([1]))
    with pytest.raises(DataError, match="holds token ids, no text that a tokenizer could be trained on"):
        list(texts(megatron(str(tmp_path / "a"), Fields())))


def test_lone_surrogates_are_replaced_and_pairs_joined(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"text": "a\\ud800b \\ud83d\\ude00"}\n')
    assert [well_formed(t) for t in items(jsonl, tmp_path)] == ["a\ufffdb \U0001f600"]
    assert well_formed("\ud83d\ude00") == "\U0001f600"


def test_stamp_changes_with_a_file(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    before = stamp(str(tmp_path))
    assert before == stamp(str(tmp_path)) and before[0][1] == 3
    (tmp_path / "a.txt").write_text("four")
    assert stamp(str(tmp_path)) != before
    assert stamp(None) == stamp(None) != []
    (tmp_path / "a#train.txt").write_text("in the name")
    assert stamp(f"{tmp_path}/a#train.txt")[0][1] == 11
    assert stamp(f"{tmp_path}#train") == stamp(str(tmp_path))  # the split of a TFDS data set


SOURCE = '''
"""Module."""
class A:
    """Class."""
    def f(self):
        """Method."""
    x = "kept"  # a comment
async def g():
    """Function.

        Indented.
    """
    return """not a docstring"""
if True:
    def h():
        "Nested."
        return 1
def undocumented(): return 2
'''


def test_docstrings_come_out_in_source_order_and_leave_code(tmp_path):
    (tmp_path / "m.py").write_text(SOURCE)
    file = _stdlib._take_apart(tmp_path, (tmp_path / "m.py").relative_to(tmp_path))
    assert file.prose.split("\n\n") == ["Module.", "Class.", "Method.", "Function.", "Indented.", "Nested."]
    for gone in ("Module.", "Class.", "Method.", "Function.", "Nested.", "comment"):
        assert gone not in file.code
    assert "x = 'kept'" in file.code and "not a docstring" in file.code and "pass" in file.code


def test_unreadable_and_unwanted_files_are_left_out(tmp_path, monkeypatch):
    for name in (
        "z.py",
        "good.py",
        "a/b.py",
        "test/t.py",
        "lib/tests/t.py",
        "site-packages/s.py",
        "pydoc_data/topics.py",
        "bad.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1" if name != "bad.py" else "print 'old'")
    (tmp_path / "nul.py").write_bytes(b"x = '\0'")
    (tmp_path / "dangling.py").symlink_to(tmp_path / "nowhere.py")
    monkeypatch.setattr(_stdlib.sysconfig, "get_path", lambda name: str(tmp_path))
    assert [f.name for f in _stdlib.source_files.__wrapped__()] == ["a/b.py", "good.py", "z.py"]
    for name in ("a/b.py", "good.py", "z.py"):
        (tmp_path / name).unlink()
    with pytest.raises(DataError, match="no standard library source files"):
        _stdlib.source_files.__wrapped__()


@pytest.mark.slow
def test_the_standard_library_gives_prose_and_code():
    prose, code = list(stdlib_prose()), list(stdlib_code(None, Fields()))
    # 2.0 MB and 5.6 MB in Debian's 3.11, 2.3 and 6.4 in CPython's own.
    assert 1.5e6 < sum(map(len, prose)) < 4e6 and 4e6 < sum(map(len, code)) < 10e6
    assert len(prose) > 400 and len(code) > 400
    names = [f.name for f in _stdlib.source_files()]
    assert names == sorted(names, key=lambda n: n.split("/")) and "json/decoder.py" in names
    assert not any({"test", "tests", "idle_test", "site-packages"} & set(n.split("/")[:-1]) for n in names)
    tree = ast.parse(code[names.index("json/decoder.py")])
    assert not any(ast.get_docstring(n) for n in ast.walk(tree) if isinstance(n, ast.ClassDef | ast.FunctionDef))
    decoder = next(d for d in prose if d.startswith("Implementation of JSONDecoder"))
    assert "Simple JSON <https://json.org> decoder" in decoder and "\n    Simple" not in decoder
    assert any(d.startswith("The standard type hierarchy") for d in prose)  # a topic of help()


def test_reading_corpora_imports_neither_jax_nor_the_modules_read():
    program = (
        "import sys; from cpt.data.corpora import _stdlib, jsonl, parquet, stdlib_code, stdlib_prose, text, tfds;"
        "heavy = {'jax', 'flax', 'grain', 'pyarrow', 'fsspec', 'tensorflow_datasets', 'antigravity', 'this'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"
