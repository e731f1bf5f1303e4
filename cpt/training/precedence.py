"""Updates go before everything else that the process does: other threads take what they leave of the processor."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
from collections.abc import Iterator

LOWEST = 19  # the "niceness" with which a thread gets a seventieth of a core that another one wants
SWITCH_S = 5e-4


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """While this is entered, a thread that dispatches updates waits little for Python's attention.

    Garbage is looked for only in what is made meanwhile. A thread that runs Python, as the one that writes checkpoints
    does for a tenth of a second, is interrupted after half a millisecond if another one has something to do, not after
    five.
    """
    gc.freeze()
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
        gc.unfreeze()


def in_the_gaps() -> None:
    """Let this thread, and those it starts, have what other threads leave of the cores; for good.

    It is never stopped altogether, unlike with `SCHED_IDLE`: on a machine that others keep busy, a checkpoint is to be
    written all the same. Only Linux gives threads a niceness of their own.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST)
