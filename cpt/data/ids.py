"""Token ids in files, read with `pread`.

A memory map is as fast, but a shard that shrinks or vanishes behind one (a scratch disk that is cleaned, a network file
system that hiccups) kills the process with a bus error. A short read is an error that names the file.
"""

from __future__ import annotations

import errno
import os
import resource
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from cpt.errors import DataError


class IdFile:
    """The ids of one `.bin`, or of one that was cut into several by bytes (as Pythia's are, which cuts ids too).

    Args:
      paths: the pieces, in order.
      dtype: of an id.
    """

    def __init__(self, paths: Sequence[Path], dtype: np.dtype):
        self.paths, self.dtype = tuple(paths), np.dtype(dtype)
        sizes = [p.stat().st_size for p in self.paths]
        self._ends = list(accumulate(sizes))
        self._open: dict[int, int] = {}

    def __len__(self) -> int:
        return self._ends[-1] // self.dtype.itemsize

    @property
    def n_bytes(self) -> int:
        return self._ends[-1]

    def __getitem__(self, span: slice) -> np.ndarray:
        start, stop, step = span.indices(len(self))
        assert step == 1, "ids are read in one piece"
        return self.read(start, max(0, stop - start))

    def read(self, start: int, count: int) -> np.ndarray:
        """The ids `start .. start + count - 1`, a fresh array.

        Raises:
          IndexError: beyond the end.
          DataError: the file no longer holds them.
        """
        if not 0 <= start <= start + count <= len(self):
            raise IndexError(f"{self.paths[0]}: ids {start} to {start + count} of {len(self)}")
        size = self.dtype.itemsize
        out = bytearray(count * size)
        view, position = memoryview(out), start * size
        while view:
            i = bisect_right(self._ends, position)
            offset = position - (self._ends[i - 1] if i else 0)
            got = self._read(i, view[: self._ends[i] - position], offset)
            view, position = view[got:], position + got
        return np.frombuffer(out, self.dtype)

    def _read(self, i: int, into: memoryview, offset: int) -> int:
        try:
            got = os.preadv(self._descriptor(i), [into], offset)
        except OSError as e:
            raise DataError(f"{self.paths[i]}: cannot be read ({e.strerror}); is its disk still there?") from e
        if not got:
            raise DataError(f"{self.paths[i]}: ends before byte {offset:,}; it was cut off since it was opened")
        return got

    def _descriptor(self, i: int) -> int:
        descriptor = self._open.get(i)
        if descriptor is None:
            # Two threads may both open it; one of them then closes its own again.
            opened = _open(self.paths[i])
            descriptor = self._open.setdefault(i, opened)
            if descriptor != opened:
                os.close(opened)
        return descriptor

    def __del__(self) -> None:
        for descriptor in getattr(self, "_open", {}).values():
            os.close(descriptor)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as e:
        if e.errno != errno.EMFILE:
            raise
        # A store of a thousand shards needs more than the 1,024 files that are usual.
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == hard:
            raise DataError(f"{path}: {soft:,} files are open already; raise the limit with `ulimit -n`") from e
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return os.open(path, os.O_RDONLY)
