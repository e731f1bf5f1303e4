"""How files are opened, here or through a protocol's client: decompressed by their suffix, counted on the meter."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

from cpt.data.corpora._base import METER
from cpt.errors import DataError

COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
# What reading meets in a file that is cut off, or not what its name says, or that went away.
DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)
INSTALL = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "hf": "huggingface_hub", "abfs": "adlfs", "az": "adlfs"}
_CHUNK = 1 << 18


def opened(name: str) -> BinaryIO:
    """The bytes of a file as they lie there, counted on the meter; seekable.

    Raises:
      OSError: it cannot be opened.
    """
    if "://" not in name:
        return io.BufferedReader(_Metered(open(name, "rb")), _CHUNK)
    files, inner = filesystem(name)
    return io.BufferedReader(_Far(answer(lambda: files.open(inner, "rb"))), _CHUNK)


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


class _Far(_Metered):
    """A file behind a protocol, whose client may raise errors of its own in the middle of it."""

    def readinto(self, buffer: Any) -> int:
        return answer(lambda: super(_Far, self).readinto(buffer))


def answer(ask: Callable[[], Any]) -> Any:
    """What a protocol's client answers; every failure of it is an OSError."""
    try:
        return ask()
    except OSError:
        raise
    except Exception as e:  # every client has errors of its own
        raise OSError(errno.EIO, str(e) or type(e).__name__) from e


def decompressed(name: str, raw: BinaryIO) -> BinaryIO:
    """What is read of `raw`, a file of this name."""
    if name.endswith(".zst"):
        import pyarrow  # whose stream, unlike zstandard's own, tells a file that was cut off

        return io.BufferedReader(_Stream(pyarrow.CompressedInputStream(raw, "zstd")), _CHUNK)
    openers: dict[str, Callable[[BinaryIO], BinaryIO]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    return next((opener(raw) for suffix, opener in openers.items() if name.endswith(suffix)), raw)


def filesystem(path: str) -> tuple[Any, str]:
    """The client of an address, and what the address is called there."""
    import fsspec  # only where a path needs it

    protocol = path.partition("://")[0]
    try:
        return fsspec.url_to_fs(path)
    except ImportError as e:
        package = INSTALL.get(protocol)
        how = f"`pip install {package}`" if package else str(e)
        raise DataError(f"{path}: {protocol}:// needs a client that is not installed; {how}") from e
    except ValueError as e:
        raise DataError(f"{path}: no such protocol as {protocol}:// ({e})") from e
    except Exception as e:  # no credentials, say; every client has errors of its own
        raise DataError(f"{path}: {protocol}:// cannot be opened ({e or type(e).__name__})") from e
