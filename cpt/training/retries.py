"""When a checkpoint is due by the clock: every so many minutes, and some time after one could not be written."""

from __future__ import annotations

FIRST_RETRY_S, LONGEST_RETRY_S = 60.0, 3600.0


class SaveClock:
    """Bookkeeping of times; reads no clock itself, so that all processes can follow that of one.

    Args:
      every_s: seconds between checkpoints; None = none are due by time.
    """

    def __init__(self, every_s: float | None = None):
        self.every_s = every_s
        self.failures = 0  # in a row
        self._next_s: float | None = None

    def due(self, now_s: float) -> bool:
        """Whether to save now; once it said so, it asks again only after another interval.

        Args:
          now_s: seconds of a clock that never goes back.
        """
        if self._next_s is None:
            self._schedule(now_s)
        if self._next_s is None or now_s < self._next_s:
            return False
        self._schedule(now_s)
        return True

    def saved(self, now_s: float) -> None:
        """A full checkpoint was written."""
        self.failures = 0
        self._schedule(now_s)

    def failed(self, now_s: float) -> float:
        """One could not be written; returns in how many seconds the next try is due: 1, 2, 4, ... minutes."""
        self.failures += 1
        self._schedule(now_s)
        return self.wait_s

    @property
    def wait_s(self) -> float:
        """Seconds from a save to the next that is due; infinite if none is."""
        if self.failures:
            return min(FIRST_RETRY_S * 2 ** (self.failures - 1), LONGEST_RETRY_S)
        return float("inf") if self.every_s is None else self.every_s

    def _schedule(self, now_s: float) -> None:
        self._next_s = now_s + self.wait_s if self.wait_s < float("inf") else None
