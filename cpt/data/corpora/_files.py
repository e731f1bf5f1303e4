"""What the file readers share: which files a path means, here or far away, how they are opened, which version it is."""

from __future__ import annotations

import bz2
import glob
import gzip
import io
import lzma
import platform
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cpt.data.corpora._base import METER, Bad
from cpt.errors import DataError

COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
# What reading meets in a file that is cut off, or not what its name says, or that went away.
DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)
INSTALL = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "hf": "huggingface_hub", "abfs": "adlfs", "az": "adlfs"}
_CHUNK = 1 << 18


@dataclass(frozen=True)
class InputFile:
    """A file to read.

    Attributes:
      name: its path, or its address where that has a protocol (`gs://bucket/file`).
      size: bytes on disk.
      version: changes when its content may have changed: a time, or what the protocol has for one.
    """

    name: str
    size: int
    version: Any

    def open(self) -> BinaryIO:
        """Its content, decompressed by its suffix; what is read from disk is counted on the meter.

        Raises:
          OSError: it cannot be opened.
        """
        return _decompressed(self.name, self.open_raw())

    def open_raw(self) -> BinaryIO:
        """Its bytes as they lie there, counted on the meter; seekable."""
        opener = _filesystem(self.name).open if "://" in self.name else open
        return io.BufferedReader(_Metered(opener(self.name, "rb")), _CHUNK)

    def damaged(self, error: Exception, at: str = "") -> Bad:
        """What is said of a file that cannot be read (on), after `at`, such as `:17`."""
        why = f"damaged file ({error}); copy it again"
        if isinstance(error, OSError) and error.strerror:
            why = f"cannot be read ({error.strerror})"
        elif kind := next((k[1:] for k in COMPRESSED if self.name.endswith(k)), ""):
            why = f"damaged {dict(gz='gzip', zst='zstd').get(kind, kind)} file ({error}); copy it again"
        return Bad("damaged file", f"{self.name}{at}", why, ends_part=True)


class _Stream(io.RawIOBase):
    """What has a `read` as a stream that can be buffered."""

    def __init__(self, raw: BinaryIO):
        self._raw = raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._raw.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Metered(_Stream):
    """Counts what is read of the file under it."""

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer)
        METER.read += count
        return count


def _decompressed(name: str, raw: BinaryIO) -> BinaryIO:
    if name.endswith(".zst"):
        import pyarrow  # whose stream, unlike zstandard's own, tells a file that was cut off

        return io.BufferedReader(_Stream(pyarrow.CompressedInputStream(raw, "zstd")), _CHUNK)
    openers: dict[str, Callable[[BinaryIO], BinaryIO]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    return next((opener(raw) for suffix, opener in openers.items() if name.endswith(suffix)), raw)


def matches(path: str, suffixes: tuple[str, ...]) -> list[InputFile]:
    """The files that `path` means: those of each of its comma-separated parts, sorted, none twice.

    A part is a file, a folder (its files with `suffixes`, recursively) or a glob, here or behind a protocol.

    Raises:
      DataError: a protocol without its client, or that does not answer.
    """
    found: dict[str, InputFile] = {}
    # A name may hold a comma.
    for part in [path] if Path(path).expanduser().exists() else filter(None, path.split(",")):
        for file in _remote_matches(part, suffixes) if "://" in part else _local_matches(part, suffixes):
            found.setdefault(file.name, file)
    return list(found.values())


def _local_matches(path: str, suffixes: tuple[str, ...]) -> Iterator[InputFile]:
    here = Path(path).expanduser()
    if here.is_file():
        files = [here]
    elif here.is_dir():
        files = sorted(p for p in here.rglob("*") if p.is_file() and p.name.endswith(suffixes))
    else:
        files = sorted(p for p in map(Path, glob.glob(str(here), recursive=True)) if p.is_file())
    for file in files:
        stat = file.stat()
        yield InputFile(str(file), stat.st_size, stat.st_mtime_ns)


def _remote_matches(path: str, suffixes: tuple[str, ...]) -> Iterator[InputFile]:
    files = _filesystem(path)
    try:
        is_glob = any(c in path for c in "*?[")
        found = files.glob(path, detail=True) if is_glob else files.find(path, detail=True)
    except Exception as e:  # every client has errors of its own
        raise DataError(f"{path}: cannot be listed ({e or type(e).__name__})") from e
    for name, info in sorted(found.items()):
        listed = (not is_glob and len(found) > 1) or (not is_glob and not name.endswith(path.rpartition("/")[2]))
        if info["type"] == "file" and (not listed or name.endswith(suffixes)):
            version = next((str(info[k]) for k in ("etag", "ETag", "generation", "mtime", "created") if k in info), "")
            yield InputFile(files.unstrip_protocol(name), info["size"], version)


def _filesystem(path: str) -> Any:
    import fsspec  # only where a path needs it

    protocol = path.partition("://")[0]
    try:
        return fsspec.filesystem(protocol)
    except ImportError as e:
        package = INSTALL.get(protocol)
        how = f"`pip install {package}`" if package else str(e)
        raise DataError(f"{path}: {protocol}:// needs a client that is not installed; {how}") from e
    except ValueError as e:
        raise DataError(f"{path}: no such protocol as {protocol}:// ({e})") from e


def existing(path: str | None, suffixes: tuple[str, ...]) -> list[InputFile]:
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
    """What changes when the text behind `path` may have changed: `[name, bytes, version]` of every file.

    Without a path the text comes from the interpreter (the standard library), whose version is the stamp.
    """
    if not path:
        return [[sys.implementation.name, platform.python_version()]]
    files = matches(path.partition("#")[0], suffixes=("",))  # after it comes the split of a TFDS data set
    return [[f.name, f.size, f.version] for f in files]


def well_formed(text: str) -> str:
    """`text` without lone surrogates (`"\ud800"` is legal in JSON and in Python source, but not in UTF-8)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
