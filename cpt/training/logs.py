"""Append-only JSON lines that a resumed run can cut back to its step."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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
