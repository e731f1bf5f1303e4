"""What checkpoints cost a run: stretches of updates that begin with one, in turn with stretches that do not."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cpt.bench.updates import Updates, opened, shortened
from cpt.data.ledger import Ledger
from cpt.models.spec import flops_per_token
from cpt.plan import RunPlan
from cpt.training.checkpoint import Checkpoints
from cpt.training.feed import check_data
from cpt.training.precedence import undisturbed
from cpt.training.preservation import bytes_of

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
    data = opened(plan, say)
    mix = check_data(plan, data)
    ledger = Ledger(mix, flops_per_token(plan.spec.model, plan.spec.batch.length), 0)
    updates = Updates(plan, data, mix)
    updates.run(EVERY)  # compiles
    timed: dict[bool, list[float]] = {True: [], False: []}
    worked: dict[bool, list[float]] = {True: [], False: []}
    blocked = []
    with tempfile.TemporaryDirectory() as folder, undisturbed():
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
            checkpoints.wait()  # as the next save would
            timed[saving].append(time.monotonic() - begun)
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
