"""The suite's side of a peer: starts its process, tells it what to do, reads what it answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import cpt

HERE = Path(__file__).parent


class PeerFailed(Exception):
    """A peer's process ended; the message is the last line that it said."""


class Peer:
    """A process that trains and evaluates when told to.

    Attributes:
      name: of the file in this folder.
      facts: what it says of itself.
      pid: of its process.

    Args:
      setting: a JSON file, what its `make` is given.
      python: the interpreter that has its packages; ours by default, which then finds `cpt` as well.

    Raises:
      PeerFailed: it could not start.
    """

    def __init__(self, name: str, setting: Path, python: str | None = None, env: Mapping[str, str] | None = None):
        self.name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        given = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | dict(env or {})
        if python is None:
            given["PYTHONPATH"] = os.pathsep.join([str(Path(cpt.__file__).parents[1]), *filter(None, sys.path)])
        command = [python or sys.executable, str(HERE / "serving.py"), str(HERE / f"{name}.py"), str(setting)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=given
        )
        self.pid = self._process.pid
        try:
            self.facts = self._read()["facts"]
        except PeerFailed:
            self.close()
            raise

    def ask(self, what: str, times: int = 1) -> dict[str, Any]:
        """`step` or `evaluate`, so many times: `begin` and `end` by the system's monotonic clock, `cpu_s` of all its
        threads, `loss`, `memory`.

        Raises:
          PeerFailed: its process ended.
        """
        try:
            self._process.stdin.write(f"{what} {times}\n")
            self._process.stdin.flush()
        except OSError as e:
            raise PeerFailed(self._said()) from e
        return self._read()

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._errors):
            try:
                file.close()
            except OSError:  # what was to be said to it could not be
                continue

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise PeerFailed(self._said())
        return json.loads(line)

    def _said(self) -> str:
        self._errors.seek(0)
        lines = [line for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        return f"{self.name}: {lines[-1].strip() if lines else f'ended with {self._process.returncode}'}"
