"""What checkpoints cost a run: stretches of updates that begin with one, in turn with stretches that do not."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cpt.bench.step import shortened
from cpt.data.ledger import Ledger
from cpt.data.preparing import open_sources
from cpt.models.spec import flops_per_token
from cpt.plan import RunPlan
from cpt.training.checkpoint import Checkpoints
from cpt.training.feed import Data, check_data, host_batches
from cpt.training.machine import make_machine
from cpt.training.preservation import bytes_of
from cpt.training.sharding import host_rows, put_batch
from cpt.training.state import State

EVERY = 20  # updates in a stretch


def bench_checkpoint(plan: RunPlan, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds of `EVERY` updates with a full checkpoint at their start, and without.

    What the loop does for a checkpoint is done here too: wait for the update in flight, write the ledger, save. What is
    written in the background while the updates go on is in the figure, since it takes their cores.

    Args:
      plan: a run; only its first phase is trained.
      rounds: stretches of each kind; the median is given.
    """
    plan = shortened(plan, EVERY * (2 * rounds + 1))
    sources, tokenizer = open_sources(plan.spec.sources, plan.spec.tokenizer, Path(plan.spec.stores), say)
    data = Data(sources, tokenizer)
    mix = check_data(plan, data)
    ledger = Ledger(mix, flops_per_token(plan.spec.model, plan.spec.batch.length), 0)
    updates = _Updates(plan, data, mix)
    updates.run(EVERY)  # compiles
    timed: dict[bool, list[float]] = {True: [], False: []}
    worked: dict[bool, list[float]] = {True: [], False: []}
    blocked = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(folder, plan.spec.checkpoints)
        checkpoints.save("anchor", 0, updates.state, {}, must=True)  # compiles as well
        for i in range(2 * rounds):
            saving = i % 2 == 0
            begun, begun_cpu = time.monotonic(), time.process_time()
            if saving:
                (Path(folder) / "ledger.json").write_text(json.dumps(ledger.to_json(), indent=1))
                checkpoints.save("rolling", updates.step, updates.state, {"ledger": ledger.to_json()})
                blocked.append(time.monotonic() - begun)
            updates.run(EVERY)
            timed[saving].append(time.monotonic() - begun)
            checkpoints.wait()
            worked[saving].append(time.process_time() - begun_cpu)
        checkpoints.close()
        size = bytes_of(checkpoints.finished()[0].path)
    (saving, plain), (saving_cpu, plain_cpu) = (
        [float(np.median(t[k])) for k in (True, False)] for t in (timed, worked)
    )
    return {
        "config": plan.name,
        "every_steps": EVERY,
        "checkpoint_bytes": size,
        "step_ms": 1e3 * plain / EVERY,
        "blocked_ms": 1e3 * float(np.median(blocked)),
        "cost_ms": 1e3 * (saving - plain),
        "share": saving / plain - 1,
        "cpu_ms": 1e3 * (saving_cpu - plain_cpu),
        "cpu_share": saving_cpu / plain_cpu - 1,
        "rounds": {"with": timed[True], "without": timed[False]},
    }


def show(result: dict[str, Any], say: Callable[[str], None]) -> None:
    """Say the figures of `bench_checkpoint`."""
    say(
        f"a checkpoint ({result['checkpoint_bytes'] / 1e6:.1f} MB) every {result['every_steps']} updates of "
        f"{result['step_ms']:.0f} ms costs {100 * result['share']:.2f} % of their time ({result['cost_ms']:.0f} ms, "
        f"{result['blocked_ms']:.0f} ms of waiting) and {100 * result['cpu_share']:.2f} % of their work on the "
        f"processor ({result['cpu_ms']:.0f} ms)"
    )


class _Updates:
    """The trainer's own update on a run's batches, its results fetched one update late."""

    def __init__(self, plan: RunPlan, data: Data, mix: Any):
        self.machine, self.step = make_machine(plan), 0
        self.sequences = plan.spec.batch.sequences
        self.batches = host_batches(plan, data, mix, host_rows(self.machine.mesh, self.sequences))
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.machine.abstract)
        params = jax.jit(self.machine.model.init, out_shardings=shardings.params)(jax.random.key(plan.spec.seed))
        self.state = State(params, jax.jit(self.machine.tx.init, out_shardings=shardings.opt_state)(params))

    def run(self, updates: int) -> None:
        """So many updates; returns when the last is done."""
        before = None
        for _ in range(updates):
            batch = put_batch(self.machine.mesh, self.batches[self.step], self.sequences)
            self.state, sums = self.machine.update(self.state, batch, *self.machine.inputs(self.step, None))
            if before is not None:
                jax.device_get(before)
            before, self.step = sums, self.step + 1
        jax.device_get(before)
