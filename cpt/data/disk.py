"""Work on a disk that others use too, and that may fill: locks, and failures as one line."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from cpt.errors import DataError


@contextlib.contextmanager
def disk_errors(out: Path) -> Iterator[None]:
    """Failures of the disk as one line; what is committed is kept."""
    try:
        yield
    except OSError as e:
        what = "the disk is full" if e.errno in (errno.ENOSPC, errno.EDQUOT) else e.strerror or str(e)
        raise DataError(f"{e.filename or out}: {what}; make room or mend it, then run the same again") from e
    except sqlite3.DatabaseError as e:
        raise DataError(f"{out}: its journal: {e}; make room or mend it, then run the same again") from e


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """One process at a time: a second one that wants the same store waits and then finds it finished.

    Yields whether the lock was given.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as e:
        raise DataError(f"{path.parent}: cannot be written ({e.strerror}); name another folder") from e
    with file:
        # Some network file systems have no locks; then two processes may do the same work, into files of their own.
        alone = False
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
            alone = True
        yield alone
