"""The training loop, to be read top to bottom: evaluate, checkpoint, policy, batch, update, record.

Every process of a run goes through it in step; what only one of them may do (print, write, choose a checkpoint) is done
by the first.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding
from rich.console import Console

from cpt.data.ledger import Ledger
from cpt.errors import DataError, RunError
from cpt.models.spec import flops_per_token
from cpt.plan import RunPlan
from cpt.training.accounting import Account
from cpt.training.checkpoint import Checkpoints, DamagedCheckpoint, read_meta
from cpt.training.evaluation import build_evaluation
from cpt.training.faults import reason
from cpt.training.feed import Data, check_data, decided_mix, host_batches, identity, read_batches
from cpt.training.guard import Guard
from cpt.training.initialise import go_back, initial_state, params_at
from cpt.training.machine import make_machine
from cpt.training.maintenance import MaintenanceWatch
from cpt.training.precedence import undisturbed
from cpt.training.preservation import checkpoints_of, run_at
from cpt.training.processes import here
from cpt.training.progress import TrainingProgress
from cpt.training.recorder import Recorder, Unstable
from cpt.training.remote import pusher
from cpt.training.requests import Requests
from cpt.training.sharding import BATCH, host_rows, put_batch
from cpt.training.signals import StopRequest
from cpt.training.snapshots import Snapshots
from cpt.training.watchdog import Watchdog
from cpt.training.workdir import claim, inherit


@dataclass(frozen=True)
class Outcome:
    """How training ended: the step reached, the signal that stopped it (or None)."""

    step: int
    stopped_by: str | None


def train(plan: RunPlan, data: Data, workdir: Path, console: Console, account: Account | None = None) -> Outcome:
    """Train `plan` from wherever `workdir` stands to its end, or until a signal asks to stop.

    Args:
      account: of the time, where the caller has begun one.

    Raises:
      DataError, ConfigError: data, mesh or plan do not fit, found before anything is compiled.
      RunError: a damaged data plan, or updates that stay non-finite; says what is safe on disk.
    """
    spec, account = plan.spec, account or Account()
    mix = check_data(plan, data)
    machine = make_machine(plan).compiling()  # while the state is restored and the first evaluation compiles
    mesh, rows = machine.mesh, host_rows(machine.mesh, spec.batch.sequences)

    # ---- where the run stands ----
    say = lambda line, **style: console.print(line, highlight=False, soft_wrap=True, **style)  # noqa: E731
    # What a run goes back to must not depend on how often it was stopped and saved in between.
    kept = (lambda step: "rolling" in plan.checkpoints_at(step)) if spec.guard.may_go_back else None
    warn = partial(say, style="bold red")
    checkpoints = Checkpoints(checkpoints_of(workdir), spec.checkpoints, warn, kept, pusher(workdir))
    checkpoints.clean()
    state, start, meta = initial_state(machine, data.tokenizer, checkpoints, say)
    trains_on = identity(data, meta)
    guard = Guard(plan, (meta or {}).get("guard"))
    ledger = Ledger(decided_mix(plan, data, mix, workdir, start), flops_per_token(spec.model, spec.batch.length), start)
    evaluation = build_evaluation(
        plan, data, machine.model, NamedSharding(mesh, BATCH),
        batch_of=lambda step: host_batches(plan, data, ledger.mix, rows)[step],
        params_at=lambda step: params_at(plan, checkpoints, step, machine.model, machine.abstract, data.tokenizer),
    )  # fmt: skip
    progress = TrainingProgress(plan, console)
    with stopping_says_what_is_safe(checkpoints, workdir):
        if here().first:
            if spec.init.what == "all" and spec.init.from_run:
                inherit(run_at(spec.init.from_run), workdir, plan, start)
            claim(workdir, plan, start)
        recorder = Recorder(workdir, plan, ledger, evaluation, start, progress, guard, account)
    snapshots = Snapshots(plan, evaluation, recorder, start)
    rest = read_batches(plan, data, ledger, workdir, recorder.losses_at, start, rows)

    @account.to("checkpoint")
    def save(step: int, kinds: tuple[str, ...], last: bool) -> None:
        if plan.checkpoints_at(step) and not last:  # whoever stops the run may not have the time
            with account.to("eval"):
                snapshots.settle()
        recorder.drain()  # a checkpoint must not be newer than the rows on disk
        recorder.write_ledger()
        # While updates fail, the rolling ones of before must not be pushed out: the way back leads through them.
        if guard.in_a_row and not last:
            kinds = tuple(k for k in kinds if k != "rolling")
        facts = {"plan_hash": plan.hash, "tokens": plan.clock(step).tokens, "skipped_in_a_row": guard.in_a_row}
        facts |= {"guard": guard.to_json(), "ledger": ledger.to_json(), **trains_on}
        for kind in kinds:
            if not checkpoints.has(kind, step):
                with jax.transfer_guard("allow"):
                    checkpoints.save(kind, step, state, facts, must=last)
        recorder.resume_clock()

    # ---- the loop ----
    step = start
    batches = keeping(rest, lambda: save(step, ("rolling",), last=True))
    with (
        stopping_says_what_is_safe(checkpoints, workdir),
        StopRequest() as stop,
        MaintenanceWatch(stop.ask),
        Watchdog(spec.guard.stall_s, workdir) as watchdog,
        progress,
        recorder,
        undisturbed(),
        jax.transfer_guard("disallow"),
    ):
        machine.ahead.wait_if_it_measures()
        requests = Requests(stop, checkpoints.due, mesh)
        recorder.heard = requests.heard
        for step in range(start, plan.total_steps + 1):
            watchdog.at(f"step {step}")
            if (spike := guard.due(step)) is not None:
                with recorder.aside():
                    state = go_back(machine, checkpoints, guard, spike, step, state, say)
            with account.to("eval"):
                if nats := evaluation(state.params, plan.sets_at(step)):
                    recorder.evaluated(step, nats)
                snapshots.at(step, state.params, nats)
            for name in plan.probes_at(step):
                recorder.probed(step, name, partial(evaluation.probe, name, state.params, step))
            kinds = plan.checkpoints_at(step) if step > start else ()
            stopping = requests.stopping  # read once: a signal that comes while this step is saved ends the next one
            wanted = stopping is not None or requests.saving or guard.needed_at(step)
            if wanted and step > start and not {"anchor", "rolling"} & set(kinds):
                kinds = (*kinds, "rolling")
            if kinds:
                save(step, kinds, last=stopping is not None or step == plan.total_steps)
                requests.saved(step)
            if stopping or step == plan.total_steps:
                break
            if step in machine.switch:
                # After the checkpoint: what is saved at an edge is the end of the old phase.
                with recorder.aside():
                    state = machine.switch[step](state)
            with account.to("data"):
                read, data_wait_s = next(batches)
            with account.to("step"):
                lr, batch = plan.lr(step), put_batch(mesh, read, spec.batch.sequences) | requests.asked()
                state, sums = machine.dispatch(step, state, batch, lr, guard.limits(step))
            recorder.trained(step, sums, lr, data_wait_s)
        with account.to("eval"):
            snapshots.settle()
        recorder.drain()
        recorder.write_ledger()
        watchdog.at("the last checkpoint")
        with account.to("checkpoint"):
            checkpoints.close()
    return Outcome(step, stopping)


def keeping(
    batches: Iterator[dict[str, np.ndarray]], save: Callable[[], None]
) -> Iterator[tuple[dict[str, np.ndarray], float]]:
    """The batches, and the seconds that each was waited for.

    Where one cannot be read any more (a disk went away), what was trained is saved before the error.
    """
    try:
        begun = time.monotonic()
        for batch in batches:
            yield batch, time.monotonic() - begun
            begun = time.monotonic()
    except DataError:
        if here().count == 1:  # the other processes are already waiting in the update
            with contextlib.suppress(RunError):  # that it could not be saved was said; why reading failed is not yet
                save()
        raise


@contextlib.contextmanager
def stopping_says_what_is_safe(checkpoints: Checkpoints, workdir: Path) -> Iterator[None]:
    """Turn what can stop a run half-way into one line that says what is on disk and how to go on."""
    # Of several processes this one may be alone with its error: the others do not come to finish a checkpoint with it.
    wait = checkpoints.wait if here().count == 1 else lambda: None
    try:
        yield
    except Unstable as e:
        wait()
        raise RunError(f"{e.what}; {last_good(checkpoints, workdir)}") from e
    except DataError as e:
        wait()
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
