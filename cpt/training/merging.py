"""Checkpoint averages: read one at a time, added in float32, written as an ordinary checkpoint of a run of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from cpt.data.preparing import open_sources
from cpt.errors import RunError
from cpt.evaluators.rows import write_atomic
from cpt.models import base
from cpt.optimizers import building as optimizers
from cpt.plan import RunPlan
from cpt.training.checkpoint import Checkpoints, DamagedCheckpoint, Saved, restore
from cpt.training.evaluation import build_evaluation, without_probes
from cpt.training.feed import Data
from cpt.training.logs import JsonLines
from cpt.training.machine import abstract_state
from cpt.training.preservation import checkpoints_of
from cpt.training.sharding import BATCH, run_mesh
from cpt.training.state import State
from cpt.training.workdir import claim, prepare_workdir, stored_plan

KINDS = ("anchor", "rolling", "grid")


def merge(workdir: Path, steps: Sequence[int], weights: np.ndarray, out: Path, evaluate: bool, say: Callable) -> Path:
    """Average checkpoints of the run in `workdir` into `out`, which evaluators and `init.from_run` take as a run.

    Args:
      steps: of the checkpoints, increasing.
      weights: their coefficients, in the same order.
      evaluate: also evaluate the last of them and the average on the run's sets, into `out/eval.jsonl`.
      say: gets a line per checkpoint and set.

    Raises:
      RunError: no run there, a step without a checkpoint, one that is damaged, `out` cannot be written.
    """
    if (stored := stored_plan(workdir)) is None:
        raise RunError(f"{workdir}: no plan.json in it; give the directory of a run")
    plan = stored[0]
    found = find_checkpoints(workdir, steps)
    mesh = run_mesh(plan.spec)
    model = base.build(plan.spec.model)
    abstract = abstract_state(model, optimizers.build(plan), mesh)
    merged, last, meta = average(found, weights, abstract, say)
    prepare_workdir(out)
    claim(out, plan, 0)
    saver = Checkpoints(out / "checkpoints")
    facts = {k: v for k, v in meta.items() if k not in ("digests", "seal", "saved", "kind", "step", "ledger")}
    sources = {"run": str(workdir), "steps": list(steps), "coefficients": weights.tolist()}
    saver.save("grid", steps[-1], State(merged, None), {**facts, "merged": sources}, must=True)
    saver.close()
    write_atomic(out / "merged.json", json.dumps(sources, indent=1))
    if evaluate:
        _evaluate(plan, model, mesh, {f"step {steps[-1]}": last, "merged": merged}, steps[-1], out, say)
    return out / "checkpoints" / "grid" / str(steps[-1])


def find_checkpoints(workdir: Path, steps: Sequence[int]) -> list[Saved]:
    """The checkpoint of each step, of any kind. Raises RunError for a step without one, naming the nearest."""
    by_step = {s.step: s for s in Checkpoints(checkpoints_of(workdir)).finished(KINDS)}
    for step in steps:
        if step not in by_step:
            near = sorted(by_step, key=lambda s: (abs(s - step), s))[:6]
            raise RunError(f"{workdir}: no checkpoint of step {step}; nearest: {', '.join(map(str, near)) or 'none'}")
    return [by_step[step] for step in steps]


def average(
    found: Sequence[Saved], weights: np.ndarray, abstract: State, say: Callable[[str], None]
) -> tuple[Any, Any, dict[str, Any]]:
    """(average, last, meta of the last): parameters in float32; two trees are in memory at a time.

    Raises:
      RunError: a checkpoint is damaged, or of another model.
    """
    add = jax.jit(lambda total, params, c: jax.tree.map(lambda t, p: t + c * p.astype(np.float32), total, params))
    scale = jax.jit(lambda params, c: jax.tree.map(lambda p: c * p.astype(np.float32), params))
    total = None
    for saved, c in zip(found, weights, strict=True):
        try:
            (params, _), meta = restore(saved, abstract, params_only=True)
        except DamagedCheckpoint as e:
            raise RunError(f"{saved.path}: {e}; leave its step out, or bring it back from a copy") from e
        say(f"{saved}: {c:.4f}")
        total = scale(params, np.float32(c)) if total is None else add(total, params, np.float32(c))
    return total, params, meta


def _evaluate(plan: RunPlan, model: Any, mesh: Any, named: dict[str, Any], step: int, out: Path, say: Callable) -> None:
    sources, tokenizer = open_sources(plan.spec.sources, plan.spec.tokenizer, Path(plan.spec.stores), say)
    plan = without_probes(plan)
    asked = build_evaluation(plan, Data(sources, tokenizer), model, NamedSharding(mesh, BATCH))
    if not asked.losses:
        return
    write_atomic(out / "eval_sets.json", json.dumps(asked.origin()))
    rows, sequences = JsonLines(out / "eval.jsonl"), JsonLines(out / "eval_sequences.jsonl")
    clock = plan.clock(step)
    for name, params in named.items():
        for row, sums in asked.rows(jax.device_get(asked(params, asked.losses))):
            say(f"{name}: {row['set']} {row['loss']:.4f} nats per token")
            if name == "merged":
                row = {"step": step, "tokens": clock.tokens, "phase": clock.phase, **row, "checkpoint": "merged"}
                rows.write(row)
                sequences.write({"step": step, **sums, "checkpoint": "merged"})
    rows.close()
    sequences.close()
