"""Who trains what: the trials of a sweep in its storage.

All trials are entered at once, as waiting; those of a search get their values when they are taken. A worker takes a
waiting trial, shows a sign of life while it trains, and enters what came of it; a trial whose worker is gone waits
again. Optuna's own heartbeat works only inside `Study.optimize`, only in a database, and fails the trial; here the sign
is an attribute of the trial, which every storage has, and the trial stays one. Nothing rests on it: were two workers to
take one trial, the lock of the run directory lets only one of them train, and a finished directory is only read.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from cpt.errors import ConfigError
from cpt.sweeps.definition import Sweep
from cpt.sweeps.recipe import Candidate, Recipe
from cpt.sweeps.space import Range
from cpt.sweeps.storage import is_number
from cpt.training.workdir import is_training

SIGN = "cpt:sign"
"""System attribute of a trial: [who trains it, a count that rises while it does]."""


@dataclass
class Taken:
    """A trial that this worker has.

    Attributes:
      reported: the last resource (updates since the phase began that is judged) with an intermediate value.
      signs: signs of life given.
      read: bytes of its evaluations that were looked at.
    """

    id: int
    number: int
    candidate: Candidate
    reported: int = -1
    signs: int = 0
    read: int = 0


@dataclass
class Queue:
    """The trials of one sweep.

    Attributes:
      grid: the candidates of a grid by directory name; empty for a search.
      grace_s: seconds without a sign of life after which a worker counts as gone.
    """

    study: optuna.Study
    storage: BaseStorage
    sweep: Sweep
    recipe: Recipe
    grid: dict[str, Candidate]
    grace_s: float = 120.0
    owner: str = field(default_factory=lambda: f"{platform.node()}/{os.getpid()}/{uuid.uuid4().hex[:8]}")
    _seen: dict[int, tuple[Any, float]] = field(default_factory=dict)
    _drawn: dict[int, Candidate | None] = field(default_factory=dict)
    _refused: dict[int, str] = field(default_factory=dict)

    # Trials of this sweep

    def trials(self) -> list[FrozenTrial]:
        """Those of the space as it is now, in their order; of several for one run the one that says most."""
        everything = self.study.get_trials(deepcopy=False)
        if not self.grid:
            alive = [t for t in everything if not self._replaced(t)]
            return alive[: self.sweep.search.trials]
        best: dict[str, FrozenTrial] = {}
        for trial in everything:
            name = trial.user_attrs.get("run")
            if name in self.grid and (name not in best or _rank(trial) >= _rank(best[name])):
                best[name] = trial
        return sorted(best.values(), key=lambda t: t.number)

    def fill(self, retry_failed: bool) -> None:
        """Enter the trials that are missing.

        Args:
          retry_failed: enter those that failed once more.
        """
        with self._turn():
            there = [t for t in self.trials() if not (retry_failed and t.state == TrialState.FAIL)]
            if not self.grid:
                for trial in self.trials():
                    if trial not in there:
                        self._mark_replaced(trial)
                for _ in range(self.sweep.search.trials - len(there)):
                    self.study.add_trial(create_trial(state=TrialState.WAITING))
                return
            entered = {t.user_attrs["run"] for t in there}
            distributions = _distributions(self.grid.values())
            for name, candidate in self.grid.items():
                if name not in entered:
                    self.study.add_trial(_waiting(name, candidate, distributions))

    def open(self) -> bool:
        """Whether a trial is not finished yet, here or with another worker."""
        return any(not t.state.is_finished() for t in self.trials())

    def candidate(self, trial: FrozenTrial) -> Candidate | None:
        """The run of a trial; None for one of a search that nobody has taken yet, or that the recipe refuses."""
        if self.grid:
            return self.grid[trial.user_attrs["run"]]
        if trial.number not in self._drawn:
            if any(r.name not in trial.params for r in self.sweep.space.ranges):
                return None
            values = dict(self.sweep.space.points[0])
            for r in self.sweep.space.ranges:
                value = _original(trial.params[r.name], r)
                values |= dict.fromkeys(r.fields, value)
            self._drawn[trial.number] = self._possible(trial.number, values)
        return self._drawn[trial.number]

    # Taking and giving back

    def take(self, busy: set[int]) -> Taken | None:
        """A waiting trial, from now on this worker's; None if there is none.

        Args:
          busy: numbers of trials to leave alone, whose directory another process holds.
        """
        while (claimed := self._claim(busy)) is not None:
            trial, trial_id = claimed
            candidate = self.grid[trial.user_attrs["run"]] if self.grid else self._draw(trial, trial_id)
            if candidate is not None:
                return Taken(trial_id, trial.number, candidate)
        return None

    def sign(self, taken: Taken) -> None:
        """Show that this worker is alive."""
        taken.signs += 1
        self._sign(taken.id, taken.signs)

    def give_back(self, taken: Taken) -> None:
        """Let somebody else go on with it."""
        self._enter(taken, TrialState.WAITING)

    def recover(self) -> list[int]:
        """Numbers of trials that wait again because the worker that had them is gone."""
        found = []
        with self._turn():
            for trial in self.trials():
                if trial.state != TrialState.RUNNING or not self._gone(trial):
                    continue
                candidate = self.candidate(trial)
                # Its process may have outlived the worker; then it is to be left alone until it is done.
                if candidate is not None and is_training(candidate.directory):
                    continue
                with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                    self.storage.set_trial_state_values(self._id(trial), TrialState.WAITING)
                    found.append(trial.number)
        return found

    # What came of it

    def report(self, taken: Taken, resource: int, value: float) -> bool:
        """Enter an intermediate value; returns whether the trial is to be pruned."""
        trial = Trial(self.study, taken.id)
        if resource > taken.reported:
            taken.reported = resource
            trial.report(value, resource)
        return trial.should_prune()

    def reported(self, taken: Taken) -> int:
        """The last resource that was reported, by whichever worker."""
        return max(self.storage.get_trial(taken.id).intermediate_values, default=-1)

    def complete(self, taken: Taken, value: float) -> None:
        self._enter(taken, TrialState.COMPLETE, [value])

    def prune(self, taken: Taken) -> None:
        values = self.storage.get_trial(taken.id).intermediate_values
        self._enter(taken, TrialState.PRUNED, [values[max(values)]] if values else None)

    def fail(self, taken: Taken, why: str) -> None:
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            self.storage.set_trial_user_attr(taken.id, "error", why)
        self._enter(taken, TrialState.FAIL)

    # Inner works

    def _enter(self, taken: Taken, state: TrialState, values: list[float] | None = None) -> None:
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # somebody else read the same directory
            self.storage.set_trial_state_values(taken.id, state, values)

    def _claim(self, busy: set[int]) -> tuple[FrozenTrial, int] | None:
        """The first waiting trial and its id, now running; None if there is none."""
        with self._turn():
            for trial in self.trials():
                if trial.state != TrialState.WAITING or trial.number in busy:
                    continue
                trial_id = self._id(trial)
                with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                    if self.storage.set_trial_state_values(trial_id, TrialState.RUNNING):
                        self._sign(trial_id, 0)
                        return trial, trial_id
        return None

    def _draw(self, trial: FrozenTrial, trial_id: int) -> Candidate | None:
        """The run of a trial of a search, whose values are drawn where they are not there yet.

        None where the recipe does not take them together; the trial has then failed.
        """
        sampler = self.sweep.search.sampler(trial.number)
        # Afresh: a study shows its sampler the trials as they were when it was first asked.
        study = optuna.load_study(study_name=self.study.study_name, storage=self.storage, sampler=sampler)
        study.get_trials(deepcopy=False)  # a database's cache knows no trial that was not listed
        asked = Trial(study, trial_id)
        for r in self.sweep.space.ranges:
            _suggest(asked, r)
        candidate = self.candidate(self.storage.get_trial(trial_id))
        if candidate is None:
            self.storage.set_trial_user_attr(trial_id, "error", self._refused[trial.number])
            self.storage.set_trial_state_values(trial_id, TrialState.FAIL)
        else:
            self.storage.set_trial_user_attr(trial_id, "run", candidate.directory.name)
        return candidate

    def _possible(self, number: int, values: dict[str, Any]) -> Candidate | None:
        try:
            return self.recipe.candidate(values)
        except ConfigError as e:
            self._refused[number] = str(e)
            return None

    def _gone(self, trial: FrozenTrial) -> bool:
        """Whether the worker of a running trial is dead, or has shown no sign of life for `grace_s`.

        Signs are compared with what was seen last, by this machine's clock: clocks differ between machines.
        """
        sign = trial.system_attrs.get(SIGN)
        host, pid, _ = (sign[0] if sign else "//").split("/")
        if host == platform.node() and not _alive(int(pid)):
            return True
        was, since = self._seen.get(trial.number, (None, 0.0))
        if was != sign or trial.number not in self._seen:
            self._seen[trial.number] = (sign, time.monotonic())
            return False
        return time.monotonic() - since > self.grace_s

    def _sign(self, trial_id: int, count: int) -> None:
        self.storage.set_trial_system_attr(trial_id, SIGN, [self.owner, count])

    def _id(self, trial: FrozenTrial) -> int:
        study_id = self.storage.get_study_id_from_name(self.study.study_name)
        return self.storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)

    def _replaced(self, trial: FrozenTrial) -> bool:
        return trial.number in self.study.user_attrs.get("replaced", [])

    def _mark_replaced(self, trial: FrozenTrial) -> None:
        self.study.set_user_attr("replaced", [*self.study.user_attrs.get("replaced", []), trial.number])

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """One worker at a time, where the file system has locks: SQLite would let two take one trial."""
        path = self.recipe.out / ".sweep.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as f:
            with contextlib.suppress(OSError):
                fcntl.flock(f, fcntl.LOCK_EX)
            yield


def _rank(trial: FrozenTrial) -> int:
    order = (TrialState.FAIL, TrialState.WAITING, TrialState.RUNNING, TrialState.PRUNED, TrialState.COMPLETE)
    return order.index(trial.state)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _waiting(name: str, candidate: Candidate, distributions: dict[str, BaseDistribution]) -> FrozenTrial:
    params = {path: _shown(value) for path, value in candidate.values.items()}
    return create_trial(
        state=TrialState.WAITING,
        params=params,
        distributions={path: distributions[path] for path in params},
        user_attrs={"run": name},
    )


def _distributions(candidates: Any) -> dict[str, BaseDistribution]:
    """What Optuna wants to know of the fields of a grid: numbers may get new values later, texts may not."""
    found: dict[str, list[Any]] = {}
    for candidate in candidates:
        for path, value in candidate.values.items():
            found.setdefault(path, []).append(value)
    return {
        path: FloatDistribution(min(options), max(options))
        if all(map(is_number, options))
        else CategoricalDistribution(sorted({_shown(v) for v in options}, key=repr))
        for path, options in found.items()
    }


def _shown(value: Any) -> Any:
    """As Optuna holds it; a tuple as its text."""
    return repr(value) if isinstance(value, tuple) else value


def _original(value: Any, r: Range) -> Any:
    return next(o for o in r.options if _shown(o) == value) if r.options else value


def _suggest(trial: Trial, r: Range) -> None:
    if r.options:
        trial.suggest_categorical(r.name, [_shown(o) for o in r.options])
    elif r.whole:
        trial.suggest_int(r.name, int(r.low), int(r.high), log=r.log)
    else:
        trial.suggest_float(r.name, r.low, r.high, log=r.log)
