"""Evaluating checkpoints of a run after the fact: only what is missing, the next one restored while one is evaluated.

The sets of the run's own plan go through the loop's own compiled programs, whichever of them are asked for, so a row of
a checkpoint equals the row that the loop wrote at that step bit for bit (on the same devices).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding

from cpt.config import EvaluationSpec, RunSpec
from cpt.data.preparing import open_sources
from cpt.errors import ConfigError, DataError, RunError, nearest
from cpt.evaluators.rows import read_run, write_atomic
from cpt.models import base
from cpt.optimizers import building as optimizers
from cpt.plan import RunPlan
from cpt.sections import to_dict
from cpt.training.checkpoint import Checkpoints, DamagedCheckpoint, Saved, restore
from cpt.training.evaluation import Evaluation, build_evaluation
from cpt.training.feed import Data, check_data, decided_mix, host_batches
from cpt.training.logs import JsonLines, mend
from cpt.training.loop import abstract_state, params_at
from cpt.training.merging import KINDS
from cpt.training.recorder import IN_LOOP, probe_values
from cpt.training.sharding import BATCH, make_mesh
from cpt.training.state import State
from cpt.training.workdir import lock, stored_plan

Say = Callable[[str], None]


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


def evaluate_run(
    workdir: Path,
    wanted: Callable[[list[int]], list[int]],
    names: Sequence[str] | None,
    added: RunSpec | None,
    again: bool,
    say: Say,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Done:
    """Evaluate checkpoints of the run in `workdir`; its `eval.jsonl` and `probes.jsonl` get the rows they lack.

    Args:
      wanted: picks steps from those that have a checkpoint.
      names: sets and probes; None for all.
      added: another recipe whose sets, probes and sources are evaluated as well.
      again: also what the loop evaluated at these steps, and compare.
      say, progress: get lines, and checkpoints done and all of them.

    Raises:
      RunError: no run there, no checkpoint, another process evaluates there.
      ConfigError: no such set or probe, one that the run has already and means otherwise.
      DataError: the run's stores cannot be read.
    """
    if (stored := stored_plan(workdir)) is None:
        raise RunError(f"{workdir}: no plan.json in it; give the directory of a run")
    plan = with_added(stored[0], added)
    names = chosen(plan, names)
    with lock(workdir, say, ".evaluating", "evaluates"):
        checkpoints = Checkpoints(workdir / "checkpoints")
        by_step = {s.step: s for s in reversed(checkpoints.finished(KINDS))}
        if not by_step:
            raise RunError(f"{workdir}: has no finished checkpoint to evaluate")
        missing = Missing(workdir, names, again)
        todo = [by_step[s] for s in wanted(sorted(by_step)) if missing.at(s)]
        done, started = Done(), time.monotonic()
        if not todo:
            return done
        mesh = make_mesh(plan.spec.mesh, plan.spec.batch.sequences // plan.spec.batch.accumulate)
        abstract = abstract_state(base.build(plan.spec.model), optimizers.build(plan), mesh)
        evaluation = _evaluation(plan, workdir, NamedSharding(mesh, BATCH), checkpoints, abstract, say)
        _note_origin(workdir, plan, stored[0], evaluation)
        writer = _Writer(workdir, plan, evaluation, missing, done)
        for saved, params in _one_ahead(todo, abstract, done, say):
            begun = time.monotonic()
            writer.write(saved, params)
            done.forward_s += time.monotonic() - begun
            done.checkpoints += 1
            progress(done.checkpoints, len(todo))
        writer.close()
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


def chosen(plan: RunPlan, names: Sequence[str] | None) -> list[str]:
    """Names of sets and probes, all of them for None; ConfigError for one that there is not."""
    known = [*plan.spec.evaluation.sets, *plan.spec.evaluation.probes]
    for name in names or ():
        if name not in known:
            raise ConfigError(f"--sets={name}: no such set or probe{nearest(name, known)}  (there are: {known})")
    if not known:
        raise ConfigError("the run has no evaluation sets; give a recipe that has some with --config")
    return list(known if names is None else names)


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


def _evaluation(
    plan: RunPlan, workdir: Path, batch: NamedSharding, checkpoints: Checkpoints, abstract: State, say: Say
) -> Evaluation:
    """The loop's evaluation, on its data opened anew."""
    spec = plan.spec
    sources, tokenizer = open_sources(spec.sources, spec.tokenizer, Path(spec.stores), say)
    data = Data(sources, tokenizer)

    def batch_of(step: int) -> dict[str, Any]:
        mix = decided_mix(plan, data, check_data(plan, data), workdir, plan.total_steps)
        return host_batches(plan, data, mix)[step]

    restored = lambda step: params_at(checkpoints, step, abstract)  # noqa: E731
    return build_evaluation(plan, data, base.build(spec.model), batch, batch_of, restored)


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


class _Writer:
    """Appends the rows of one checkpoint after the other, so that whoever kills it loses one."""

    def __init__(self, workdir: Path, plan: RunPlan, evaluation: Evaluation, missing: Missing, done: Done):
        self.plan, self.evaluation, self.missing, self.done = plan, evaluation, missing, done
        files = [workdir / name for name in ("eval_sequences.jsonl", "eval.jsonl", "probes.jsonl")]
        for file in files:
            mend(file)
        self.sequences, self.evals, self.probes = map(JsonLines, files)

    def write(self, saved: Saved, params: Any) -> None:
        step, due, clock = saved.step, self.missing.at(saved.step), self.plan.clock(saved.step)
        at = {"step": step, "tokens": clock.tokens, "phase": clock.phase}
        sets, probes = self.plan.spec.evaluation.sets, self.plan.spec.evaluation.probes
        # A program is of all its sets, as in the loop, even where a part of their rows is there: that gives its bits.
        kinds = [kind for kind in self.evaluation.losses if any(n in sets and sets[n].at == kind for n in due)]
        for row, sums in self.evaluation.rows(jax.device_get(self.evaluation(params, kinds))):
            if row["set"] in due:
                row = {**at, **row, "checkpoint": str(saved)}
                self.sequences.write({"step": step, **sums, "checkpoint": str(saved)})
                self.evals.write(row)
                self.done.rows += 1
                self._compare(row)
        for name in (n for n in due if n in probes):
            values = probe_values(name, jax.device_get(self.evaluation.probe(name, params, step)))
            self.probes.write({**at, "probe": name, "values": values, "checkpoint": str(saved)})
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


def _note_origin(workdir: Path, plan: RunPlan, own: RunPlan, evaluation: Evaluation) -> None:
    """Add the sets to `eval_sets.json`; one whose rows are others than before would not be comparable with them.

    Raises:
      DataError: a set of the run has other rows now.
    """
    path = workdir / "eval_sets.json"
    before = json.loads(path.read_text()) if path.is_file() else {}
    now = evaluation.origin()
    for name, was in before.items():
        if name in now and any(was[k] != now[name][k] for k in ("rows", "documents")):
            raise DataError(f"evaluation.sets.{name}: its rows are no longer those of the run; bring its store back")
    for name in now:
        if name not in own.spec.evaluation.sets:
            spec = plan.spec.evaluation.sets[name]
            now[name] |= {**to_dict(spec), "learned_in": own.learned_in(spec.source)}
    write_atomic(path, json.dumps({**before, **now}))
