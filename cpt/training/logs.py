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
    """One row per line, handed to the operating system at once, so that a killed process loses nothing it wrote."""

    def __init__(self, path: Path):
        self.path = path
        self._file = path.open("a")

    def write(self, row: Mapping[str, Any]) -> None:
        # JSON has no NaN: a row that held one could not be read by anything else.
        self._file.write(json.dumps(plain(row), allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class Board:
    """Scalars for TensorBoard.

    Written by the caller's own thread: tensorboardX's queue has no reader any more once its thread met a full disk, and
    then blocks whoever puts an eleventh value into it. The values of a step are one event: each costs a checksum in
    Python.

    Args:
      folder: where the event files lie; each start adds one.
      step: where the run starts; values of this and later steps in older files are void.
    """

    def __init__(self, folder: Path, step: int, flush_s: float = 30.0):
        folder.mkdir(parents=True, exist_ok=True)
        # Two starts within a second would otherwise name one file.
        self._events = EventsWriter(str(folder / "events"), filename_suffix=f".{step}")
        self._flush_s, self._flushed = flush_s, time.monotonic()
        self._step, self._values = step, []
        self._write(step, file_version="brain.Event:2")
        self._write(step, session_log=SessionLog(status=SessionLog.START))

    def scalar(self, name: str, value: float, step: int) -> None:
        """One point of the curve `name`, written with the first of another step. Raises OSError if it cannot be."""
        if step != self._step:
            self._send()
            self._step = step
        self._values.append(Summary.Value(tag=name, simple_value=value))

    def close(self) -> None:
        self._send()
        self._events.close()

    def _send(self) -> None:
        values, self._values = self._values, []
        if values:
            self._write(self._step, summary=Summary(value=values))
        if time.monotonic() - self._flushed > self._flush_s:
            self._events.flush()
            self._flushed = time.monotonic()

    def _write(self, step: int, **what: Any) -> None:
        self._events.write_event(Event(wall_time=time.time(), step=step, **what))


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
