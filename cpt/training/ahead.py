"""Compile a program in a thread while the rest of a start (data, checkpoint, the first evaluation) goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import jax

from cpt.backend import COMPILER

WAITED = "/jax/core/compile/waited_for_ahead"  # as JAX names what it compiles, so that it is counted as that


class CompiledAhead:
    """A program that is being compiled from here on; to be called with what it was lowered for.

    Args:
      lower: traces and lowers it.
    """

    def __init__(self, lower: Callable[[], jax.stages.Lowered]):
        self._lower, self._compiled = lower, None
        self._error: BaseException | None = None
        # Not a daemon: the interpreter must not end under the feet of the compiler. `cpt.cli` leaves without waiting.
        self._thread = threading.Thread(target=self._compile, name=COMPILER)
        self._thread.start()

    def __call__(self, *args: Any) -> Any:
        """Call it; waits for the compiler first, and raises what it raised."""
        if self._compiled is None:
            self.wait()
        return self._compiled(*args)

    def wait(self) -> None:
        """Until it is compiled; what that takes is told to `jax.monitoring`. Raises what the compiler raised."""
        begun = time.monotonic()
        self._thread.join()
        jax.monitoring.record_event_duration_secs(WAITED, time.monotonic() - begun)
        if self._error is not None:
            raise self._error

    def _compile(self) -> None:
        try:
            self._compiled = self._lower().compile()
        except BaseException as e:  # told to whoever calls
            self._error = e
