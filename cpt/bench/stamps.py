"""A logger that notes when each update was written, to tell afterwards what else the machine did meanwhile."""

from __future__ import annotations

import json
import time
from pathlib import Path

from cpt.training.loggers import LoggerFacts

FILE = "stamps.json"
KIND = "cpt.bench.stamps:stamps"


class stamps:
    """`stamps.json` of a run: `time.monotonic` by number of updates. Its name is what `KIND` says."""

    def __init__(self, facts: LoggerFacts):
        self._path, self._at = facts.workdir / FILE, {}

    def scalar(self, name: str, value: float, step: int) -> None:
        self._at.setdefault(step, time.monotonic())

    def close(self) -> None:
        self._path.write_text(json.dumps(self._at))


def read(workdir: Path) -> dict[int, float]:
    """What the logger of a run in `workdir` noted."""
    return {int(step): at for step, at in json.loads((workdir / FILE).read_text()).items()}
