"""The rows that models evaluated after the fact add to a run directory, and which of them it lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from cpt.config import EvaluationSpec
from cpt.evaluators.rows import read_run
from cpt.training.evaluation import Evaluation
from cpt.training.logs import JsonLines, mend
from cpt.training.recorder import IN_LOOP, probe_values

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
      again: count rows of the loop as lacking.
    """

    def __init__(self, workdir: Path, names: Sequence[str], again: bool):
        run = read_run(workdir)
        self.names = names
        self.loop = {(r["set"], r["step"]): r for r in run.evals if r["checkpoint"] == IN_LOOP}
        counts = lambda row: row["checkpoint"] != IN_LOOP or not again  # noqa: E731
        self._there = {(r["set"], r["step"]) for r in run.evals if counts(r)}
        self._there |= {(r["probe"], r["step"]) for r in run.probes if counts(r)}

    def at(self, step: int) -> list[str]:
        """Sets and probes without a row at `step`."""
        return [name for name in self.names if (name, step) not in self._there]


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
        files = [workdir / name for name in FILES]
        for file in files:
            mend(file)
        self.sequences, self.evals, self.probes = map(JsonLines, files)

    def write(self, at: Mapping[str, Any], checkpoint: str, params: Any) -> None:
        """Evaluate what is missing at a step and write it.

        Args:
          at: `step`, `tokens` and `phase`.
          checkpoint: what the rows call the model.
        """
        step, due = at["step"], self.missing.at(at["step"])
        sets, probes = self.spec.sets, self.spec.probes
        # A program is of all its sets, as in the loop, even where a part of their rows is there: that gives its bits.
        kinds = [kind for kind in self.evaluation.losses if any(n in sets and sets[n].at == kind for n in due)]
        for row, sums in self.evaluation.rows(jax.device_get(self.evaluation(params, kinds))):
            if row["set"] in due:
                row = {**at, **row, "checkpoint": checkpoint}
                self.sequences.write({"step": step, **sums, "checkpoint": checkpoint})
                self.evals.write(row)
                self.done.rows += 1
                self._compare(row)
        for name in (n for n in due if n in probes):
            self._probed(at, checkpoint, name, jax.device_get(self.evaluation.probe(name, params, step)))
        if tasks := [n for n in due if n not in sets and n not in probes]:
            for name, values in self.tasks(params, tasks).items():
                self._probed(at, checkpoint, name, values)

    def _probed(self, at: Mapping[str, Any], checkpoint: str, name: str, given: Mapping[str, Any]) -> None:
        values = probe_values(name, dict(given))
        self.probes.write({**at, "probe": name, "values": values, "checkpoint": checkpoint})
        self.done.rows += 1

    def _compare(self, row: dict[str, Any]) -> None:
        """Note whether the loop wrote the same."""
        theirs = self.missing.loop.get((row["set"], row["step"]))
        if theirs is not None:
            self.done.compared += 1
            if any(row[k] != theirs[k] for k in ("nats", "tokens_scored", "bytes")):
                self.done.unequal.append(f"{row['set']} at step {row['step']}: {row['nats']!r}, was {theirs['nats']!r}")

    def close(self) -> None:
        for f in (self.sequences, self.evals, self.probes):
            f.close()
