"""What the file readers share: which files a path means, here or far away, how they are opened, which version it is."""

from __future__ import annotations

import glob
import os
import platform
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from cpt.data.corpora._base import Bad
from cpt.data.corpora._streams import COMPRESSED, answer, decompressed, filesystem, opened
from cpt.errors import DataError


@dataclass(frozen=True)
class InputFile:
    """A file to read.

    Attributes:
      name: its path, or its address where that has a protocol (`gs://bucket/file`).
      size: bytes on disk.
      version: changes when its content may have changed: a time, or what the protocol has for one.
      folder: where it was looked for: the folder that was given, or that the glob begins in, or its own.
    """

    name: str
    size: int
    version: Any
    folder: str

    def open(self) -> BinaryIO:
        """Its content, decompressed by its suffix; what is read from disk is counted on the meter.

        Raises:
          OSError: it cannot be opened.
        """
        return decompressed(self.name, self.open_raw())

    def open_raw(self) -> BinaryIO:
        """Its bytes as they lie there, counted on the meter; seekable."""
        return opened(self.name)

    @property
    def first_folder(self) -> str:
        """The first folder below the one where it was looked for; of a file right in that, the name of that."""
        below = PurePath(self.name).relative_to(PurePath(self.folder)).parts
        return below[0] if len(below) > 1 else PurePath(os.path.abspath(self.folder)).name

    def damaged(self, error: Exception, at: str = "") -> Bad:
        """What is said of a file that cannot be read (on), after `at`, such as `:17`."""
        why = f"damaged file ({error}); copy it again"
        if isinstance(error, OSError) and error.strerror:
            why = f"cannot be read ({error.strerror})"
            return Bad("cannot be read", f"{self.name}{at}", why, ends_part=True)
        if "requires too much memory" in str(error):
            why = "compressed with a window of more than 128 MiB (zstd --long); compress it again without"
        elif kind := next((k[1:] for k in COMPRESSED if self.name.endswith(k)), ""):
            why = f"damaged {dict(gz='gzip', zst='zstd').get(kind, kind)} file ({error}); copy it again"
        return Bad("damaged file", f"{self.name}{at}", why, ends_part=True)


def matches(path: str, suffixes: tuple[str, ...]) -> list[InputFile]:
    """The files that `path` means: those of each of its comma-separated parts in turn, sorted, none twice.

    A part is a file, a folder (its files with `suffixes`, recursively) or a glob, here or behind a protocol.

    Raises:
      DataError: a protocol without its client, or that does not answer.
    """
    return _none_twice(file for part in _parts(path) for file in _matches(part, suffixes))


def existing(path: str | None, suffixes: tuple[str, ...]) -> list[InputFile]:
    """`matches`, and at least one for each part.

    Raises:
      DataError: no path was given, or a part of it matches no file.
    """
    if not path or not _parts(path):
        raise DataError("this corpus reads files: give a path (a file, a folder or a glob)")
    found = []
    for part in _parts(path):
        files = _matches(part, suffixes)
        if not files:
            kinds = ", ".join("*" + s for s in suffixes)
            if "://" in part:
                raise DataError(f"{part}: no such file, and no folder with a {kinds} file")
            what = f"no {kinds} file in this folder" if os.path.isdir(os.path.expanduser(part)) else "no such file"
            raise DataError(f"{part}: {what} (looked in {Path.cwd()})")
        found += files
    return _none_twice(found)


def local_only(files: list[InputFile], what: str) -> list[InputFile]:
    """`files`, none of them far away.

    Raises:
      DataError: one is; `what` says what is read from local disks only.
    """
    if far := next((f.name for f in files if "://" in f.name), None):
        raise DataError(f"{far}: {what} are read from local disks only; copy it first")
    return files


def _parts(path: str) -> list[str]:
    if os.path.exists(os.path.expanduser(path)):  # a name may hold a comma
        return [path]
    return [p.strip() for p in path.split(",") if p.strip()]


def _none_twice(files: Iterable[InputFile]) -> list[InputFile]:
    found: dict[str, InputFile] = {}
    for file in files:
        found.setdefault(file.name if "://" in file.name else os.path.abspath(file.name), file)
    return list(found.values())


def _matches(part: str, suffixes: tuple[str, ...]) -> list[InputFile]:
    return list(_remote_matches(part, suffixes) if "://" in part else _local_matches(part, suffixes))


def _begin(pattern: str) -> str:
    """The folder that a glob begins in."""
    fixed = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
    return fixed[: fixed.rfind("/") + 1]


def _local_matches(path: str, suffixes: tuple[str, ...]) -> Iterator[InputFile]:
    here = Path(os.path.expanduser(path))
    folder = str(here.parent)
    if os.path.isfile(here):
        files = [here]
    elif os.path.isdir(here):
        files, folder = sorted(p for p in here.rglob("*") if p.is_file() and p.name.endswith(suffixes)), str(here)
    else:
        files = sorted(p for p in map(Path, glob.glob(str(here), recursive=True)) if p.is_file())
        folder = _begin(str(here))
    for file in files:
        stat = file.stat()
        yield InputFile(str(file), stat.st_size, stat.st_mtime_ns, folder)


def _remote_matches(path: str, suffixes: tuple[str, ...]) -> Iterator[InputFile]:
    files, inner = filesystem(path)
    is_glob = any(c in inner for c in "*?[")
    try:
        found = answer(lambda: (files.glob if is_glob else files.find)(inner, detail=True))
    except OSError as e:
        raise DataError(f"{path}: cannot be listed ({e.strerror or e})") from e
    folder = _begin(inner) if is_glob or list(found) == [inner] else inner
    for name, info in sorted(found.items()):
        if info["type"] == "file" and (is_glob or name == inner or name.endswith(suffixes)):
            version = next((str(info[k]) for k in ("etag", "ETag", "generation", "mtime", "created") if k in info), "")
            yield InputFile(files.unstrip_protocol(name), info["size"], version, files.unstrip_protocol(folder))


def stamp(path: str | None) -> list[list]:
    """What changes when the text behind `path` may have changed: `[name, bytes, version]` of every file.

    Without a path the text comes from the interpreter (the standard library), whose version is the stamp.
    """
    if not path:
        return [[sys.implementation.name, platform.python_version()]]
    # In the address of a TFDS data set its split comes after the `#`.
    files = matches(path, suffixes=("",)) or matches(path.partition("#")[0], suffixes=("",))
    return [[f.name, f.size, f.version] for f in files]


def well_formed(text: str) -> str:
    """`text` without lone surrogates (`"\ud800"` is legal in JSON and in Python source, but not in UTF-8)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
