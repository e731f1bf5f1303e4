"""A logger that notes when each update was written, to tell afterwards what else the machine did meanwhile.

It can also stop a run for a while after some of its updates, so that something else takes turns with it.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cpt.training.loggers import LoggerFacts

FILE = "stamps.json"
KIND = "cpt.bench.stamps:stamps"

_after: Callable[[int], None] = lambda update: None  # noqa: E731


class stamps:
    """`stamps.json` of a run: `time.monotonic` by number of updates. Its name is what `KIND` says."""

    def __init__(self, facts: LoggerFacts):
        self._path, self._at = facts.workdir / FILE, {}

    def scalar(self, name: str, value: float, step: int) -> None:
        if step not in self._at:
            self._at[step] = time.monotonic()
            _after(step)

    def close(self) -> None:
        self._path.write_text(json.dumps(self._at))


@contextlib.contextmanager
def calling(after: Callable[[int], None]) -> Iterator[None]:
    """While this is entered, runs with this logger call `after` with the number of each update, and wait for it."""
    global _after
    before, _after = _after, after
    try:
        yield
    finally:
        _after = before


def read(workdir: Path) -> dict[int, float]:
    """What the logger of a run in `workdir` noted."""
    return {int(step): at for step, at in json.loads((workdir / FILE).read_text()).items()}
