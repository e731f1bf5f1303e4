"""How much of the cores other processes use while something is timed, as Linux counts it; elsewhere nobody can say."""

from __future__ import annotations

import bisect
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

TICK = 1.0 / (os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100)


def busy_s(stat: str, cores: Sequence[int]) -> float:
    """Seconds that `cores` have worked, in the text of `/proc/stat`; waiting for a disk is not work."""
    total = 0
    for line in stat.splitlines():
        name, *ticks = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
            user, nice, system, _idle, _iowait, irq, soft, steal = (int(t) for t in [*ticks, *"0" * 8][:8])
            total += user + nice + system + irq + soft + steal
    return total * TICK


def used_s(pid: int) -> float:
    """Processor seconds of a process with all its threads; 0 when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) * TICK


class Others:
    """Samples of what the cores do beside some processes of ours, taken while the block runs.

    The clock of the kernel ticks every 10 ms, so a step is judged by the samples around it, a stretch of `every` or
    longer.

    Args:
      pids: of the processes that are ours; this one where none are given.
      every: seconds between samples.
    """

    def __init__(self, pids: Sequence[int] = (), every: float = 0.25):
        self.pids, self.every = list(pids) or [os.getpid()], every
        self.cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self.times: list[float] = []
        self.samples: list[tuple[float, float]] = []  # seconds worked by all, and by ours
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Others:
        self.look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.look()

    def look(self) -> None:
        """Take a sample now."""
        try:
            everything = busy_s(Path("/proc/stat").read_text(), self.cores)
        except OSError:
            return
        self.samples.append((everything, sum(used_s(pid) for pid in self.pids)))
        self.times.append(time.monotonic())

    def share(self, begin: float, end: float) -> float:
        """Of the time of all cores between two readings of `time.monotonic`, the part that others used."""
        if len(self.times) < 2:
            return 0.0
        first = max(bisect.bisect_right(self.times, begin) - 1, 0)
        last = min(max(bisect.bisect_left(self.times, end), first + 1), len(self.times) - 1)
        first = min(first, last - 1)
        (all_0, ours_0), (all_1, ours_1) = self.samples[first], self.samples[last]
        offered = (self.times[last] - self.times[first]) * max(len(self.cores), 1)
        # Two counters that tick apart from each other: a tick each may be missing.
        return max(0.0, (all_1 - all_0) - (ours_1 - ours_0) - 2 * TICK) / max(offered, TICK)

    def _watch(self) -> None:
        while not self._stop.wait(self.every):
            self.look()
