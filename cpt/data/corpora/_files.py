"""What the file readers share: which files a path means, which version of them this is, text that is valid Unicode."""

from __future__ import annotations

import glob
import platform
import sys
from pathlib import Path

from cpt.errors import DataError


def matches(path: str, suffixes: tuple[str, ...]) -> list[Path]:
    """The files that `path` means, sorted: a file, a folder (its files with `suffixes`, recursively) or a glob."""
    here = Path(path).expanduser()
    if here.is_file():
        return [here]
    if here.is_dir():
        return sorted(p for p in here.rglob("*") if p.is_file() and p.name.endswith(suffixes))
    return sorted(p for p in map(Path, glob.glob(str(here), recursive=True)) if p.is_file())


def existing(path: str | None, suffixes: tuple[str, ...]) -> list[Path]:
    """`matches`, and at least one.

    Raises:
      DataError: no path was given, or it matches no file.
    """
    if not path:
        raise DataError("this corpus reads files: give a path (a file, a folder or a glob)")
    found = matches(path, suffixes)
    if not found:
        folder = Path(path).expanduser().is_dir()
        what = f"no {', '.join('*' + s for s in suffixes)} file in this folder" if folder else "no such file"
        raise DataError(f"{path}: {what} (looked in {Path.cwd()})")
    return found


def stamp(path: str | None) -> list[list]:
    """What changes when the text behind `path` may have changed: `[name, bytes, mtime_ns]` of every file.

    Without a path the text comes from the interpreter (the standard library), whose version is the stamp.
    """
    if not path:
        return [[sys.implementation.name, platform.python_version()]]
    found = ((p, p.stat()) for p in matches(path, suffixes=("",)))
    return [[str(p), s.st_size, s.st_mtime_ns] for p, s in found]


def well_formed(text: str) -> str:
    """`text` without lone surrogates (`"\\ud800"` is legal in JSON and in Python source, but not in UTF-8)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
