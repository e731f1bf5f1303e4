"""Compile a program in a thread while the rest of a start (checkpoint, evaluation sets, their program) goes on."""

from __future__ import annotations

import threading
import time
from typing import Any

import jax

from cpt.backend import COMPILER

WAITED = "/jax/core/compile/waited_for_ahead"  # as JAX names what it compiles, so that it is counted as that


class CompiledAhead:
    """A program that is being compiled from here on; to be called with what it was lowered for.

    Only the compiler works in the thread: it leaves Python to others. Tracing would not, and its caller's contexts, and
    in Python 3.11 two threads that parse Python's syntax, would come into it.

    Args:
      lowered: the program.
    """

    def __init__(self, lowered: jax.stages.Lowered):
        self._lowered, self._compiled = lowered, None
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

    def wait_if_it_measures(self) -> None:
        """`wait` on a GPU, before something computes for long there.

        Its compiler times kernels to choose among them. XLA holds back what is launched meanwhile, but not what was
        launched before, and the choice is kept for all later starts.
        """
        if jax.default_backend() == "gpu":
            self.wait()

    def _compile(self) -> None:
        try:
            self._compiled = self._lowered.compile()
        except BaseException as e:  # told to whoever calls
            self._error = e
        self._lowered = None
