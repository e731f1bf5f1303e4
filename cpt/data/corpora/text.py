"""Plain UTF-8 text files, one document each: a file, a folder (recursively) or a glob."""

from __future__ import annotations

from collections.abc import Iterator

from cpt.data.corpora._files import existing
from cpt.errors import DataError

SUFFIXES = (".txt", ".text", ".md", ".markdown", ".rst")


def text(path: str | None, text_field: str) -> Iterator[str]:
    """The documents of the files at `path`, in the order of their names. Empty files are skipped.

    Args:
      path: a file or glob (any suffix), or a folder, of which the `SUFFIXES` are read.
      text_field: not used, plain text has no fields.

    Raises:
      DataError: nothing there, a file that cannot be read or is not UTF-8, no text at all.
    """
    found = existing(path, SUFFIXES)
    empty = True
    for file in found:
        try:
            document = file.read_text(encoding="utf-8-sig")
        except OSError as e:
            raise DataError(f"{file}: cannot be read ({e.strerror})") from e
        except UnicodeDecodeError as e:
            raise DataError(f"{file}: not UTF-8 text (byte {e.start:,}); convert it with iconv, or leave it out") from e
        if document.strip():
            empty = False
            yield document
    if empty:
        raise DataError(f"{path}: {len(found)} files, but no text in them")
