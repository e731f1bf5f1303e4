"""The training loop, to be read top to bottom: evaluate, checkpoint, policy, batch, update, record."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console

from cpt import registry
from cpt.config import RunSpec
from cpt.data.ledger import Ledger
from cpt.data.loader import Batches, start_at
from cpt.data.mix import MixPlan
from cpt.errors import DataError, RunError
from cpt.evaluators.losses import SetLosses, take_set
from cpt.models import base
from cpt.models.spec import flops_per_token
from cpt.optimizers.policy import apply_policy
from cpt.plan import RunPlan
from cpt.training.checkpoint import Checkpoints
from cpt.training.initialise import initial_state
from cpt.training.progress import TrainingProgress
from cpt.training.recorder import NonFinite, Recorder
from cpt.training.sharding import BATCH, make_mesh, optimizer_shardings, parameter_shardings, put_batch
from cpt.training.signals import StopRequest
from cpt.training.state import State
from cpt.training.step import make_train_step


@dataclass(frozen=True)
class Data:
    """The opened data of a run: sources by name (each with `.train`, `.validation`, `.epochs`), and the tokenizer."""

    sources: Mapping[str, Any]
    tokenizer: Any


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
    tx = registry.find("cpt.optimizers", spec.optimizer.kind, "optimizer.kind")(spec.optimizer)
    abstract = abstract_state(model, tx, mesh)
    replicated = NamedSharding(mesh, PartitionSpec())
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    update = jax.jit(
        make_train_step(model, tx, spec.batch.accumulate, mesh.shape["data"] * mesh.shape["fsdp"]),
        donate_argnums=0,
        out_shardings=(shardings, replicated),
    )
    switch = {
        p.first_step: jax.jit(
            lambda s, policy=p.spec.optimizer.policy: s._replace(
                opt_state=apply_policy(policy, tx, s.params, s.opt_state)
            ),
            donate_argnums=0,
            out_shardings=shardings,
        )
        for p in plan.phases[1:]
    }

    # ---- where the run stands ----
    checkpoints = Checkpoints(workdir / "checkpoints", spec.checkpoints.keep_rolling)
    checkpoints.clean()
    say = lambda line: console.print(line, highlight=False, soft_wrap=True)  # noqa: E731
    state, start, meta = initial_state(model, tx, abstract, checkpoints, spec.init, spec.seed, say)
    fingerprints = check_fingerprints(plan, data, meta)
    ledger = Ledger(mix, flops_per_token(spec.model, spec.batch.length), start)
    losses = evaluation(plan, data, model, NamedSharding(mesh, BATCH))
    progress = TrainingProgress(plan, console)
    recorder = Recorder(workdir, plan, ledger, losses, start, progress)
    batches = start_at(host_batches(plan, data, mix), start)
    columns = max(len(p.columns) for p in plan.phases)

    def save(step: int, kinds: tuple[str, ...]) -> None:
        recorder.drain()  # a checkpoint must not be newer than the rows on disk
        recorder.write_ledger()
        facts = {"plan_hash": plan.hash, "tokens": plan.clock(step).tokens, "fingerprints": fingerprints}
        for kind in kinds:
            if not checkpoints.has(kind, step):
                with jax.transfer_guard("allow"):
                    checkpoints.save(kind, step, state, facts | {"ledger": ledger.to_json()})
        recorder.resume_clock()

    # ---- the loop ----
    step = start
    with StopRequest() as stop, progress, jax.transfer_guard("disallow"):
        try:
            for step in range(start, plan.total_steps + 1):
                if losses and plan.evaluates_at(step):
                    recorder.evaluated(step, losses(state.params))
                kinds = plan.checkpoints_at(step) if step > start else ()
                if stop.name and step > start and "anchor" not in kinds:
                    kinds = (*kinds, "rolling") if "rolling" not in kinds else kinds
                if kinds:
                    save(step, kinds)
                if stop.name or step == plan.total_steps:
                    break
                if step in switch:
                    # After the checkpoint: what is saved at an edge is the end of the old phase.
                    state = switch[step](state)
                waited = time.monotonic()
                batch = put_batch(mesh, next(batches))
                data_wait_s = time.monotonic() - waited
                lr, multipliers_K = plan.lr(step), multipliers(plan, step, columns)
                lr_and_weights = jax.device_put((np.float32(lr), multipliers_K), replicated)
                state, sums = update(state, batch, *lr_and_weights)
                recorder.trained(step, sums, lr, data_wait_s)
        except NonFinite as e:
            checkpoints.wait()
            raise RunError(f"{str(e).split(': ', 1)[1]}; {last_good(checkpoints)}") from e
        recorder.drain()
        recorder.write_ledger()
    checkpoints.close()
    recorder.close()
    return Outcome(step, stop.name, recorder.busy_s)


def abstract_state(model: base.Model, tx: Any, mesh: jax.sharding.Mesh) -> State:
    """Shapes, dtypes and shardings of the state on `mesh`; allocates nothing."""
    params = model.abstract()
    param_shardings = parameter_shardings(mesh, model.logical_axes(), params)
    opt_shardings = optimizer_shardings(tx, params, param_shardings, mesh)
    abstract = State(params, jax.eval_shape(tx.init, params))
    with_sharding = lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s)  # noqa: E731
    return jax.tree.map(with_sharding, abstract, State(param_shardings, opt_shardings))


def check_data(plan: RunPlan, data: Data) -> MixPlan:
    """The data plan; raises DataError for a source that runs out or ids that exceed the model's vocabulary."""
    spec = plan.spec
    if data.tokenizer is not None and data.tokenizer.vocab_size > spec.model.vocab_size:
        raise DataError(
            f"tokenizer: its {data.tokenizer.vocab_size} ids exceed model.vocab_size={spec.model.vocab_size}; "
            "raise model.vocab_size"
        )
    for name, source in data.sources.items():
        if (largest := source.train.max_id()) >= spec.model.vocab_size:
            raise DataError(
                f"sources.{name}: token id {largest} exceeds model.vocab_size={spec.model.vocab_size}; "
                "raise model.vocab_size or prepare the store with the model's tokenizer"
            )
    rows = {name: source.train.rows(spec.batch.length) for name, source in data.sources.items()}
    return MixPlan(plan, rows, {name: source.epochs for name, source in data.sources.items()})


def check_fingerprints(plan: RunPlan, data: Data, meta: dict[str, Any] | None) -> dict[str, str]:
    """Fingerprints of the data; raises DataError if a resumed run would go on with other data than it began with."""
    now = {name: source.train.fingerprint for name, source in data.sources.items()}
    for name, before in (meta or {}).get("fingerprints", {}).items():
        if name in now and now[name] != before:
            raise DataError(
                f"sources.{name}: its store changed since this run's checkpoint ({before[:8]} -> {now[name][:8]}); "
                "restore the old store, or start a new run with another --workdir"
            )
    return now


def evaluation(plan: RunPlan, data: Data, model: base.Model, batch: NamedSharding) -> SetLosses | None:
    """The evaluation of the plan's sets, or None if it names none."""
    spec: RunSpec = plan.spec
    if not spec.evaluation.sets:
        return None
    token_bytes = data.tokenizer.token_bytes() if data.tokenizer is not None else None
    sets = [
        take_set(name, data.sources[s.source], s.sequences, spec.batch.length, token_bytes)
        for name, s in spec.evaluation.sets.items()
    ]
    return SetLosses(model, sets, spec.evaluation.rows_per_pass, batch)


def host_batches(plan: RunPlan, data: Data, mix: MixPlan) -> Batches:
    """This host's rows of every batch."""
    if plan.spec.batch.sequences % jax.process_count():
        raise RunError(
            f"batch.sequences: {plan.spec.batch.sequences} rows cannot be split over {jax.process_count()} hosts"
        )
    stores = {name: source.train for name, source in data.sources.items()}
    end = data.tokenizer.eod_id if plan.spec.batch.mask_documents and data.tokenizer is not None else None
    return Batches(mix, stores, jax.process_index(), jax.process_count(), end)


def multipliers(plan: RunPlan, step: int, columns: int) -> np.ndarray:
    """Loss multiplier of each column at `step`, padded with ones to the run's largest number of columns."""
    phase = plan.phase_at(step)
    out_K = np.ones(columns, np.float32)
    out_K[: len(phase.columns)] = phase.multipliers(step - phase.first_step)
    return out_K


def last_good(checkpoints: Checkpoints) -> str:
    """`the last good checkpoint is ...` and how to go on from it."""
    saved = checkpoints.finished()
    if not saved:
        return "no checkpoint was saved before"
    last = saved[0]
    return (
        f"the last good checkpoint is {last.path} (step {last.step}); lower the learning rate from there and run again"
    )
