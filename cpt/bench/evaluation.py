"""What evaluations cost beside what they must: in the loop, E / (3 B) of a step; of checkpoints, restore and forward.

A forward pass is a third of an update, so evaluating E tokens beside an update on B tokens should add E / (3 B) of it.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from rich.console import Console

from cpt.bench.contention import Others
from cpt.bench.stamps import KIND, read
from cpt.bench.timing import Step, counted
from cpt.bench.updates import opened, shortened
from cpt.config import GridSpec
from cpt.errors import ConfigError
from cpt.plan import RunPlan, resolve
from cpt.training.checkpoint import Checkpoints, restore
from cpt.training.evaluating import evaluate_run
from cpt.training.evaluation import build_evaluation
from cpt.training.feed import Data
from cpt.training.loop import train
from cpt.training.machine import make_machine
from cpt.training.preservation import checkpoints_of
from cpt.training.sharding import BATCH
from cpt.training.workdir import claim, prepare_workdir
from cpt.units import Duration

ALONE = 8  # checkpoints restored and evaluated one by one, for comparison


def bench_evaluation(plan: RunPlan, steps: int, checkpoints: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Dense evaluation of one set in a run, and evaluation of the checkpoints of another.

    Args:
      plan: a run with sets; only its first phase is trained.
      steps: updates of the first run; before every second one it evaluates.
      checkpoints: that the second one leaves.
    """
    if not plan.spec.evaluation.sets:
        raise ConfigError("--config: the recipe has no evaluation sets, so there is nothing to time")
    dense = with_sets(plan, steps, evaluate_every=2)
    data = opened(dense, say)
    say(f"training {steps} steps with an evaluation before every second one")
    in_loop = dense_cost(dense, data)
    say(f"training {checkpoints} steps with a checkpoint after each")
    later = checkpoint_cost(with_sets(plan, checkpoints, evaluate_every=checkpoints, grid=1), data, say)
    return {"config": plan.name, "dense": in_loop, "checkpoints": later}


def with_sets(plan: RunPlan, steps: int, evaluate_every: int, grid: int | None = None) -> RunPlan:
    """The first phase of `plan`, with one set as large as a batch and the checkpoints asked for."""
    short = shortened(plan, steps, (KIND,), grid)
    name, before = next(iter(plan.spec.evaluation.sets.items()))
    sets = {name: dataclasses.replace(before, sequences=plan.spec.batch.sequences, at="grid")}
    every = Duration(steps=evaluate_every)
    phase = short.spec.phases[short.spec.order[0]]
    phase = dataclasses.replace(phase, evaluate=GridSpec(dense=0, geometric=0, every=every))
    spec = dataclasses.replace(
        short.spec,
        evaluation=dataclasses.replace(short.spec.evaluation, sets=sets),
        phases={short.spec.order[0]: phase},
    )
    return resolve(spec)


def trained(plan: RunPlan, data: Data, workdir: Path) -> None:
    """Train `plan` in `workdir`, in silence."""
    prepare_workdir(workdir)
    claim(workdir, plan, 0)
    with open(os.devnull, "w") as nowhere:
        train(plan, data, workdir, Console(file=nowhere))


def dense_cost(plan: RunPlan, data: Data) -> dict[str, Any]:
    """Time from update to update, where an evaluation lies between and where none does, in the trainer's own loop."""
    with tempfile.TemporaryDirectory() as folder:
        with Others() as others:
            trained(plan, data, Path(folder))
        at = read(Path(folder))
    # Written after each update is done; the evaluation of step t lies between updates t and t + 1 (counted from 1).
    between = {t: Step(at[t + 1] - at[t], others.share(at[t], at[t + 1])) for t in at if t + 1 in at}
    both = {
        name: counted([s for t, s in between.items() if plan.evaluates_at(t) == evaluated])
        for name, evaluated in (("with", True), ("without", False))
    }
    with_s, without_s = (float(np.median([s.seconds for s in both[k]])) for k in ("with", "without"))
    evaluated = next(iter(plan.spec.evaluation.sets.values())).sequences * plan.spec.batch.length
    return dense_figures(with_s, without_s, evaluated, plan.phases[0].tokens_per_step) | {
        "counted": {k: len(v) for k, v in both.items()},
        "contended": sum(s.contended for s in between.values()),
        "all_contended": any(s.contended for v in both.values() for s in v),
    }


def dense_figures(with_s: float, without_s: float, evaluated: int, trained_on: int) -> dict[str, Any]:
    """What an evaluation of E tokens cost beside E / (3 B) of an update on B; `over_model` is to be 1.2 at most."""
    model_s = without_s * evaluated / (3 * trained_on)
    return {
        "with_s": with_s,
        "without_s": without_s,
        "cost_s": with_s - without_s,
        "model_s": model_s,
        "over_model": (with_s - without_s) / model_s,
        "evaluated_tokens": evaluated,
        "tokens_per_step": trained_on,
    }


def checkpoint_cost(plan: RunPlan, data: Data, say: Callable[[str], None]) -> dict[str, Any]:
    """Time of each checkpoint in `cpt.evaluate`, beside restoring and scoring one after the other and nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        workdir, at = Path(folder), []
        trained(plan, data, workdir)
        say("evaluating the checkpoints")
        begun = time.monotonic()
        done = evaluate_run(
            workdir,
            partial(_not_in_loop, plan),
            None,
            None,
            False,
            say,
            progress=lambda *_: at.append(time.monotonic()),
        )
        each_s = (at[-1] - at[0]) / max(len(at) - 1, 1)
        alone = one_by_one(plan, data, workdir)
    alone_s = float(np.median([sum(pair) for pair in alone]))
    return {
        "checkpoints": done.checkpoints,
        "each_s": each_s,
        "first_s": at[0] - begun,
        "alone_s": alone_s,
        "alone_restore_s": float(np.median([pair[0] for pair in alone])),
        "alone_forward_s": float(np.median([pair[1] for pair in alone])),
        "over_alone": each_s / alone_s,
    }


def _not_in_loop(plan: RunPlan, steps: list[int]) -> list[int]:
    return [step for step in steps if not plan.evaluates_at(step)]


def one_by_one(plan: RunPlan, data: Data, workdir: Path) -> list[tuple[float, float]]:
    """Seconds of restoring and of the forward pass of a few checkpoints, with nothing at the same time."""
    machine = make_machine(plan)
    evaluation = build_evaluation(plan, data, machine.model, NamedSharding(machine.mesh, BATCH))
    out = []
    for saved in Checkpoints(checkpoints_of(workdir)).finished(("grid",))[: ALONE + 1]:
        begun = time.monotonic()
        params = jax.block_until_ready(restore(saved, machine.abstract, params_only=True)[0].params)
        restored = time.monotonic()
        jax.device_get(evaluation(params, ("grid",)))
        out.append((restored - begun, time.monotonic() - restored))
    return out[1:]  # the first one compiles
