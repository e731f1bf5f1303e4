"""Python code that every Python carries: its standard library without docstrings and comments (about 6.9 MB)."""

from __future__ import annotations

from collections.abc import Iterator

from cpt.data.corpora._base import Fields
from cpt.data.corpora._stdlib import source_files


def stdlib_code(path: str | None = None, fields: Fields | None = None) -> Iterator[str]:
    """One document per source file, sorted by path, in the layout of `ast.unparse`.

    Docstrings and comments are dropped, so that this corpus and `stdlib_prose` share no text: a shift from one to the
    other is a real one. Tests are left out, because not every distribution has them. Neither argument is used.

    Raises:
      DataError: this Python has no source files.
    """
    for file in source_files():
        if file.code:
            yield file.code + "\n"
