"""The rows that models evaluated after the fact add to a run directory, and which of them it lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from cpt.config import EvaluationSpec
from cpt.evaluators.rows import plain, read_run
from cpt.training.evaluation import Evaluation
from cpt.training.logs import JsonLines, mend
from cpt.training.recorder import IN_LOOP, probe_values
from cpt.training.workdir import is_training

FILES = ("eval_sequences.jsonl", "eval.jsonl", "probes.jsonl")
Tasks = Callable[[Any, Sequence[str]], Mapping[str, Mapping[str, float]]]
"""`(params, names) -> {name: values}`: benchmarks of a model, each as a probe of its name."""


@dataclass
class Done:
    """What came of it.

    Attributes:
      rows: written, of sets and of probes.
      checkpoints: that were restored.
      compared, unequal: rows of the loop that were computed again, and those of them that differ.
      skipped: damaged checkpoints.
      restore_s, forward_s, wall_s: seconds in restoring (partly behind an evaluation), evaluating, and in all.
    """

    rows: int = 0
    checkpoints: int = 0
    compared: int = 0
    unequal: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    restore_s: float = 0.0
    forward_s: float = 0.0
    wall_s: float = 0.0


class Missing:
    """What the rows of a run lack.

    Args:
      names: sets and probes that are wanted.
      again: compare with what the loop wrote.
    """

    def __init__(self, workdir: Path, names: Sequence[str], again: bool):
        run = read_run(workdir)
        self.names, self.again = names, again
        self.loop = {(r["set"], r["step"]): r for r in run.evals if r["checkpoint"] == IN_LOOP}
        self._there = {(r["set"], r["step"]) for r in run.evals} | {(r["probe"], r["step"]) for r in run.probes}

    def at(self, step: int) -> list[str]:
        """Sets and probes without a row at `step`."""
        return [name for name in self.names if (name, step) not in self._there]

    def compared_at(self, step: int) -> list[str]:
        """Sets whose row of the loop is to be computed again."""
        return [name for name in self.names if self.again and (name, step) in self.loop]


class Writer:
    """Appends the rows of one model after the other, so that whoever kills it loses one.

    Args:
      spec: what `evaluation` was built from.
      tasks: asked for the names that are neither sets nor probes.
    """

    def __init__(
        self,
        workdir: Path,
        spec: EvaluationSpec,
        evaluation: Evaluation,
        missing: Missing,
        done: Done,
        tasks: Tasks | None = None,
    ):
        self.spec, self.evaluation, self.missing, self.done, self.tasks = spec, evaluation, missing, done, tasks
        self.files = [workdir / name for name in FILES]
        if not is_training(workdir):  # whoever trains finishes the line that looks cut off
            for file in self.files:
                mend(file)

    def write(self, at: Mapping[str, Any], checkpoint: str, params: Any) -> None:
        """Evaluate what is missing at a step and write it.

        Args:
          at: `step`, `tokens` and `phase`.
          checkpoint: what the rows call the model.
        """
        # Opened for each model: a run that begins or resumes meanwhile puts other files in their place.
        self.sequences, self.evals, self.probes = map(JsonLines, self.files)
        try:
            self._write(at, checkpoint, params)
        finally:
            for file in (self.sequences, self.evals, self.probes):
                file.close()

    def _write(self, at: Mapping[str, Any], checkpoint: str, params: Any) -> None:
        step, due = at["step"], self.missing.at(at["step"])
        compared = self.missing.compared_at(step)
        sets, probes = self.spec.sets, self.spec.probes
        # A program is of all its sets, as in the loop, even where a part of their rows is there: that gives its bits.
        kinds = [
            kind for kind in self.evaluation.losses if any(n in sets and sets[n].at == kind for n in (*due, *compared))
        ]
        for row, sums in self.evaluation.rows(jax.device_get(self.evaluation(params, kinds))):
            if row["set"] in due:
                row = {**at, **row, "checkpoint": checkpoint}
                self.sequences.write({"step": step, **sums, "checkpoint": checkpoint})
                self.evals.write(row)
                self.done.rows += 1
            elif row["set"] in compared:
                self._compare(step, plain(row))
        for name in (n for n in due if n in probes):
            self._probed(at, checkpoint, name, jax.device_get(self.evaluation.probe(name, params, step)))
        if tasks := [n for n in due if n not in sets and n not in probes]:
            for name, values in self.tasks(params, tasks).items():
                self._probed(at, checkpoint, name, values)

    def _probed(self, at: Mapping[str, Any], checkpoint: str, name: str, given: Mapping[str, Any]) -> None:
        values = probe_values(name, dict(given))
        self.probes.write({**at, "probe": name, "values": values, "checkpoint": checkpoint})
        self.done.rows += 1

    def _compare(self, step: int, row: dict[str, Any]) -> None:
        """Note whether the loop wrote the same."""
        theirs = self.missing.loop[row["set"], step]
        self.done.compared += 1
        if any(row[k] != theirs[k] for k in ("nats", "tokens_scored", "bytes")):
            self.done.unequal.append(f"{row['set']} at step {step}: {row['nats']!r}, was {theirs['nats']!r}")
