"""What a run appends to while it trains: JSON lines that a resumed run can cut back to its step, and TensorBoard."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from cpt.evaluators.rows import plain, write_atomic


class JsonLines:
    """One row per line. What was handed to the operating system survives whatever kills the process.

    Args:
      path: the file; rows are added to what is there.
      every_s: a row that comes sooner after the last writing waits for a later one, or for `flush`; 0 for none. Between
        two updates of a small model, a row written by itself costs several times what it costs among others.
    """

    def __init__(self, path: Path, every_s: float = 0.0):
        self.path = path
        self._file = path.open("ab", buffering=0)
        self._every_s, self._written = every_s, time.monotonic()
        self._rows: list[Mapping[str, Any]] = []
        self._text = b""  # of rows that could not be written yet

    def write(self, row: Mapping[str, Any]) -> None:
        """Raises OSError if the file cannot be written."""
        self._rows.append(row)
        if time.monotonic() - self._written >= self._every_s:
            self.flush()

    def flush(self) -> None:
        """Write what waits. Raises OSError if the file cannot be written; what is left is tried again the next time."""
        rows, self._rows = self._rows, []
        self._written = time.monotonic()
        # JSON has no NaN: a row that held one could not be read by anything else.
        self._text += "".join(json.dumps(plain(row), allow_nan=False) + "\n" for row in rows).encode()
        while self._text:  # a disk that is nearly full takes a part
            self._text = self._text[self._file.write(self._text) :]

    def close(self) -> None:
        try:
            self.flush()
        finally:
            self._file.close()


class Board:
    """Scalars for TensorBoard.

    Written by the caller's own thread: tensorboardX's queue has no reader any more once its thread met a full disk, and
    then blocks whoever puts an eleventh value into it. Values wait for `flush_s` and are written together, those of a
    step as one event: each event costs two checksums in Python.

    Args:
      folder: where the event files lie; each start adds one.
      step: where the run starts; values of this and later steps in older files are void.
    """

    def __init__(self, folder: Path, step: int, flush_s: float = 30.0):
        folder.mkdir(parents=True, exist_ok=True)
        # Two starts within a second would otherwise name one file.
        self._events = EventsWriter(str(folder / "events"), filename_suffix=f".{step}")
        self._flush_s, self._flushed = flush_s, time.monotonic()
        self._waiting: dict[int, tuple[float, list[Summary.Value]]] = {}  # by step: when, and what
        self._write(step, time.time(), file_version="brain.Event:2")
        self._write(step, time.time(), session_log=SessionLog(status=SessionLog.START))

    def scalar(self, name: str, value: float, step: int) -> None:
        """One point of the curve `name`. Raises OSError if the file cannot be written."""
        if step not in self._waiting:
            if time.monotonic() - self._flushed > self._flush_s:
                self.flush()
            self._waiting[step] = time.time(), []
        self._waiting[step][1].append(Summary.Value(tag=name, simple_value=value))

    def close(self) -> None:
        self.flush()
        self._events.close()

    def flush(self) -> None:
        """Write what waits. Raises OSError if the file cannot be written."""
        waiting, self._waiting = self._waiting, {}
        self._flushed = time.monotonic()
        for step, (at, values) in waiting.items():
            self._write(step, at, summary=Summary(value=values))
        self._events.flush()

    def _write(self, step: int, at: float, **what: Any) -> None:
        self._events.write_event(Event(wall_time=at, step=step, **what))


def mend(path: Path) -> None:
    """Drop a last line that whoever wrote it did not finish."""
    if path.is_file():
        text = path.read_bytes()
        if not text.endswith(b"\n"):
            os.truncate(path, text.rfind(b"\n") + 1)


def cut(path: Path, keep: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Keep only the rows that satisfy `keep`, and return them; a half-written last line goes too. Atomic."""
    if not path.exists():
        return []
    kept, rows = [], []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if keep(row):
            kept.append(line)
            rows.append(row)
    write_atomic(path, "".join(line + "\n" for line in kept))
    return rows
