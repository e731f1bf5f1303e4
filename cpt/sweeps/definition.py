"""A sweep: a space, the number that is judged, and how the space is searched.

sweep(name="seeds", space=seeds(0, 1, 2), metric="sets.pile.final")                  # every point of it: a grid
sweep(name="lr", space=log_uniform("phases.b.lr.peak", 1e-4, 1e-2), metric={"sets.b.final": 1, "sets.a.forgetting": 1},
      search=tpe(trials=20), prune=asha(first=32))
"""

from __future__ import annotations

import runpy
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from cpt.errors import ConfigError, UserError
from cpt.plan import RunPlan
from cpt.sweeps.metric import WeightedSum
from cpt.sweeps.space import Space

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

Direction = Literal["minimize", "maximize"]


class Search(Protocol):
    """How values are drawn from ranges; `trials` runs in all."""

    trials: int

    def sampler(self, number: int) -> BaseSampler:
        """What draws the values of trial `number`.

        The trial decides its random numbers, not the worker: otherwise workers that start alike would draw alike.
        """


class Metric(Protocol):
    """The number of a run that a sweep judges by; `str` of it is the head of its column."""

    def check(self, plan: RunPlan) -> None:
        """Raise a `ConfigError` where runs of `plan` cannot have it."""

    def value(self, run: Path) -> float:
        """Of a finished run; NaN where it is undefined."""

    def so_far(self, run: Path, plan: RunPlan, after: int) -> list[tuple[int, float]]:
        """(step, value) of every evaluation after step `after`, as far as the run has come."""


@dataclass(frozen=True)
class RandomSearch:
    """Each trial independently of all others."""

    trials: int
    seed: int = 0

    def sampler(self, number: int) -> BaseSampler:
        from optuna.samplers import RandomSampler

        return RandomSampler(seed=_seed(self.seed, number))

    def __str__(self) -> str:
        return "random search"


@dataclass(frozen=True)
class TPESearch:
    """Tree-structured Parzen estimators (Bergstra et al. 2011): near what was good, after `startup` random trials.

    Trials that are running count as bad ones, so that several workers do not try the same place.
    """

    trials: int
    seed: int = 0
    startup: int = 10

    def sampler(self, number: int) -> BaseSampler:
        from optuna.exceptions import ExperimentalWarning
        from optuna.samplers import TPESampler

        seed = _seed(self.seed, number)
        with warnings.catch_warnings():  # before Optuna 5 the constant liar was an experiment
            warnings.simplefilter("ignore", ExperimentalWarning)
            return TPESampler(n_startup_trials=self.startup, constant_liar=True, seed=seed)

    def __str__(self) -> str:
        return f"TPE, the first {self.startup} at random"


@dataclass(frozen=True)
class ASHA:
    """Asynchronous successive halving (Li et al. 2020, arXiv 1810.05934): after `first`, `factor * first`, ... updates
    only the best 1 of `factor` so far goes on; the others are stopped and stay saved.

    Attributes:
      first: updates after which a trial is judged first.
      factor: how rare it becomes to go on.
      since: the phase from whose beginning updates count; None = the last, which is where forgetting begins.
    """

    first: int
    factor: int = 3
    since: str | None = None

    def origin(self, plan: RunPlan) -> int:
        """The step from which updates count.

        Raises:
          ConfigError: the plan has no phase of that name.
        """
        return origin(plan, self.since)

    def __str__(self) -> str:
        return f"ASHA at {self.first}, {self.first * self.factor}, ... updates"


@dataclass(frozen=True)
class Sweep:
    """What a sweep file returns; make it with `sweep`."""

    name: str
    space: Space
    metric: Metric
    direction: Direction
    search: Search | None
    prune: ASHA | None


def sweep(
    name: str,
    space: Space,
    metric: str | Mapping[str, float] | Metric,
    direction: Direction = "minimize",
    search: Search | None = None,
    prune: ASHA | None = None,
) -> Sweep:
    """A sweep.

    Args:
      name: of the sweep; its runs go to `runs/<name>/` unless `--out` says otherwise.
      space: points, each a run, or ranges, which need a `search`.
      metric: path of a number in `summary.json`, or several with weights: `{"sets.b.final": 1, "sets.a.forgetting": 1}`
        weighs learning against forgetting.
      direction: whether a small or a large metric is good.
      search: `random(trials=n)` or `tpe(trials=n)`.
      prune: `asha(first=n)`, to stop what does not keep up.

    Raises:
      ConfigError: an unusable name or direction, an empty space, ranges without a search or a search without ranges.
    """
    if not isinstance(name, str) or not name or not all(c.isalnum() or c in "_-." for c in name):
        raise ConfigError(f"sweep: name={name!r} must name a folder: letters, digits, _ - .")
    if not isinstance(space, Space) or not space.points:
        raise ConfigError(f"sweep: space={space!r} is empty; make one with values, seeds, product, log_uniform, ...")
    if direction not in ("minimize", "maximize"):
        raise ConfigError(f"sweep: direction={direction!r}: 'minimize' or 'maximize'")
    if space.ranges and search is None:
        raise ConfigError(f"sweep: {space.ranges[0].name} is a range; say how to search it, e.g. search=tpe(trials=20)")
    if not space.ranges and search is not None:
        raise ConfigError("sweep: search: the space is a list of points, all of them are run; leave search out")
    if isinstance(metric, str | Mapping):
        metric = WeightedSum.of({metric: 1.0} if isinstance(metric, str) else metric)
    return Sweep(name, space, metric, direction, search, prune)


def random(trials: int, seed: int = 0) -> RandomSearch:
    """Draw each trial on its own: trial n is the same however many workers there are."""
    return RandomSearch(_count(trials, "random"), seed)


def tpe(trials: int, seed: int = 0, startup: int = 10) -> TPESearch:
    """Draw near what was good so far."""
    return TPESearch(_count(trials, "tpe"), seed, _count(startup, "tpe", "startup"))


def asha(first: int, factor: int = 3, since: str | None = None) -> ASHA:
    """Stop what does not keep up; see `ASHA`."""
    if factor < 2:
        raise ConfigError(f"asha: factor={factor} must be at least 2")
    return ASHA(_count(first, "asha", "first"), factor, since)


def origin(plan: RunPlan, phase: str | None) -> int:
    """The first step of a phase, of the last one by default.

    Raises:
      ConfigError: the plan has no phase of that name.
    """
    names = [p.name for p in plan.phases]
    if phase is not None and phase not in names:
        raise ConfigError(f"asha: since={phase!r} is no phase of the recipe  (phases: {', '.join(names)})")
    return plan.phases[-1 if phase is None else names.index(phase)].first_step


def read_sweep(given: str) -> Sweep:
    """The sweep that `get_sweep()` of `FILE.py` returns, or `get_sweep(ARGUMENT)` of `FILE.py:ARGUMENT`.

    Raises:
      ConfigError: no such file, no `get_sweep` in it, or it fails; the message names the line.
    """
    file, _, argument = given.partition(":")
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"--sweep={file}: no such file (looked in {Path.cwd()})")
    try:
        make = runpy.run_path(str(path)).get("get_sweep")
        if make is None:
            raise ConfigError(
                f"{path}: has no function get_sweep(); a sweep file defines one that returns s.sweep(...)"
            )
        made = make(argument) if argument else make()
    except Exception as e:  # a sweep file is a program: it can fail in any way there is
        if line := _line_in(path, e):
            raise ConfigError(line) from e
        raise
    if not isinstance(made, Sweep):
        kind = type(made).__name__
        raise ConfigError(f"{path}: get_sweep() returned {kind}; end it with `return s.sweep(...)`")
    return made


def _line_in(path: Path, e: Exception) -> str | None:
    """`file:line: what` where a line of the sweep file is to blame."""
    if isinstance(e, SyntaxError) and e.filename:
        return f"{e.filename}:{e.lineno}: {e.msg}"
    here = path.resolve()
    lines = [f.lineno for f in traceback.extract_tb(e.__traceback__) if Path(f.filename).resolve() == here]
    if not lines:
        return None
    text = str(e).removeprefix(f"{e.room}: ") if isinstance(e, UserError) else f"{type(e).__name__}: {e}"
    return f"{path}:{lines[-1]}: {' '.join(text.split())}"


def _count(n: int, what: str, field: str = "trials") -> int:
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ConfigError(f"{what}: {field}={n!r} must be a whole number, at least 1")
    return n


def _seed(seed: int, number: int) -> int:
    return (seed * 1_000_003 + number) % 2**32
