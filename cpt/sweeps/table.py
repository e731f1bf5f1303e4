"""A sweep in the terminal: what it would train, and what came of it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.table import Table
from rich.text import Text

from cpt.reports.plan_table import flop_text
from cpt.sweeps.definition import Sweep
from cpt.sweeps.queue import Queue
from cpt.sweeps.recipe import Candidate
from cpt.units import compact, human


def plan_of_grid(sweep: Sweep, candidates: Sequence[Candidate]) -> tuple[Table, str]:
    """A row per run with its values, cost and state; and a line with the cost of what is left."""
    fields = sweep.space.varying
    table = _table(["run", *_heads(fields), "tokens", "FLOPs", "state"], left={"run", "state"})
    tokens = flops = 0
    for c in candidates:
        left = 0 if c.done else c.tokens(c.step)
        tokens, flops = tokens + left, flops + left * c.flops_per_token
        cost = [human(c.tokens()), flop_text(c.tokens() * c.flops_per_token)]
        table.add_row(c.directory.name, *(_cell(c.values.get(f)) for f in fields), *cost, c.state)
    done = sum(c.done for c in candidates)
    return table, f"{len(candidates)} runs, {done} done; left to train: {human(tokens)} tokens, {flop_text(flops)}"


def plan_of_search(sweep: Sweep, middle: Candidate) -> tuple[Table, str]:
    """A row per range; and a line with the cost, that of a run in the middle of them all."""
    table = _table(["field", "from", "to", "scale"], left={"field", "scale"})
    for r in sweep.space.ranges:
        ends = [", ".join(map(_cell, r.options)), ""] if r.options else [_cell(r.low), _cell(r.high)]
        table.add_row(", ".join(r.fields), *ends, "one of them" if r.options else "log" if r.log else "linear")
    tokens = middle.tokens()
    cost = f"{human(tokens)} tokens, {flop_text(tokens * middle.flops_per_token)}"
    return table, f"{sweep.search.trials} trials, {sweep.search}; each about {cost}"


def results(queue: Queue) -> tuple[Table, list[str]]:
    """The runs, the best first; then a line for each that failed, and the command of the best."""
    sweep = queue.sweep
    fields = sweep.space.varying
    table = _table(["", "run", *_heads(fields), str(sweep.metric), "state"], left={"run", "state"})
    trials = sorted(queue.trials(), key=lambda t: _goodness(t, sweep))
    failed, best = [], None
    for place, trial in enumerate(trials, 1):
        candidate = queue.candidate(trial)
        name = candidate.directory.name if candidate else ""
        values = candidate.values if candidate else {}
        value = f"{trial.value:.4f}" if trial.values else ""
        state = _state(trial, candidate)
        ranked = str(place) if trial.state == TrialState.COMPLETE else ""
        table.add_row(ranked, name, *(_cell(values.get(f)) for f in fields), value, Text(state))
        if trial.state == TrialState.COMPLETE and best is None:
            best = candidate
        if trial.state == TrialState.FAIL:
            failed.append(f"{name or f'trial {trial.number}'}: {trial.user_attrs.get('error', 'failed')}")
    lines = [*failed]
    if best is not None:
        lines.append(f"best: python -m cpt.main {shlex.join([*best.flags, f'--workdir={best.directory}'])}")
    return table, lines


def _state(trial: FrozenTrial, candidate: Candidate | None) -> str:
    if trial.state == TrialState.PRUNED:
        return f"pruned at step {candidate.step:,}" if candidate else "pruned"
    names = {TrialState.COMPLETE: "done", TrialState.FAIL: "failed", TrialState.RUNNING: "training"}
    return names.get(trial.state, "waiting")


def _goodness(trial: FrozenTrial, sweep: Sweep) -> tuple[int, float, int]:
    sign = 1.0 if sweep.direction == "minimize" else -1.0
    order = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING, TrialState.WAITING, TrialState.FAIL]
    value = sign * trial.value if trial.values and math.isfinite(trial.value) else math.inf
    return order.index(trial.state), value, trial.number


def _table(heads: Sequence[str], left: set[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for head in heads:
        table.add_column(head, justify="left" if head in left else "right", no_wrap=head == "run", overflow="fold")
    return table


def _heads(fields: Sequence[str]) -> list[str]:
    """The ends of the paths, longer where two would be alike."""
    for n in range(2, 9):
        short = [".".join(f.split(".")[-n:]) for f in fields]
        if len(set(short)) == len(short):
            return short
    return list(fields)


def _cell(value: Any) -> str:
    return compact(value) if isinstance(value, float) else "-" if value is None else str(value)
