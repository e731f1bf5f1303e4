"""The number that a sweep judges its runs by: one of `summary.json`, or a weighted sum of several."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cpt.errors import ConfigError, nearest
from cpt.evaluators.objective import objective
from cpt.evaluators.rows import Row, RunFiles, read_run
from cpt.evaluators.summary import summary_of
from cpt.plan import RunPlan


@dataclass(frozen=True)
class WeightedSum:
    """`sum_i weight_i * number_i`, each number by its path in `summary.json` (see `cpt.evaluators.objective`)."""

    terms: tuple[tuple[str, float], ...]

    @classmethod
    def of(cls, weights: Mapping[str, float]) -> WeightedSum:
        """From path -> weight.

        Raises:
          ConfigError: no term, or a weight that is no number.
        """
        for path, weight in weights.items():
            if not isinstance(weight, int | float) or not math.isfinite(weight):
                raise ConfigError(f"metric: the weight of {path} is {weight!r}; give a number")
        if not weights:
            raise ConfigError("metric: empty; give a path in summary.json, e.g. sets.pile.forgetting")
        return cls(tuple((str(path), float(weight)) for path, weight in weights.items()))

    def check(self, plan: RunPlan) -> None:
        """That a finished run of `plan` will have all numbers: looked up in the summary of an imagined one.

        Raises:
          ConfigError: it will not; names the nearest.
        """
        summary = summary_of(_imagined(plan))
        for path, _ in self.terms:
            if path.startswith("probes."):  # which numbers a probe gives, only the probe knows
                if not any(path.startswith(f"probes.{name}.") for name in plan.spec.evaluation.probes):
                    known = list(plan.spec.evaluation.probes)
                    near = nearest(path.split(".")[1], known)
                    raise ConfigError(f"metric: {path}: no such probe{near}  (probes: {', '.join(known) or 'none'})")
                continue
            try:
                objective(summary, path)
            except ConfigError as e:
                raise ConfigError(f"metric: {str(e).partition(': ')[2]}") from e

    def value(self, run: Path) -> float:
        """Of a finished run. Raises what `objective` and `read_run` do."""
        summary = _stored(run)
        return self.of_summary(summary_of(read_run(run)) if summary is None else summary)

    def so_far(self, run: Path, plan: RunPlan, after: int) -> list[tuple[int, float]]:
        """(step, value) of the evaluations after step `after` where it is defined."""
        if not (run / "eval.jsonl").exists() or not (run / "plan.json").exists():
            return []
        files = replace(read_run(run), path=run / "none")  # without the rows per sequence there is no interval to draw
        out = []
        for step in sorted({r["step"] for r in files.evals if r["step"] > after}):
            due = {n for n, s in plan.spec.evaluation.sets.items() if s.at in plan.sets_at(step)}
            if not due <= {r["set"] for r in files.evals if r["step"] == step}:
                break  # still being written
            until = replace(files, evals=[r for r in files.evals if r["step"] <= step],
                            metrics=[r for r in files.metrics if r["step"] <= step])  # fmt: skip
            value = self.of_summary(summary_of(until))
            if math.isfinite(value):
                out.append((step, value))
        return out

    def of_summary(self, summary: Mapping[str, Any]) -> float:
        """The sum for one summary; NaN where one of its numbers is undefined."""
        return sum(weight * objective(summary, path) for path, weight in self.terms)

    def __str__(self) -> str:
        texts = [path if weight == 1 else f"{weight:g}*{path}" for path, weight in self.terms]
        return " + ".join(texts).replace("+ -", "- ")


def _stored(run: Path) -> Row | None:
    """The run's own summary, if it was written when the run was finished."""
    try:
        summary = json.loads((run / "summary.json").read_text())
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, dict) and summary.get("finished") else None


def _imagined(plan: RunPlan) -> RunFiles:
    """A run of `plan` that was evaluated at the edges of its phases, always with the same loss."""
    steps = [0, *(p.end for p in plan.phases)]
    rows = [
        {
            "step": step,
            "tokens": plan.clock(step).tokens,
            "set": name,
            "loss": 1.0,
            "bits_per_byte": 1.0,
            "nats": 1.0,
            "tokens_scored": 1,
            "bytes": 1,
        }
        for step in steps
        for name in plan.spec.evaluation.sets
    ]
    nowhere = Path("imagined")
    return RunFiles(nowhere, plan.to_json(), [], rows, ledger={}, config={}, environment={}, summary={}, eval_sets={})
