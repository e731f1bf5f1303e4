"""Loss curves with the learning rate that made them, from tables and from runs."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from cpt.errors import DataError
from cpt.evaluators.rows import RunFiles, number, read_run
from cpt.plan import RunPlan


@dataclass(frozen=True, eq=False)
class Curve:
    """A loss curve.

    Attributes:
      name: for tables.
      lr_T: float64 [T], learning rate of every update from the first, warm-up included.
      steps_P: int64 [P], updates done at each point, increasing, in 1..T.
      loss_P: float64 [P], nats per token; NaN where it is to be predicted.
      warmup: updates of the initial warm-up.
      switch: updates before the data changed; T where it did not.
    """

    name: str
    lr_T: np.ndarray
    steps_P: np.ndarray
    loss_P: np.ndarray
    warmup: int
    switch: int

    @cached_property
    def changes(self) -> tuple[np.ndarray, np.ndarray]:
        """(steps, drops): the updates k whose rate differs from the one before, and `lr[k-1] - lr[k]`, warm-up left
        out."""
        drops_T = -np.diff(self.lr_T, prepend=self.lr_T[0])
        drops_T[: self.warmup + 1] = 0.0
        at = np.flatnonzero(drops_T)
        return at, drops_T[at]


def read_csv(path: Path, switch: int | None = None) -> Curve:
    """A table with the columns `step, lr, loss`, as published curves have them.

    The table may hold every so-manieth step only. Between two rows the rate is taken as a line, except where it jumps:
    by more than a tenth, and faster than on either side. Such a jump is taken to lie at the later row. Before the first
    row the rate is taken as a line from 0. Rows of the warm-up count for the rate, not for the loss: the laws begin
    where it ends.

    Raises:
      DataError: no such file, other columns, a cell that is no number, steps that do not increase.
    """
    path = Path(path)
    try:
        with path.open(newline="") as f:
            rows = list(csv.DictReader(f))
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror})") from e
    if not rows or not {"step", "lr", "loss"} <= set(rows[0]):
        raise DataError(f"{path}: needs the columns step, lr, loss (has {', '.join(rows[0]) if rows else 'no rows'})")
    try:
        step, lr, loss = (np.array([float(r[name]) for r in rows]) for name in ("step", "lr", "loss"))
    except (TypeError, ValueError) as e:
        raise DataError(f"{path}: holds a cell that is no number ({e})") from e
    if step[0] < 1 or (np.diff(step) <= 0).any() or not (np.isfinite(lr).all() and (lr >= 0).all()):
        raise DataError(f"{path}: steps must increase from 1 on, and rates be finite and at least 0")
    steps, last = step.astype(np.int64), int(step[-1])
    every = np.interp(np.arange(1, last + 1), [0, *step], [0.0, *lr])
    for i in _jumps(step, lr):
        every[steps[i] : steps[i + 1] - 1] = lr[i]
    switch = last if switch is None else switch
    warmup = _warmup(every[:switch])
    keep = steps > warmup
    return Curve(path.stem, every, steps[keep], loss[keep], warmup, switch)


def _jumps(step: np.ndarray, lr: np.ndarray) -> np.ndarray:
    """Rows before which the rate is one thing and after which it is another; a steep decay is none of them."""
    slope = np.abs(np.diff(lr, prepend=0.0) / np.diff(step, prepend=0.0))  # from the row before to each row
    before, here, after = slope[:-1], slope[1:], np.append(slope[2:], 0.0)
    far = np.abs(np.diff(lr)) > 0.1 * np.maximum(lr[1:], lr[:-1])
    return np.flatnonzero(far & (here > 4 * np.maximum(before, after)))


def _warmup(lr_T: np.ndarray) -> int:
    """Updates before the first one at the highest rate that is reached without a fall."""
    falls = np.flatnonzero(np.diff(lr_T) < 0)
    return int(np.argmax(lr_T[: falls[0] + 1] if len(falls) else lr_T))


def read_workdir(path: Path, set_name: str | None = None, points: int = 400) -> Curve:
    """The curve of a run: its training loss, or the loss of one of its evaluation sets.

    Raises:
      DataError: the run has no such set, or no rows.
      RunError: `path` is no run directory.
    """
    run = read_run(Path(path))
    rows = [r for r in run.metrics if r.get("lr") is not None]
    if not rows or [r["step"] for r in rows] != list(range(1, len(rows) + 1)):
        raise DataError(f"{path}: its metrics.jsonl does not hold every step from 1 on")
    lr_T = np.array([r["lr"] for r in rows], np.float64)
    switch = run.phases[1]["first_step"] if len(run.phases) > 1 else len(lr_T)
    warmup = _warmup(lr_T[:switch])
    if set_name is not None:
        steps, loss = _evaluated(run, set_name, len(lr_T))
    else:
        steps, loss = _binned(np.array([number(r.get("loss")) for r in rows]), points, switch)
    keep = np.isfinite(loss) & (steps > warmup)
    name = run.name if set_name is None else f"{run.name}:{set_name}"
    return Curve(name, lr_T, steps[keep], loss[keep], warmup, switch)


def of_plan(plan: RunPlan) -> Curve:
    """The schedule of a plan, with its end as the one point to predict."""
    lr_T = np.concatenate([p.learning_rates() for p in plan.phases])
    switch = plan.phases[0].steps
    warmup = _warmup(lr_T[:switch])
    return Curve(plan.name, lr_T, np.array([len(lr_T)]), np.array([math.nan]), warmup, switch)


def _evaluated(run: RunFiles, name: str, last: int) -> tuple[np.ndarray, np.ndarray]:
    curve = run.curves.get(name)
    if curve is None:
        raise DataError(f"{run.path}: no evaluation set '{name}'  (sets: {', '.join(run.curves) or 'none'})")
    keep = (curve.steps >= 1) & (curve.steps <= last)
    return curve.steps[keep], curve.loss[keep]


def _binned(loss_T: np.ndarray, points: int, switch: int) -> tuple[np.ndarray, np.ndarray]:
    """Means over equal stretches, none of them across the switch: single batches are noise to a law."""
    steps, last = np.arange(1, len(loss_T) + 1), len(loss_T)
    edges = np.unique([*np.linspace(0, last, min(points, last) + 1).astype(int), min(switch, last)])
    stretch = np.searchsorted(edges, steps) - 1
    seen = np.isfinite(loss_T)
    count = np.bincount(stretch[seen], minlength=len(edges) - 1)
    total = np.bincount(stretch[seen], loss_T[seen], len(edges) - 1)
    means = np.divide(total, count, out=np.full(len(count), math.nan), where=count > 0)
    return (edges[:-1] + edges[1:] + 1) // 2, means
