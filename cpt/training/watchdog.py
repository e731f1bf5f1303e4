"""A run that stands still ends itself, so that whoever launched it can start it again.

A collective that waits for a process which is alive but stuck, a file system that does not answer: nothing of that
raises an error. A thread sees that the loop has not come round for too long, writes down where every thread stands, and
ends the process.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cpt.training.processes import here
from cpt.training.signals import STOPPED_BY_SIGNAL


class Watchdog:
    """`with Watchdog(1800, workdir) as watchdog: ... watchdog.at("update 7") ...`.

    Args:
      limit_s: the longest time between two calls of `at`; 0 for ever.
      folder: gets `stalled-<process>.txt`.
      leave: ends the process.
    """

    def __init__(self, limit_s: float, folder: Path, leave: Callable[[int], Any] = os._exit):
        self._limit_s, self._folder, self._leave = limit_s, folder, leave
        self._doing, self._since = "the start", time.monotonic()
        self._over = threading.Event()

    def __enter__(self) -> Watchdog:
        self._since = time.monotonic()
        if self._limit_s:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()

    def at(self, doing: str) -> None:
        """The loop has come to `doing`, and is alive."""
        self._doing, self._since = doing, time.monotonic()

    def _watch(self) -> None:
        while not self._over.wait(min(self._limit_s / 4, 10.0)):
            if (stood := time.monotonic() - self._since) > self._limit_s:
                path = self._folder / f"stalled-{here().index}.txt"
                line = (
                    f"run error: no progress for {stood:.0f} s (guard.stall_s) at {self._doing}; where each thread "
                    f"stands is in {path}; start the same command again"
                )
                _write_down(path)
                print(line, file=sys.stderr, flush=True)
                here().fail(line, STOPPED_BY_SIGNAL)
                self._leave(STOPPED_BY_SIGNAL)
                return


def _write_down(path: Path) -> None:
    try:
        with path.open("w") as f:
            faulthandler.dump_traceback(f, all_threads=True)
    except OSError:  # the file system may be what stands still
        faulthandler.dump_traceback(all_threads=True)
