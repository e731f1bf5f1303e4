"""Readers of raw text: what they yield, in which order, and the line they end with when a file is wrong."""

import ast
import gzip
import json
import subprocess
import sys

import pytest

from cpt.data.corpora import _stdlib
from cpt.data.corpora._files import stamp, well_formed
from cpt.data.corpora.jsonl import jsonl
from cpt.data.corpora.stdlib_code import stdlib_code
from cpt.data.corpora.stdlib_prose import stdlib_prose
from cpt.data.corpora.text import text
from cpt.errors import ConfigError, DataError
from cpt.registry import available, find


def test_the_room_offers_the_readers_and_not_the_private_modules():
    assert list(available("cpt.data.corpora")) == ["jsonl", "stdlib_code", "stdlib_prose", "text"]
    assert find("cpt.data.corpora", "jsonl", "x") is jsonl
    with pytest.raises(ConfigError, match=r"sources\.pile\.corpus: no 'jsnl'.*did you mean 'jsonl'"):
        find("cpt.data.corpora", "jsnl", "sources.pile.corpus")


def test_text_reads_folders_globs_and_files_in_name_order(tmp_path):
    (tmp_path / "sub").mkdir()
    for name, content in {"b.txt": "two", "a.md": "one", "sub/c.rst": "three", "d.bin": "no", "e.txt": " \n"}.items():
        (tmp_path / name).write_text(content)
    assert list(text(str(tmp_path), "text")) == ["one", "two", "three"]
    assert list(text(str(tmp_path / "**/*.[tr]*"), "text")) == ["two", "three"]
    assert list(text(str(tmp_path / "d.bin"), "text")) == ["no"]


def test_text_errors_say_what_and_where(tmp_path):
    with pytest.raises(DataError, match=r"data error: .*none\.txt: no such file"):
        list(text(str(tmp_path / "none.txt"), "text"))
    with pytest.raises(DataError, match=r"no \*\.txt.* file in this folder"):
        list(text(str(tmp_path), "text"))
    with pytest.raises(DataError, match="give a path"):
        list(text(None, "text"))
    (tmp_path / "blank.txt").write_text("\n \n")
    with pytest.raises(DataError, match="1 files, but no text"):
        list(text(str(tmp_path), "text"))
    (tmp_path / "latin.txt").write_bytes("Grüße".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.txt: not UTF-8 text \(byte 2\)"):
        list(text(str(tmp_path / "latin.txt"), "text"))


def test_jsonl_reads_plain_and_gzip_nested_fields_and_skips_blank_lines(tmp_path):
    rows = [{"meta": {"text": "ein\u2028s"}}, {"meta": {"text": "zwei\rdrei"}}]
    lines = "\n\n".join(json.dumps(r, ensure_ascii=False) for r in rows).encode() + b"\r\n"
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    expected = ["ein\u2028s", "zwei\rdrei"]
    assert list(jsonl(str(tmp_path), "meta.text")) == expected * 2
    assert list(jsonl(str(tmp_path / "a.*"), "meta.text")) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', r"invalid JSON \("),
        (b'{"txt": "a", "id": 1}', r"no field 'text' \(it has id, txt\)"),
        (b'["text"]', r"no field 'text' \(not an object\)"),
        (b'{"text": 3}', r"field 'text' holds int, not a string"),
        (b'{"text": null}', r"field 'text' holds NoneType, not a string"),
        (b'{"text": "\xff"}', r"not UTF-8 \(byte 10 of the line\)"),
    ],
)
def test_jsonl_errors_carry_the_true_line_number(tmp_path, line, message):
    # Blank lines and a carriage return inside a line must not shift the count.
    (tmp_path / "c.jsonl").write_bytes(b'{"text": "x"}\n\n{"text":\r"y"}\n' + line + b"\n")
    read = jsonl(str(tmp_path / "c.jsonl"), "text")
    assert [next(read), next(read)] == ["x", "y"]
    with pytest.raises(DataError, match=r"^data error: .*c\.jsonl:4: " + message):
        next(read)


def test_jsonl_errors_of_whole_files(tmp_path):
    (tmp_path / "empty.jsonl").write_bytes(b"\n")
    with pytest.raises(DataError, match="no documents"):
        list(jsonl(str(tmp_path / "empty.jsonl"), "text"))
    whole = gzip.compress(b'{"text": "x"}\n' * 1000)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.jsonl\.gz:\d+: damaged gzip file"):
        list(jsonl(str(tmp_path / "cut.jsonl.gz"), "text"))
    (tmp_path / "plain.jsonl.gz").write_bytes(b'{"text": "x"}\n')
    with pytest.raises(DataError, match="damaged gzip file"):
        list(jsonl(str(tmp_path / "plain.jsonl.gz"), "text"))
    (tmp_path / "c.jsonl.zst").write_bytes(b"")
    with pytest.raises(DataError, match=r"\.zst is not read here"):
        list(jsonl(str(tmp_path / "c.jsonl.zst"), "text"))


def test_readers_stream(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"text": "good"}\nnot json\n')
    assert next(jsonl(str(tmp_path / "c.jsonl"), "text")) == "good"  # before the bad line is looked at


def test_lone_surrogates_are_replaced_and_pairs_joined(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"text": "a\\ud800b \\ud83d\\ude00"}\n')
    assert list(jsonl(str(tmp_path), "text")) == ["a\ufffdb \U0001f600"]
    assert well_formed("\ud83d\ude00") == "\U0001f600"


def test_stamp_changes_with_a_file(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    before = stamp(str(tmp_path))
    assert before == stamp(str(tmp_path)) and before[0][1] == 3
    (tmp_path / "a.txt").write_text("four")
    assert stamp(str(tmp_path)) != before
    assert stamp(None) == stamp(None) != []


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
    prose, code = list(stdlib_prose()), list(stdlib_code(None, "text"))
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
        "import sys; from cpt.data.corpora import _stdlib, jsonl, stdlib_code, stdlib_prose, text;"
        "print(sorted({'jax', 'flax', 'grain', 'numpy', 'antigravity', 'this'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"
