"""SIGTERM and Ctrl-C ask the loop to stop after the update in flight; a second Ctrl-C stops at once.

A second SIGTERM does not: launchers send it to every process of a job, and whoever started this one hands it on again.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

STOPPED_BY_SIGNAL = 75  # exit code: saved, start me again (EX_TEMPFAIL)


class StopRequest:
    """`with StopRequest() as stop: ... if stop.name: ...`; `name` is the signal or event that came, or None."""

    def __init__(self):
        self.name: str | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._asked)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def ask(self, name: str) -> None:
        """Ask to stop, for a reason other than a signal."""
        self.name = self.name or name

    def _asked(self, number: int, frame: Any) -> None:
        if self.name is not None:
            if number == signal.SIGTERM:
                return
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.name = signal.Signals(number).name


@contextlib.contextmanager
def at_once(leave: Callable[[str], None]) -> Iterator[None]:
    """Where no `StopRequest` is in force, SIGTERM and Ctrl-C call `leave` with their name; it ends the process.

    Not by an exception: libraries lose it in the callback that it happens to meet, or are aborted by it in their C++.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    leaving = lambda number, frame: leave(signal.Signals(number).name)  # noqa: E731
    old = {number: signal.signal(number, leaving) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
