"""JSON lines (`.jsonl`, `.ndjson`, also `.gz`): one object per line, the text in one of its fields."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from cpt.data.corpora._files import existing, well_formed
from cpt.errors import DataError

SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")


def jsonl(path: str | None, text_field: str) -> Iterator[str]:
    """The documents of the files at `path`, in the order of file names and lines. Blank lines are skipped.

    Args:
      path: a file or glob (any suffix), or a folder, of which the `SUFFIXES` are read.
      text_field: the field that holds the text; `meta.text` is the field `text` of the object `meta`.

    Raises:
      DataError: nothing there, invalid JSON, a line without the field or with something else than a string in it; each
        with file and line number.
    """
    empty = True
    for file in existing(path, SUFFIXES):
        for number, line in _lines(file):
            if line.strip():
                empty = False
                yield _document(line, text_field, f"{file}:{number}")
    if empty:
        raise DataError(f"{path}: no documents, every file is empty")


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines; bytes, because only `\\n` ends a line of JSON lines (text mode would also end it at `\\r`)."""
    if file.suffix in (".zst", ".xz", ".bz2"):
        raise DataError(f"{file}: {file.suffix} is not read here; decompress it first, or use .gz")
    number = 0
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise DataError(f"{file}:{number + 1}: damaged gzip file ({e}); copy it again") from e
    except OSError as e:
        raise DataError(f"{file}: cannot be read ({e.strerror})") from e


def _document(line: bytes, text_field: str, where: str) -> str:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as e:
        raise DataError(f"{where}: not UTF-8 (byte {e.start:,} of the line); convert the file with iconv") from e
    except (json.JSONDecodeError, RecursionError) as e:
        raise DataError(f"{where}: invalid JSON ({e}); mend or remove the line") from e
    for name in text_field.split("."):
        if not isinstance(value, dict) or name not in value:
            has = f"it has {', '.join(sorted(value)[:8])}" if isinstance(value, dict) else "not an object"
            raise DataError(f"{where}: no field '{text_field}' ({has}); set text_field to the one with the text")
        value = value[name]
    if not isinstance(value, str):
        raise DataError(f"{where}: field '{text_field}' holds {type(value).__name__}, not a string")
    return well_formed(value)
