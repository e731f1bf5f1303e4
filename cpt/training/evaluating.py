"""Evaluating checkpoints of a run after the fact: only what is missing, the next one restored while one is evaluated.

The sets of the run's own plan go through the loop's own compiled programs, whichever of them are asked for, so a row of
a checkpoint equals the row that the loop wrote at that step bit for bit (on the same devices).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from jax.sharding import Mesh, NamedSharding

from cpt.config import EvaluationSpec, MeshSpec, RunSpec
from cpt.data.preparing import open_sources
from cpt.data.tokenizers._base import Tokenizer
from cpt.errors import ConfigError, RunError, nearest
from cpt.models import base
from cpt.optimizers import building as optimizers
from cpt.plan import RunPlan
from cpt.sections import to_dict
from cpt.training.benchmarks import Benchmarks
from cpt.training.checkpoint import Checkpoints, DamagedCheckpoint, Saved, restore
from cpt.training.evaluation import Evaluation, build_evaluation
from cpt.training.evaluation_rows import Done, Missing, Writer
from cpt.training.feed import Data, check_data, decided_mix, host_batches
from cpt.training.initialise import params_at
from cpt.training.machine import abstract_state
from cpt.training.merging import KINDS
from cpt.training.preservation import checkpoints_of
from cpt.training.recorder import note_origin
from cpt.training.sharding import BATCH, run_mesh
from cpt.training.state import State
from cpt.training.workdir import lock, stored_plan

Say = Callable[[str], None]


def evaluate_run(
    workdir: Path,
    wanted: Callable[[list[int]], list[int]],
    names: Sequence[str] | None,
    added: RunSpec | None,
    again: bool,
    say: Say,
    benchmarks: Benchmarks | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Done:
    """Evaluate checkpoints of the run in `workdir`; its `eval.jsonl` and `probes.jsonl` get the rows they lack.

    Args:
      wanted: picks steps from those that have a checkpoint.
      names: sets and probes; None for all, or for none where there are `benchmarks`.
      added: another recipe whose sets, probes and sources are evaluated as well.
      again: also evaluate what the loop did at these steps and compare; that writes nothing.
      benchmarks: tasks of lm-evaluation-harness to run on them.
      say, progress: get lines, and checkpoints done and all of them.

    Raises:
      RunError: no run there, no checkpoint, another process evaluates there.
      ConfigError: no such set or probe, one that the run has already and means otherwise.
      DataError: the run's stores cannot be read.
    """
    if (stored := stored_plan(workdir)) is None:
        raise RunError(f"{workdir}: no plan.json in it; give the directory of a run")
    plan = with_added(stored[0], added)
    names = chosen(plan.spec.evaluation, names, benchmarks)
    with lock(workdir, say, ".evaluating", "evaluates"):
        checkpoints = Checkpoints(checkpoints_of(workdir))
        by_step = {s.step: s for s in reversed(checkpoints.finished(KINDS))}
        if not by_step:
            raise RunError(f"{workdir}: has no finished checkpoint to evaluate")
        missing = Missing(workdir, names, again)
        asked = wanted(sorted(by_step))
        if not asked:
            raise RunError(
                f"--steps: none of the checkpoints is meant; there are {', '.join(map(str, sorted(by_step)))}"
            )
        todo = [by_step[s] for s in asked if missing.at(s) or missing.compared_at(s)]
        done, started = Done(), time.monotonic()
        if not todo:
            return done
        mesh = _mesh(plan, added, say)
        abstract = abstract_state(base.build(plan.spec.model), optimizers.build(plan), mesh)
        batch, model = NamedSharding(mesh, BATCH), base.build(plan.spec.model)
        evaluation, tokenizer = _evaluation(plan, workdir, model, batch, checkpoints, abstract, say)
        note_origin(workdir, _origin_of_added(plan, stored[0], evaluation))
        tasks = None if benchmarks is None else benchmarks.of(model, tokenizer, batch)
        writer = Writer(workdir, plan.spec.evaluation, evaluation, missing, done, tasks)
        for saved, params in _one_ahead(todo, abstract, done, say):
            begun, clock = time.monotonic(), plan.clock(saved.step)
            writer.write({"step": saved.step, "tokens": clock.tokens, "phase": clock.phase}, str(saved), params)
            done.forward_s += time.monotonic() - begun
            done.checkpoints += 1
            progress(done.checkpoints, len(todo))
        done.wall_s = time.monotonic() - started
    return done


def with_added(plan: RunPlan, added: RunSpec | None) -> RunPlan:
    """`plan` with the sources, sets and probes of another recipe beside its own; ConfigError where they clash."""
    if added is None:
        return plan
    spec, merged = plan.spec, {}
    for what, mine, theirs in (
        ("sources", spec.sources, added.sources),
        ("evaluation.sets", spec.evaluation.sets, added.evaluation.sets),
        ("evaluation.probes", spec.evaluation.probes, added.evaluation.probes),
    ):
        for name in theirs:
            if name in mine and mine[name] != theirs[name]:
                raise ConfigError(f"{what}.{name}: the run has another one of this name; give it its own")
        merged[what] = {**mine, **theirs}
    evaluation = EvaluationSpec(merged["evaluation.sets"], spec.evaluation.rows_per_pass, merged["evaluation.probes"])
    return replace(plan, spec=replace(spec, sources=merged["sources"], evaluation=evaluation))


def chosen(spec: EvaluationSpec, names: Sequence[str] | None, benchmarks: Benchmarks | None) -> list[str]:
    """Names of sets, probes and benchmarks that are wanted; ConfigError for one that there is not."""
    known = [*spec.sets, *spec.probes]
    if benchmarks is not None:
        return [*(chosen(spec, names, None) if names else ()), *benchmarks.names]
    for name in names or ():
        if name not in known:
            raise ConfigError(f"--sets={name}: no such set or probe{nearest(name, known)}  (there are: {known})")
    if not known:
        raise ConfigError("there are no evaluation sets; give a recipe that has some with --config")
    return list(known if names is None else names)


def _evaluation(
    plan: RunPlan,
    workdir: Path,
    model: base.Model,
    batch: NamedSharding,
    checkpoints: Checkpoints,
    abstract: State,
    say: Say,
) -> tuple[Evaluation, Tokenizer | None]:
    """The loop's evaluation, on its data opened anew, and the tokenizer."""
    spec = plan.spec
    sources, tokenizer = open_sources(spec.sources, spec.tokenizer, Path(spec.stores), say)
    data = Data(sources, tokenizer)

    def batch_of(step: int) -> dict[str, Any]:
        mix = decided_mix(plan, data, check_data(plan, data), workdir, plan.total_steps)
        return host_batches(plan, data, mix)[step]

    restored = lambda step: params_at(plan, checkpoints, step, model, abstract, tokenizer)  # noqa: E731
    return build_evaluation(plan, data, model, batch, batch_of, restored), tokenizer


def _one_ahead(todo: list[Saved], abstract: Any, done: Done, say: Say) -> Iterator[tuple[Saved, Any]]:
    """Each checkpoint with its parameters; the next one is read meanwhile. A damaged one is named and left out."""

    def read(saved: Saved) -> Any:
        begun = time.monotonic()
        params = restore(saved, abstract, params_only=True)[0].params
        done.restore_s += time.monotonic() - begun
        return params

    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(read, todo[0])
        for i, saved in enumerate(todo):
            this, coming = coming, reader.submit(read, todo[i + 1]) if i + 1 < len(todo) else None
            try:
                params = this.result()
            except DamagedCheckpoint as e:
                done.skipped.append(str(saved))
                say(f"checkpoint {saved} is damaged ({e}); left out")
                continue
            yield saved, params


def _origin_of_added(plan: RunPlan, own: RunPlan, evaluation: Evaluation) -> dict[str, dict[str, Any]]:
    """Where the rows of all sets come from, and of those that the run's plan does not know what they are."""
    origin = evaluation.origin()
    for name in origin:
        if name not in own.spec.evaluation.sets:
            spec = plan.spec.evaluation.sets[name]
            origin[name] |= {**to_dict(spec), "learned_in": own.learned_in(spec.source)}
    return origin


def _mesh(plan: RunPlan, added: RunSpec | None, say: Say) -> Mesh:
    """The mesh of `added`, or the run's; all devices there are where that does not fit them."""
    try:
        return run_mesh(plan.spec if added is None else replace(plan.spec, mesh=added.mesh))
    except ConfigError:
        if added is not None:
            raise
        say("other devices than those of the run: last digits may differ from its own")
        return run_mesh(replace(plan.spec, mesh=MeshSpec()))
