"""What goes wrong in one of several processes, told to all: each sees other files fail, and none may act on that alone.

Everything here returns at once where there is one process.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_BYTES = 512  # of the news of one process


def first_news(mine: str) -> str:
    """What the first process has to say that has anything to say, on every process; "" if nobody has."""
    if jax.process_count() == 1:
        return mine
    padded = mine.encode()[:_BYTES].ljust(_BYTES, b"\0")
    all_PxB = multihost_utils.process_allgather(np.frombuffer(padded, np.uint8))
    texts = [bytes(row_B).rstrip(b"\0").decode(errors="ignore") for row_B in np.asarray(all_PxB)]
    return next((f"process {i}: {text}" for i, text in enumerate(texts) if text), "")


class OthersFailed(Exception):
    """Another process could not write its part; the message is its reason."""


class Meeting:
    """Where the processes that write one checkpoint together wait for each other, and hear if one of them gave up.

    It goes through the coordination service, not through the devices, so it may be used from a thread while the
    devices train. Whoever fails still comes to the next meeting, or the others would wait there until time runs out.

    Args:
      name: of this attempt; the same on all processes, another one for each attempt.
      timeout_s: how long to wait for a process that does not come.
    """

    def __init__(self, name: str, timeout_s: float):
        self.name, self._timeout_s, self._stage = name, timeout_s, 0
        self._alone = jax.process_count() == 1

    def join(self) -> None:
        """Meet the others. Raises OthersFailed on every process if one of them gave up."""
        if self._alone:
            return
        self._wait()
        # Of this stage only: who failed on the way to the next one waits there, and everybody has to come.
        if reasons := _client().key_value_dir_get(f"{self.name}/failed/{self._stage}/"):
            raise OthersFailed(reasons[0][1])

    def give_up(self, reason: str) -> None:
        """Tell the others, at the meeting that they are waiting at, that this process failed."""
        if not self._alone:
            _client().key_value_set(f"{self.name}/failed/{self._stage + 1}/{jax.process_index()}", reason)
            self._wait()

    def part(self) -> None:
        """Meet a last time, whatever happened before."""
        if not self._alone:
            self._wait()

    def _wait(self) -> None:
        self._stage += 1
        _client().wait_at_barrier(f"{self.name}/{self._stage}", int(1000 * self._timeout_s))


def _client() -> Any:
    from jax._src import distributed  # JAX shows its key-value store nowhere else; Orbax takes it from here as well

    return distributed.global_state.client
