"""The training loop, to be read top to bottom: evaluate, checkpoint, policy, batch, update, record."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console

from cpt.data.ledger import Ledger
from cpt.errors import DataError, RunError
from cpt.models import base
from cpt.models.spec import flops_per_token
from cpt.optimizers import building as optimizers
from cpt.optimizers.policy import apply_policy
from cpt.plan import RunPlan
from cpt.training.checkpoint import FULL_KINDS, Checkpoints, DamagedCheckpoint, read_meta, restore
from cpt.training.evaluation import build_evaluation
from cpt.training.faults import reason
from cpt.training.feed import Data, check_data, decided_mix, host_batches, identity, read_batches
from cpt.training.initialise import checkpoint_of, initial_state
from cpt.training.progress import TrainingProgress
from cpt.training.recorder import NonFinite, Recorder
from cpt.training.sharding import BATCH, make_mesh, optimizer_shardings, parameter_shardings, put_batch
from cpt.training.signals import StopRequest
from cpt.training.state import State
from cpt.training.step import make_train_step
from cpt.training.workdir import claim, inherit


@dataclass(frozen=True)
class Outcome:
    """How training ended: the step reached, the signal that stopped it (or None), seconds by activity."""

    step: int
    stopped_by: str | None
    busy_s: dict[str, float]


def train(plan: RunPlan, data: Data, workdir: Path, console: Console) -> Outcome:
    """Train `plan` from wherever `workdir` stands to its end, or until a signal asks to stop.

    Raises:
      DataError, ConfigError: data, mesh or plan do not fit, found before anything is compiled.
      RunError: a damaged data plan, or updates that stay non-finite; says what is safe on disk.
    """
    spec = plan.spec
    mix = check_data(plan, data)

    # ---- the devices: model, optimizer, shardings -------------------------------------------------------------------
    mesh = make_mesh(spec.mesh, spec.batch.sequences // spec.batch.accumulate)
    model = base.build(spec.model)
    tx = optimizers.build(plan)
    abstract = abstract_state(model, tx, mesh)
    replicated = NamedSharding(mesh, PartitionSpec())
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    update = jax.jit(
        make_train_step(model, tx, spec.batch.accumulate, mesh.shape["data"] * mesh.shape["fsdp"]),
        donate_argnums=0,
        out_shardings=(shardings, replicated),
    )
    switch = phase_switches(plan, tx, shardings)

    # ---- where the run stands ----
    checkpoints = Checkpoints(workdir / "checkpoints", spec.checkpoints.keep_rolling)
    checkpoints.clean()
    say = lambda line: console.print(line, highlight=False, soft_wrap=True)  # noqa: E731
    state, start, meta = initial_state(spec, data.tokenizer, model, tx, abstract, checkpoints, say)
    trains_on = identity(data, meta)
    ledger = Ledger(decided_mix(plan, data, mix, workdir, start), flops_per_token(spec.model, spec.batch.length), start)
    evaluation = build_evaluation(
        plan, data, model, NamedSharding(mesh, BATCH),
        batch_of=lambda step: host_batches(plan, data, ledger.mix)[step],
        params_at=lambda step: params_at(plan, checkpoints, step, model, abstract),
    )  # fmt: skip
    progress = TrainingProgress(plan, console)
    with stopping_says_what_is_safe(checkpoints, workdir):
        if spec.init.what == "all" and spec.init.from_run:
            inherit(Path(spec.init.from_run), workdir, plan, start)
        claim(workdir, plan, start)
        recorder = Recorder(workdir, plan, ledger, evaluation, start, progress, (meta or {}).get("skipped_in_a_row", 0))
    rest = read_batches(plan, data, ledger, workdir, recorder.losses_at, start)
    columns = max(len(p.columns) for p in plan.phases)

    def save(step: int, kinds: tuple[str, ...], last: bool) -> None:
        recorder.drain()  # a checkpoint must not be newer than the rows on disk
        recorder.write_ledger()
        # While updates fail, the rolling ones of before must not be pushed out: the way back leads through them.
        if recorder.skipped_in_a_row and not last:
            kinds = tuple(k for k in kinds if k != "rolling")
        facts = {
            "plan_hash": plan.hash,
            "tokens": plan.clock(step).tokens,
            "skipped_in_a_row": recorder.skipped_in_a_row,
            "ledger": ledger.to_json(),
            **trains_on,
        }
        for kind in kinds:
            if not checkpoints.has(kind, step):
                with jax.transfer_guard("allow"):
                    checkpoints.save(kind, step, state, facts)
        recorder.resume_clock()

    # ---- the loop ----
    step = start
    batches = keeping(rest, lambda: save(step, ("rolling",), last=True))
    with stopping_says_what_is_safe(checkpoints, workdir), StopRequest() as stop, progress:
        with jax.transfer_guard("disallow"):
            for step in range(start, plan.total_steps + 1):
                if kinds := plan.sets_at(step):
                    recorder.evaluated(step, evaluation(state.params, kinds))
                for name in plan.probes_at(step):
                    recorder.probed(step, name, partial(evaluation.probe, name, state.params, step))
                kinds = plan.checkpoints_at(step) if step > start else ()
                stopping = stop.name  # read once: a signal that comes while this step is saved ends the next one
                if stopping and step > start and not {"anchor", "rolling"} & set(kinds):
                    kinds = (*kinds, "rolling")
                if kinds:
                    save(step, kinds, last=stopping is not None)
                if stopping or step == plan.total_steps:
                    break
                if step in switch:
                    # After the checkpoint: what is saved at an edge is the end of the old phase.
                    with recorder.aside():
                        state = switch[step](state)
                waited = time.monotonic()
                batch = put_batch(mesh, next(batches))
                data_wait_s = time.monotonic() - waited
                lr, multipliers_K = plan.lr(step), multipliers(plan, step, columns)
                given = np.float32(lr), multipliers_K, *hyper_of(plan, step)
                state, sums = update(state, batch, *jax.device_put(given, replicated))
                recorder.trained(step, sums, lr, data_wait_s)
            recorder.drain()
        recorder.write_ledger()
        checkpoints.close()
        recorder.close()
    return Outcome(step, stopping, recorder.busy_s)


def keeping(batches: Iterator[dict[str, np.ndarray]], save: Callable[[], None]) -> Iterator[dict[str, np.ndarray]]:
    """The batches; where one cannot be read any more (a disk went away), what was trained is saved before the error."""
    try:
        yield from batches
    except DataError:
        save()
        raise


@contextlib.contextmanager
def stopping_says_what_is_safe(checkpoints: Checkpoints, workdir: Path) -> Iterator[None]:
    """Turn what can stop a run half-way into one line that says what is on disk and how to go on."""
    try:
        yield
    except NonFinite as e:
        checkpoints.wait()
        raise RunError(f"{e.what}; {last_good(checkpoints, workdir)}") from e
    except DataError as e:
        checkpoints.wait()
        line = str(e).removeprefix(f"{e.room}: ")
        raise DataError(f"{line}; checkpoints: {checkpoints.newest()}; mend it and run the same command again") from e
    except (OSError, RunError) as e:
        cause = e if isinstance(e, OSError) else e.__cause__
        if not isinstance(cause, OSError):
            raise
        raise RunError(
            f"{workdir}: cannot be written ({reason(cause)}); checkpoints: {checkpoints.newest()}; "
            "make room there and run the same command again"
        ) from e


def abstract_state(model: base.Model, tx: Any, mesh: jax.sharding.Mesh) -> State:
    """Shapes, dtypes and shardings of the state on `mesh`; allocates nothing."""
    params = model.abstract()
    param_shardings = parameter_shardings(mesh, model.logical_axes(), params)
    opt_shardings = optimizer_shardings(tx, params, param_shardings, mesh)
    abstract = State(params, jax.eval_shape(tx.init, params))
    with_sharding = lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s)  # noqa: E731
    return jax.tree.map(with_sharding, abstract, State(param_shardings, opt_shardings))


def phase_switches(plan: RunPlan, tx: Any, shardings: State) -> dict[int, Callable[[State], State]]:
    """What the optimizer policy of each phase does to the state, by the step at which the phase begins."""

    def switch(policy: str) -> Callable[[State], State]:
        change = lambda s: s._replace(opt_state=apply_policy(policy, tx, s.params, s.opt_state))  # noqa: E731
        return jax.jit(change, donate_argnums=0, out_shardings=shardings)

    # The first phase finds no optimizer state of before, unless the run brings one along.
    return {
        p.first_step: switch(p.spec.optimizer.policy)
        for p in plan.phases
        if p.index > 0 or plan.spec.init.brings_optimizer
    }


def params_at(plan: RunPlan, checkpoints: Checkpoints, step: int, model: base.Model, abstract: State) -> Any:
    """The parameters that the run had at `step`: from its checkpoints, or at step 0 from where it was initialised.

    Raises:
      RunError: there is no sound checkpoint of that step.
    """
    checkpoints.wait()
    init = plan.spec.init
    if step == 0 and not init.from_run:
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract.params)
        return jax.jit(model.init, out_shardings=shardings)(jax.random.key(plan.spec.seed))
    found = [s for s in checkpoints.finished((*FULL_KINDS, "grid")) if s.step == step]
    if init.from_run and init.what == "all":  # a child's past is its parent's
        parent = Checkpoints(Path(init.from_run) / "checkpoints")
        found += [s for s in parent.finished((*FULL_KINDS, "grid")) if s.step == step]
    elif step == 0:
        found = [checkpoint_of(init)]
    if (saved := next(iter(found), None)) is None:
        raise RunError(f"{checkpoints.directory}: no checkpoint of step {step}, which a probe compares with")
    try:
        return restore(saved, abstract, params_only=True)[0].params
    except DamagedCheckpoint as e:
        raise RunError(f"{saved.path}: {e}; bring it back from a copy") from e


def hyper_of(plan: RunPlan, step: int) -> tuple[dict[str, np.float32], ...]:
    """`({"b2": ..., "weight_decay": ...},)` of update `step`; nothing where no phase changes them."""
    return ({k: np.float32(v) for k, v in plan.hyper(step).items()},) if plan.varies else ()


def multipliers(plan: RunPlan, step: int, columns: int) -> np.ndarray:
    """Loss multiplier of each column at `step`, padded with ones to the run's largest number of columns."""
    phase = plan.phase_at(step)
    out_K = np.ones(columns, np.float32)
    out_K[: len(phase.columns)] = phase.multipliers(step - phase.first_step)
    return out_K


def last_good(checkpoints: Checkpoints, workdir: Path) -> str:
    """Which checkpoint was saved while updates were finite, and how to start from its weights."""
    for saved in checkpoints.finished():
        try:
            good = read_meta(saved).get("skipped_in_a_row", 0) == 0
        except DamagedCheckpoint:
            continue
        if good:
            return (
                f"the last good checkpoint is {saved.path}; lower the learning rate and start from it: "
                f"--workdir=NEW --config.init.from_run={workdir} --config.init.step={saved.step}"
            )
    return "no good checkpoint was saved before; lower the learning rate and start again in another --workdir"
