"""How soon a run trains: from the start of the process to its first update, new and resumed, compiled before or not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

LIMIT_S = 600.0


def bench_resume(arguments: list[str], rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds from starting `python -m cpt.main` to the first row of its metrics.

    The first start compiles into a cache of its own and is stopped politely; the others go on from what it saved.

    Args:
      arguments: of the command, without `--workdir`.
      rounds: how often it is resumed.
    """
    with tempfile.TemporaryDirectory() as folder:
        # As a user has it, but empty at first.
        own = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
        own["XDG_CACHE_HOME"] = f"{folder}/cache"
        command = [sys.executable, "-m", "cpt.main", *arguments, f"--workdir={folder}/run"]
        seconds = []
        for i in range(rounds + 1):
            seconds.append(_first_row(command, Path(folder) / "run" / "metrics.jsonl", own))
            say(f"{'new, nothing compiled' if i == 0 else 'resumed'}: {seconds[-1]:.1f} s to the first update")
    return {"new_s": seconds[0], "resumed_s": float(np.median(seconds[1:])), "rounds": seconds[1:]}


def _first_row(command: list[str], metrics: Path, env: dict[str, str]) -> float:
    begun, before, size = time.monotonic(), _rows(metrics), None
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while (rows := _rows(metrics)) <= (before if size is None else size):
            # A resumed run cuts the rows after its checkpoint first; it was stopped politely, so there are none.
            size = rows if rows < before else size
            if process.poll() is not None or time.monotonic() - begun > LIMIT_S:
                raise RuntimeError(f"cpt.main ended with {process.returncode}: {process.stderr.read()[-500:]}")
            time.sleep(0.01)
        took = time.monotonic() - begun
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=LIMIT_S)
        return took
    finally:
        process.kill()


def _rows(metrics: Path) -> int:
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0
