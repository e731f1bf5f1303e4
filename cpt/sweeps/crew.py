"""Several workers on one machine."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence

from cpt.sweeps.process import Process
from cpt.training.signals import STOPPED_BY_SIGNAL, StopRequest

POLL_S = 0.2
MOST_RESTARTS = 20
COMMAND = (sys.executable, "-m", "cpt.sweep")


def run_crew(workers: int, argv: Sequence[str], say: Callable[[str], None]) -> int:
    """Start `workers` processes of this command, each a worker; one that is killed or crashes is started again.

    Args:
      argv: of this command.

    Returns:
      0, 75 when a signal came, 2 when a worker met an error that only the user can mend.
    """
    running = {n: _start(n, workers, argv) for n in range(workers)}
    restarts, worst = 0, 0
    with StopRequest() as stop:
        while running:
            if stop.name is not None:
                for process in running.values():
                    process.ask_to_stop()
            for n, process in list(running.items()):
                if (code := process.wait(0)) is None:
                    continue
                del running[n]
                if code in (0, 2, STOPPED_BY_SIGNAL):
                    worst = max(worst, code)
                    continue
                how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                if stop.name is None and restarts < MOST_RESTARTS:
                    say(f"worker {n}: {how}; started again")
                    restarts, running[n] = restarts + 1, _start(n, workers, argv)
                else:
                    say(f"worker {n}: {how}")
                    worst = max(worst, 1)
            time.sleep(POLL_S)
        return STOPPED_BY_SIGNAL if stop.name is not None else worst


def _start(n: int, workers: int, argv: Sequence[str]) -> Process:
    return Process(
        [*COMMAND, *argv[1:], f"--worker={n}"],
        env=share_of_devices(os.environ.get("CUDA_VISIBLE_DEVICES", ""), n, workers),
    )


def share_of_devices(visible: str, n: int, workers: int) -> dict[str, str]:
    """The environment that gives worker `n` its part of the visible GPUs, where there is one for each worker."""
    devices = [d for d in visible.split(",") if d]
    if len(devices) < workers:
        return {}
    each = len(devices) // workers
    return {"CUDA_VISIBLE_DEVICES": ",".join(devices[n * each : (n + 1) * each])}
