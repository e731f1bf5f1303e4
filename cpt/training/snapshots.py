"""Snapshots after a switch, evaluated later and only where it matters.

The stability gap is a peak of the loss in the first tens of updates of a phase (De Lange et al. 2023, arXiv
2205.13452). To evaluate after each of them costs as much as training; to evaluate after a few of them misses the peak.
A copy of the parameters takes memory but next to no time, so the first `snapshots` updates of a phase are kept, every
few of them are evaluated, and then those between the worst of these and its neighbours, until its neighbours are the
updates beside it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from cpt.plan import RunPlan
from cpt.training.evaluation import Evaluation
from cpt.training.processes import here
from cpt.training.recorder import IN_LOOP, Recorder

GRID = "grid"


class Snapshots:
    """The parameters after the first updates of a phase, on their devices, in the dtype that products take them in.

    What is kept is settled when the last of those updates is done, before a checkpoint of the plan is saved, so that a
    run that goes on from it has all rows of before, and when the run ends or is stopped.

    Args:
      evaluation: asked for the sets of the grid.
      recorder: writes the rows; what evaluating takes is not charged to an update.
      step: where the run starts or resumes; what was evaluated of its phase before is known from the rows.
    """

    def __init__(self, plan: RunPlan, evaluation: Evaluation, recorder: Recorder, step: int = 0):
        self.plan, self.evaluation, self.recorder = plan, evaluation, recorder
        self._copy = jax.jit(lambda params: jax.tree.map(jnp.copy, evaluation.narrow(params)))
        self._kept: dict[int, Any] = {}
        self._nats: dict[int, Mapping[str, jax.Array]] = {}
        self._losses: dict[int, dict[str, float]] = {}
        for at, name, loss in here().decide(lambda: self._written(step)):
            self._losses.setdefault(at, {})[name] = math.nan if loss is None else loss

    def _written(self, step: int) -> list[tuple[int, str, float | None]]:
        """(step, set, loss) of each evaluation that a run which resumes at `step` has of its phase's first updates."""
        phase = self.plan.phase_at(step)
        path, most = self.recorder.workdir / "eval.jsonl", phase.spec.evaluate.snapshots
        if not most or not phase.first_step < step <= phase.first_step + most or not path.is_file():
            return []
        sets = {name for name, s in self.plan.spec.evaluation.sets.items() if s.at == GRID}
        rows = [row for row in map(json.loads, path.read_text().splitlines()) if row["checkpoint"] == IN_LOOP]
        return [(r["step"], r["set"], r["loss"]) for r in rows if r["step"] >= phase.first_step and r["set"] in sets]

    def at(self, step: int, params: Any, nats: Mapping[str, jax.Array]) -> None:
        """The parameters after `step` updates, and the nats of the sets that were evaluated there, if any."""
        phase = self.plan.phase_at(step)
        first, most = phase.first_step, phase.spec.evaluate.snapshots
        if not most or GRID not in self.evaluation.losses or step > first + most:
            return
        if step == first:
            self.settle()  # of a phase that was shorter than its snapshots
            self._nats.clear()
            self._losses.clear()
        if GRID in nats:
            self._nats[step] = nats
        elif step > first and step not in self._losses:
            self._kept[step] = self._copy(params)
        if step == first + most:
            self.settle()

    def settle(self) -> None:
        """Evaluate of the kept ones those around the worst loss of each set, and let go of all."""
        if not self._kept:
            return
        self.recorder.drain()
        for step, nats in self._nats.items():
            self._note(step, nats)
        self._nats.clear()
        spacing = math.isqrt(self.plan.phase_at(min(self._kept)).spec.evaluate.snapshots)
        wanted = spaced(sorted(self._kept), self._losses, spacing)
        while wanted:
            for step in wanted:
                nats = self.evaluation(self._kept.pop(step), (GRID,))
                self.recorder.evaluated(step, nats)
                self._note(step, nats)
            wanted = beside_the_worst(self._losses, self._kept)
        self._kept.clear()
        self.recorder.drain()
        self.recorder.resume_clock()

    def _note(self, step: int, nats: Mapping[str, jax.Array]) -> None:
        rows = self.evaluation.losses[GRID].rows(jax.device_get(nats[GRID]))
        self._losses[step] = {row["set"]: row["loss"] for row, _ in rows}


def spaced(kept: list[int], known: Iterable[int], spacing: int) -> list[int]:
    """Of the steps `kept`, in order, the fewest so that no `spacing` of them in a row have no evaluation; and the last.

    Args:
      known: steps that are evaluated already.
    """
    chosen, known = [], set(known)
    last = max((s for s in known if s < kept[0]), default=kept[0] - 1)
    for step in sorted({*kept, *known}):
        if step in known:
            last = max(last, step)
        elif step - last >= spacing or step == kept[-1]:
            chosen.append(step)
            last = step
    return chosen


def beside_the_worst(losses: Mapping[int, Mapping[str, float]], kept: Iterable[int]) -> list[int]:
    """For each set the middle one of the kept steps on either side of its worst loss, up to the next evaluated step.

    Args:
      losses: of each set, by step.
      kept: steps that can still be evaluated.
    """
    known, kept, out = sorted(losses), sorted(kept), set()
    for name in losses[known[0]]:
        worst = max(known, key=lambda s: losses[s][name] if math.isfinite(losses[s][name]) else -math.inf)
        below = max((s for s in known if s < worst), default=None)
        above = min((s for s in known if s > worst), default=None)
        sides = [[s for s in kept if below is not None and below < s < worst]]
        sides += [[s for s in kept if above is not None and worst < s < above]]
        out |= {side[len(side) // 2] for side in sides if side}
    return sorted(out)
