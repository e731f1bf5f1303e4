"""Where the time of a run goes: every moment belongs to exactly one bucket, so that the buckets sum to wall time.

It is the host's time. Devices compute behind it: while the host writes rows they may be busy with the next update, and
that moment is in `log`. What they take beyond is waited for, and is in `step` or `eval`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import jax.monitoring

BUCKETS = ("compile", "data", "step", "eval", "checkpoint", "log", "idle")
"""`data`: waiting for batches. `log`: rows, ledger, loggers. `idle`: none of the others; start-up and restoring."""
COMPILING = "/jax/core/compile/"  # what JAX calls the events of tracing, lowering and compiling


class Account:
    """Seconds by bucket since it was made.

        with account.to("data"):
            batch = next(batches)

    Buckets nest; the innermost gets the time. What JAX compiles meanwhile, in whichever bucket, is taken out of that
    one and counted as `compile`; only within `watching`.

    Args:
      now: the clock, in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self._now, self._open, self._thread = now, ["idle"], threading.get_ident()
        self.started = self._since = now()
        self._seconds = dict.fromkeys(BUCKETS, 0.0)
        self._compiled: list[tuple[float, float]] = []  # stretches that are counted, in order

    @contextlib.contextmanager
    def to(self, bucket: str) -> Iterator[None]:
        """Charge what happens inside to `bucket`, one of `BUCKETS`. Usable as a decorator."""
        self._settle()
        self._open.append(bucket)
        try:
            yield
        finally:
            self._settle()
            self._open.pop()

    @contextlib.contextmanager
    def watching(self) -> Iterator[Account]:
        """Hear of what JAX compiles in this thread."""
        jax.monitoring.register_event_duration_secs_listener(self._heard)
        try:
            yield self
        finally:
            jax.monitoring.unregister_event_duration_listener(self._heard)

    def seconds(self) -> dict[str, float]:
        """Seconds of every bucket up to now."""
        self._settle()
        return dict(self._seconds)

    def compiled(self, seconds: float) -> None:
        """Something took the last `seconds` to compile. Tellings may overlap: a function within a function is told
        first, and then again as a part of the outer one."""
        self._settle()
        end, begin = self._since, self._since - seconds
        gained = seconds
        while self._compiled and self._compiled[-1][1] > begin:
            start, stop = self._compiled.pop()
            gained -= stop - max(start, begin)
            begin = min(begin, start)
        self._compiled = [*self._compiled[-16:], (begin, end)]
        moved = min(max(gained, 0.0), self._seconds[self._open[-1]])
        self._seconds[self._open[-1]] -= moved
        self._seconds["compile"] += moved

    def _heard(self, event: str, seconds: float, **_: object) -> None:
        if event.startswith(COMPILING) and threading.get_ident() == self._thread:
            self.compiled(seconds)

    def _settle(self) -> None:
        now = self._now()
        self._seconds[self._open[-1]] += now - self._since
        self._since = now
