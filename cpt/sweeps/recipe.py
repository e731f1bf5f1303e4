"""From the values of a trial to its plan, its command and its run directory, and how far the run there is."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cpt.cli import read_plan
from cpt.errors import ConfigError
from cpt.models.spec import flops_per_token
from cpt.plan import RunPlan
from cpt.sweeps.definition import Sweep
from cpt.training.branches import finished
from cpt.training.workdir import default_workdir, is_training, newest_step


@dataclass(frozen=True)
class Candidate:
    """One run that a sweep may train.

    Attributes:
      values: config path -> value, what the sweep sets.
      plan: of the run.
      directory: where it is trained; named after the plan, so the same values always come to the same place.
      flags: `--config=...` and all overrides, those of the whole sweep first.
    """

    values: Mapping[str, Any]
    plan: RunPlan
    directory: Path
    flags: tuple[str, ...]

    @property
    def command(self) -> list[str]:
        """What trains it: one process, although `srun` or `mpirun` may have started a worker in each of many tasks."""
        return [sys.executable, "-m", "cpt.main", *self.flags, f"--workdir={self.directory}", "--processes=1"]

    @property
    def first_step(self) -> int:
        """Where it begins: at 0, or where it leaves the run whose child it is."""
        init = self.plan.spec.init
        return (init.step or 0) if init.from_run and init.what == "all" else 0

    @property
    def step(self) -> int:
        """How far it is: its newest full checkpoint."""
        return max(newest_step(self.directory), self.first_step)

    @property
    def done(self) -> bool:
        """Whether the directory says that the run is finished, whoever trained it."""
        try:
            plan = json.loads((self.directory / "plan.json").read_text())
            summary = json.loads((self.directory / "summary.json").read_text())
            complete = plan["hash"] == self.plan.hash and summary["finished"] is True
        except (OSError, ValueError, KeyError, TypeError):
            return False
        # Old checkpoints may have been deleted since; but branches are trained after the summary says finished.
        return complete and (not self.plan.branch_points or finished(self.plan, self.directory))

    @property
    def state(self) -> str:
        """`done`, `training`, `at step 120` or `new`."""
        if self.done:
            return "done"
        if is_training(self.directory):
            return "training"
        return f"at step {self.step:,}" if self.step > self.first_step else "new"

    def tokens(self, step: int | None = None) -> int:
        """Tokens that are left to train from `step` on; all that it trains by default."""
        return self.plan.total_tokens - self.plan.clock(self.first_step if step is None else step).tokens

    @cached_property
    def flops_per_token(self) -> float:
        return flops_per_token(self.plan.spec.model, self.plan.spec.batch.length)


@dataclass(frozen=True)
class Recipe:
    """The recipe that a sweep varies.

    Attributes:
      file: `FILE.py` or `FILE.py:ARGUMENT`.
      overrides: `--config.a.b=value` of the whole sweep.
      out: folder of the run directories.
    """

    file: str
    overrides: tuple[str, ...]
    out: Path

    @cached_property
    def base(self) -> RunPlan:
        """The plan of the recipe before the sweep sets anything."""
        return self.candidate({}).plan

    def candidate(self, values: Mapping[str, Any]) -> Candidate:
        """The run with `values` set.

        Raises:
          ConfigError: the recipe does not take them; the line names the field.
        """
        set_here = tuple(f"--config.{path}={_text(value)}" for path, value in values.items())
        plan = read_plan(self.file, [*self.overrides, *set_here])
        directory = self.out / default_workdir(plan).name
        return Candidate(dict(values), plan, directory, (f"--config={self.file}", *self.overrides, *set_here))

    def points(self, sweep: Sweep) -> list[Candidate]:
        """The runs of a grid, each plan once; empty where the space has ranges.

        Raises:
          ConfigError: a field that the recipe does not have or a value that it does not take, before anything runs.
        """
        self._check_overrides(sweep)
        if sweep.space.ranges:
            return []
        first: dict[str, Candidate] = {}
        for candidate in map(self.candidate, sweep.space.points):
            first.setdefault(candidate.plan.hash, candidate)
        return list(first.values())

    def check_ranges(self, sweep: Sweep) -> Candidate:
        """That the recipe takes both ends of every range, the others in the middle; returns the run in the middle.

        Raises:
          ConfigError: it does not.
        """
        middle = {f: r.middle for r in sweep.space.ranges for f in r.fields}
        for r in sweep.space.ranges:
            for end in r.ends:
                self.candidate({**sweep.space.points[0], **middle, **dict.fromkeys(r.fields, end)})
        return self.candidate({**sweep.space.points[0], **middle})

    def _check_overrides(self, sweep: Sweep) -> None:
        given = {o.lstrip("-").removeprefix("config.").partition("=")[0] for o in self.overrides}
        if both := [f for f in sweep.space.fields if f in given]:
            raise ConfigError(f"--config.{both[0]}: the sweep '{sweep.name}' sets it; leave it out, or edit the sweep")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else repr(value)
