"""What goes wrong in the machine rather than in the data: full disks, missing rights, too little memory."""

from __future__ import annotations

import functools
import logging
import sys
import warnings
from typing import Any

# What a machine says when it cannot read or write now. What it could not read may well be sound.
_SAID = (
    "No space left on device",
    "Disk quota exceeded",
    "File too large",
    "Read-only file system",
    "Permission denied",
    "Input/output error",
    "Stale file handle",
    "Too many open files",
    "Cannot allocate memory",
)
_CODES = ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "Out of memory")


def reason(error: BaseException) -> str:
    """An error in a few words: the machine's own where it says them somewhere, else its first line."""
    text = str(error)
    first = (text.strip().splitlines() or [type(error).__name__])[0].partition(" [tensorstore_spec=")[0]
    # TensorStore says where first and what last.
    short = first if len(first) <= 200 else f"{first[:80]} ... {first[-115:]}"
    return next((words for words in _SAID if words in text), short)


# Packages that speak to remote storage. What they raise, but for a file that is not there, tells of the way to it.
_DRIVERS = ("adlfs", "aiohttp", "azure", "botocore", "gcsfs", "google", "s3fs")


def is_storage_fault(error: BaseException) -> bool:
    """Whether `error` comes from the driver of a remote storage: no rights, no connection, an answer it gave."""
    return type(error).__module__.partition(".")[0] in _DRIVERS


def is_machine_fault(error: BaseException) -> bool:
    """Whether `error` tells of the machine, so that trying again later may succeed, and not of what was read."""
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return False
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
        return True
    if is_storage_fault(error):
        return True
    return any(words in str(error) for words in (*_SAID, *_CODES))


@functools.cache
def quiet_writers() -> None:
    """Keep the tracebacks of Orbax's writing threads off the screen, for this process.

    What they meet is raised again where the loop waits for them and becomes one line there. A write that fails also
    leaves others behind that report to an event loop which is closed by then, hundreds of times.
    """
    for name in ("absl", "asyncio"):  # who logs them: Orbax itself, and the loop whose tasks nobody waits for any more
        logging.getLogger(name).addFilter(_not_from_orbax)
    warnings.filterwarnings("ignore", r"coroutine 'async_serialize\S* was never awaited", RuntimeWarning)
    shown = sys.unraisablehook

    def show(unraisable: Any) -> None:
        late = isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"
        if not late:
            shown(unraisable)

    sys.unraisablehook = show


def _not_from_orbax(record: logging.LogRecord) -> bool:
    said = record.pathname + record.getMessage()
    return not record.exc_info or not ("orbax" in said or "tensorstore" in said)
