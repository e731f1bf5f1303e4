"""A worker of a sweep: takes a trial, trains it in a process of its own, enters what came of it, takes the next."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from optuna.exceptions import OptunaError

from cpt.errors import RunError, UserError
from cpt.sweeps.definition import origin
from cpt.sweeps.process import Process
from cpt.sweeps.queue import Queue, Taken
from cpt.training.signals import STOPPED_BY_SIGNAL, StopRequest
from cpt.training.workdir import is_training
from cpt.units import compact

POLL_S = 0.5
IDLE_S = 2.0
AWAY_S = 300.0
"""Seconds without an answer of the storage after which a worker gives up; training goes on in the meantime."""
MOST_STOPS = 3
"""Ends in a row without a newer checkpoint after which a trial counts as failed: killed, crashed or preempted ones."""
TAKEN = "another process trains there"


class End(Enum):
    """How a process of a trial ended."""

    DONE = "done"
    STOPPED = "stopped"
    TAKEN = "taken"
    WRONG = "wrong"
    PRUNED = "pruned"


@dataclass
class Worker:
    """`run` trains until no trial is left that it could train.

    Attributes:
      say: receives a line per finished trial.
      log: name of the file in the run directory that the output of a trial goes to.
    """

    queue: Queue
    say: Callable[[str], None]
    log: str = "trial.log"
    _later: dict[int, float] = field(default_factory=dict)

    def run(self) -> int:
        """0 when all trials are finished, 75 when a signal came."""
        with StopRequest() as stop:
            answered = time.monotonic()
            while stop.name is None:
                try:
                    if not self._next(stop):
                        return 0
                    answered = time.monotonic()
                except (OptunaError, OSError) as e:
                    if time.monotonic() - answered > AWAY_S:
                        raise RunError(f"--storage: no answer ({e}); runs are safe, the same command goes on") from e
                    self._idle(stop)
            self.say(f"{stop.name}: stopped; the same command goes on")
            return STOPPED_BY_SIGNAL

    def _next(self, stop: StopRequest) -> bool:
        """Train the next trial, or wait a moment for one; False when all are finished."""
        for number in self.queue.recover():
            self.say(f"trial {number}: its worker is gone; it waits to be taken again")
        now = time.monotonic()
        taken = self.queue.take({n for n, until in self._later.items() if until > now})
        if taken is not None:
            self.train(taken, stop)
        elif not self.queue.open():
            return False
        else:
            self._idle(stop)
        return True

    def train(self, taken: Taken, stop: StopRequest) -> None:
        """Train a trial to its end, and enter it."""
        candidate, started, stops = taken.candidate, time.monotonic(), 0
        taken.reported = self.queue.reported(taken)
        while not candidate.done:
            if is_training(candidate.directory):
                return self._leave(taken)
            step = candidate.step
            end, line = self._process(taken, stop)
            if end is End.TAKEN:
                return self._leave(taken)
            if end is End.WRONG:
                self.queue.fail(taken, line)
                return self.say(f"{self._head(taken)}  failed: {line}")
            if end is End.PRUNED:
                self.queue.prune(taken)
                return self.say(f"{self._head(taken)}  pruned at step {candidate.step:,}")
            if stop.name is not None and not candidate.done:
                return self.queue.give_back(taken)
            stops = stops + 1 if candidate.step == step else 1
            if stops >= MOST_STOPS and not candidate.done:
                why = f"{line}; {stops} times at step {step}, see {candidate.directory / self.log}"
                self.queue.fail(taken, why)
                return self.say(f"{self._head(taken)}  failed: {why}")
        self._complete(taken, time.monotonic() - started)

    def _process(self, taken: Taken, stop: StopRequest) -> tuple[End, str]:
        """One process of the trial, from its start to its end."""
        candidate, pruned, signed = taken.candidate, False, time.monotonic()
        process = Process(candidate.command, candidate.directory / self.log)
        while (code := process.wait(POLL_S)) is None:
            if stop.name is not None:
                process.ask_to_stop()
            try:
                if time.monotonic() - signed > self.queue.grace_s / 4:
                    signed = time.monotonic()
                    self.queue.sign(taken)
                if not pruned and self._report(taken):
                    pruned = True
                    process.ask_to_stop()
            except (OptunaError, OSError) as e:  # it must not cost what is being trained
                self.say(f"{self._head(taken)}  the storage does not answer ({e}); training goes on")
        if code == 0:
            return End.DONE, "it ended in order, but its summary.json does not say so"
        if code == STOPPED_BY_SIGNAL and pruned and stop.name is None:
            return End.PRUNED, ""
        if code == 2:
            line = process.last_line
            return (End.TAKEN if TAKEN in line else End.WRONG), line
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return End.STOPPED, f"{how}: {process.last_line}"

    def _report(self, taken: Taken) -> bool:
        """Enter the evaluations that came since; whether the trial is to be pruned."""
        rows = taken.candidate.directory / "eval.jsonl"
        size = rows.stat().st_size if rows.exists() else 0
        if size == taken.read:
            return False
        taken.read = size
        plan, prune = taken.candidate.plan, self.queue.sweep.prune
        first = origin(plan, prune.since if prune else None)
        try:
            found = self.queue.sweep.metric.so_far(taken.candidate.directory, plan, first + max(taken.reported, 0))
        except UserError:  # a file that is being written
            return False
        return any(self.queue.report(taken, step - first, value) for step, value in found)

    def _complete(self, taken: Taken, seconds: float) -> None:
        directory = taken.candidate.directory
        try:
            value = self.queue.sweep.metric.value(directory)
        except UserError as e:
            self.queue.fail(taken, str(e))
            return self.say(f"{self._head(taken)}  failed: {e}")
        if not math.isfinite(value):
            why = f"{self.queue.sweep.metric} is undefined in {directory / 'summary.json'}"
            self.queue.fail(taken, why)
            return self.say(f"{self._head(taken)}  failed: {why}")
        self.queue.complete(taken, value)
        self.say(f"{self._head(taken)}  {value:.4f}  {f'{seconds:.0f} s' if seconds > 1 else 'was done before'}")

    def _leave(self, taken: Taken) -> None:
        """Another process trains in its directory: ask again later."""
        self._later[taken.number] = time.monotonic() + 5 * IDLE_S
        self.queue.give_back(taken)

    def _head(self, taken: Taken) -> str:
        values = taken.candidate.values
        varying = {f: values[f] for f in self.queue.sweep.space.varying if f in values}
        return f"{taken.candidate.directory.name}  {told(varying)}"

    def _idle(self, stop: StopRequest) -> None:
        until = time.monotonic() + IDLE_S
        while stop.name is None and time.monotonic() < until:
            time.sleep(0.1)


def told(values: dict) -> str:
    """`lr.peak=1e-3 seed=2`: the values of a trial by the ends of their paths."""
    short = {path: compact(value) if isinstance(value, float) else value for path, value in values.items()}
    return " ".join(f"{'.'.join(path.split('.')[-2:])}={value}" for path, value in short.items())
