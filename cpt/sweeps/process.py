"""Processes that a sweep starts: in a session of their own, and asked to stop when who started them is gone."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1


class Process:
    """A command whose output goes to a file, or to where ours goes.

    Its own session, so that a Ctrl-C reaches the sweep alone, which then asks each process once: a run that is asked
    twice stops without saving. Should the sweep be killed, Linux asks in its place; elsewhere the process goes on to
    its end, and whoever takes over its trial waits for it.
    """

    def __init__(self, command: Sequence[str], log: Path | None = None, env: Mapping[str, str] | None = None):
        self.log = log
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") if log is not None else contextlib.nullcontext() as f:
            self._begin = f.tell() if f is not None else 0
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=f,
                stderr=subprocess.STDOUT if f is not None else None,
                env=dict(os.environ) | dict(env or {}),
                start_new_session=True,
                preexec_fn=_die_with(os.getpid()) if sys.platform == "linux" else None,
            )
        self._asked = False

    def wait(self, seconds: float) -> int | None:
        """The exit code, None if it still runs after `seconds`; negative = killed by that signal."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def ask_to_stop(self) -> None:
        """SIGTERM, once."""
        if not self._asked and self._process.poll() is None:
            self._asked = True
            self._process.terminate()

    @property
    def last_line(self) -> str:
        """What it said last: the line of its error where there is one."""
        text = "" if self.log is None else self.log.read_bytes()[self._begin :].decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if re.match(r"\w+ error: ", line)]
        return (errors or lines or ["it said nothing"])[-1]


def _die_with(parent: int):
    """Runs in the child before the command: SIGTERM when the thread that started it ends, which is our main one."""
    prctl = ctypes.CDLL(None).prctl

    def set_up() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it was gone already
            os.kill(os.getpid(), signal.SIGTERM)

    return set_up
