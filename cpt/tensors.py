"""Safetensors files, written one tensor at a time: a length, a JSON header padded to 8 bytes, the numbers.

The library's own `save_file` wants all of a file's tensors at once and copies them.
"""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import struct
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import ml_dtypes
import numpy as np

CODES = {
    np.dtype(dtype): code
    for dtype, code in (
        (np.float64, "F64"),
        (np.float32, "F32"),
        (np.float16, "F16"),
        (ml_dtypes.bfloat16, "BF16"),
        (np.int64, "I64"),
        (np.int32, "I32"),
        (np.int16, "I16"),
        (np.int8, "I8"),
        (np.uint64, "U64"),
        (np.uint32, "U32"),
        (np.uint16, "U16"),
        (np.uint8, "U8"),
        (np.bool_, "BOOL"),
    )
}
PIECE, BLOCK = 2**22, 2**12  # bytes that are written at once; and of which there must be a whole number
_of_thread = threading.local()
DTYPES = {code: dtype for dtype, code in CODES.items()}


@dataclass(frozen=True)
class Tensor:
    """One to be written; `fetch` gives its numbers when their turn has come."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    fetch: Callable[[], np.ndarray]

    @property
    def n_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in its file; `offset` in bytes from the beginning."""

    file: Path
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]

    def rows(self, begin: int, end: int) -> np.ndarray:
        """Those of its first dimension, from `begin` to `end`, read into memory of their own.

        Not mapped: where the disk fails under a map, the process is killed.

        Raises:
          ValueError: the file ends before them.
          OSError: it cannot be read.
        """
        out = np.empty((end - begin, *self.shape[1:]), self.dtype)
        view, at = memoryview(out.reshape(-1).view(np.uint8)), begin * prod(self.shape[1:]) * self.dtype.itemsize
        with self.file.open("rb", buffering=0) as raw:
            raw.seek(self.offset + at)
            while view:
                if not (got := raw.readinto(view)):
                    raise ValueError(f"{self.file}: ends before its numbers do")
                view = view[got:]
        return out


def write_file(file: Path, tensors: Sequence[Tensor], metadata: Mapping[str, str] | None = None) -> int:
    """Write `tensors` in their order, to the disk itself; returns their bytes.

    Raises:
      OSError: the disk fails.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for tensor in tensors:
        end = at + tensor.n_bytes
        header[tensor.name] = {"dtype": CODES[tensor.dtype], "shape": tensor.shape, "data_offsets": [at, end]}
        at = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with Output(file) as out:
        out.write(struct.pack("<Q", len(encoded)) + encoded)
        for tensor in tensors:
            array = tensor.fetch()
            if sys.byteorder == "big":
                array = array.astype(array.dtype.newbyteorder("<"))
            out.write(array.reshape(-1).view(np.uint8).data)
    return at


class Output:
    """A file that is written from its beginning to its end and lies on the disk when the context ends.

    Where the file system can, past the memory in which it keeps files: what is written here is not read soon, takes
    that memory from others, and costs a copy by the kernel, which on a busy machine nothing interrupts.

    Raises:
      OSError: the disk fails.
    """

    def __init__(self, file: Path):
        self._fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        self._direct = hasattr(os, "O_DIRECT") and self._set_direct(True)
        if not hasattr(_of_thread, "buffer"):  # new memory costs more than writing to it
            _of_thread.buffer = mmap.mmap(-1, PIECE)  # begins at a page, as such writing needs
        self._buffer = _of_thread.buffer
        self._filled = 0

    def __enter__(self) -> Output:
        return self

    def write(self, data: bytes | memoryview) -> None:
        data = memoryview(data)
        while data:
            taken = min(len(data), PIECE - self._filled)
            self._buffer[self._filled : self._filled + taken] = data[:taken]
            self._filled += taken
            data = data[taken:]
            if self._filled == PIECE:
                self._put(0, PIECE)
                self._filled = 0

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        try:
            if error is None:
                whole = self._filled // BLOCK * BLOCK if self._direct else 0
                self._put(0, whole)
                if self._direct and whole < self._filled:  # what is left is no whole block
                    self._direct = self._set_direct(False)
                self._put(whole, self._filled)
                os.fsync(self._fd)
        finally:
            os.close(self._fd)

    def _set_direct(self, on: bool) -> bool:
        """Whether it is set afterwards."""
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)
        except OSError:  # not this file system
            return False
        return on

    def _put(self, begin: int, end: int) -> None:
        """Write what the buffer holds there."""
        with memoryview(self._buffer) as buffer:
            while begin < end:
                try:
                    begin += os.write(self._fd, buffer[begin:end])  # a disk that is nearly full takes a part
                except OSError as e:
                    if not (self._direct and e.errno == errno.EINVAL):  # it promised more than it can
                        raise
                    self._direct = self._set_direct(False)


def places(file: Path) -> dict[str, Place]:
    """Where the tensors of a file lie.

    Raises:
      ValueError: it is no whole safetensors file.
      OSError: it cannot be read.
    """
    size = file.stat().st_size
    with file.open("rb") as raw:
        length = int.from_bytes(raw.read(8), "little")
        if length > size - 8:
            raise ValueError("its header is cut off")
        try:
            header = json.loads(raw.read(length))
            header.pop("__metadata__", None)
            found, ends = {}, []
            for name, facts in header.items():
                (begin, end), shape = facts["data_offsets"], tuple(facts["shape"])
                ends.append(end)
                found[name] = place = Place(file, 8 + length + begin, DTYPES[facts["dtype"]], shape)
                if not 0 <= begin <= end <= size - 8 - length or end - begin != prod(shape) * place.dtype.itemsize:
                    raise ValueError(f"tensor {name} does not lie in it as its header says")
            if max(ends, default=0) != size - 8 - length:
                raise ValueError("it does not end where its numbers do")
        except (KeyError, TypeError, AttributeError) as e:
            raise ValueError(f"its header is not understood ({e})") from e
    return found
