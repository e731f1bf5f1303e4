"""What a logger is, and the thread that keeps a slow or broken service away from the run."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cpt.evaluators.rows import write_atomic

WAITING = 20_000  # scalars that may wait for the service; the ones after them are dropped
CLOSING_S = 15.0  # how long the end of a run waits for it


@dataclass(frozen=True)
class LoggerFacts:
    """What a logger is made from.

    Attributes:
      workdir: the run directory; what a logger writes itself lies there.
      name: of the run.
      hash: of its plan.
      config: nested config of the run.
      step: where it starts or goes on; values of later steps that were logged before are void.
      say: tells the person watching, in one line.
    """

    workdir: Path
    name: str
    hash: str
    config: Mapping[str, Any]
    step: int
    say: Callable[[str], None] = lambda line: None


class Logger(Protocol):
    """A file of this folder holds a function or class of its own name that makes one from `LoggerFacts`.

    If it needs a package that may not be installed, the file says so in `NEEDS = (package, command that installs it)`
    and imports it only when it is made.
    """

    def scalar(self, name: str, value: float, step: int) -> None:
        """One point of the curve `name`; must not block."""

    def close(self) -> None:
        """The run ends, or stops for now."""

    # And, if values wait in this process: `flush(self) -> None`, before each checkpoint.


class Service(Protocol):
    """A tracking service as `Background` uses it, from one thread; whatever it raises is said once."""

    def send(self, step: int, values: Mapping[str, float]) -> None: ...

    def finish(self) -> None: ...


class Background:
    """A logger that hands everything to a thread of its own, so that the service can be slow, away or broken.

    Args:
      label: of the service, for what is said.
      connect: makes the service; called in the thread, for that too may wait for a network.
      say: tells the person watching, in one line.
      idle_s: values of one step are sent together: when the next step begins, or after so long without another value.
    """

    def __init__(self, label: str, connect: Callable[[], Service], say: Callable[[str], None], idle_s: float = 1.0):
        self._label, self._connect, self._say, self._idle_s = label, connect, say, idle_s
        self._queue: queue.Queue[tuple[str, float, int] | None] = queue.Queue(WAITING)
        self._failed = threading.Event()
        self._lock, self._told = threading.Lock(), False
        self._thread = threading.Thread(target=self._run, name=f"logger-{label}", daemon=True)
        self._thread.start()

    def scalar(self, name: str, value: float, step: int) -> None:
        """Queue a point; never blocks and never raises."""
        if self._failed.is_set():
            return
        try:
            self._queue.put_nowait((name, float(value), int(step)))
        except queue.Full:
            self._fail("does not keep up")

    def close(self, wait_s: float = CLOSING_S) -> None:
        """Send what is queued, but wait no longer than `wait_s`."""
        end = time.monotonic() + wait_s
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=wait_s)
        self._thread.join(max(end - time.monotonic(), 0))
        if self._thread.is_alive():
            self._fail(f"did not take everything within {wait_s:g} s")

    def _run(self) -> None:
        # Any failure of somebody else's service, of whatever kind, is the same to the run: none of its business.
        try:
            service = self._connect()
            try:
                self._forward(service)
            finally:
                service.finish()
        except Exception as e:
            self._fail(f"{type(e).__name__}: {e}")
        except SystemExit:
            self._fail("wanted to end the run")

    def _forward(self, service: Service) -> None:
        step, values = 0, {}
        while not self._failed.is_set():
            try:
                item = self._queue.get(timeout=self._idle_s)
            except queue.Empty:
                item = ()
            if values and (not item or item[2] != step or item[0] in values):
                service.send(step, values)
                values = {}
            if item is None:
                return
            if item:
                name, value, step = item
                values[name] = value

    def _fail(self, why: str) -> None:
        self._failed.set()
        with self._lock:
            told, self._told = self._told, True
        if not told:
            with contextlib.suppress(Exception):
                line = " ".join(why.split())
                self._say(
                    f"{self._label}: {line[:200]}; nothing more goes there, the run goes on and its files have it all"
                )


def kept_id(workdir: Path, service: str, make: Callable[[], str]) -> str:
    """The id under which a service knows this run directory, from `loggers.json`; `make` makes one the first time.

    It lies in the run directory and does not follow from the plan, so a run that goes on with another future stays the
    same run there, and a second run of one plan is another.
    """
    if isinstance(known := _ids(workdir).get(service), str):
        return known
    new = make()
    with _WRITING:
        write_atomic(workdir / "loggers.json", json.dumps(_ids(workdir) | {service: new}, indent=1))
    return new


_WRITING = threading.Lock()  # several services start side by side


def _ids(workdir: Path) -> dict[str, Any]:
    try:
        ids = json.loads((workdir / "loggers.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return ids if isinstance(ids, dict) else {}


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config as dotted path -> value; empty sections are left out."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        out |= flat(value, path) if isinstance(value, Mapping) else {path: value}
    return out
