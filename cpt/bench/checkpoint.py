"""What checkpoints cost a run: the updates while one is written, beside those before the next one."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
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

EVERY = 20  # updates from one checkpoint to the next, at least
AFTER = 2  # updates that still count as those of a checkpoint, when it is written
QUIET = 10  # updates that follow those, to compare with


@dataclass(frozen=True)
class Stretch:
    """A checkpoint and the updates up to the next one.

    Attributes:
      blocked_s: until the first update could go on.
      seconds, work: of each update, by the clock and on the processor; the first has what came before it.
      during: how many of the first are the checkpoint's. So is the last one: it is waited for before the next
        checkpoint, and no other one follows it meanwhile.
    """

    blocked_s: float
    seconds: list[float]
    work: list[float]
    during: int

    def cost(self, of: list[float]) -> float:
        """What the checkpoint's updates took beyond as many of the others, between which nothing was written."""
        return sum(of[: self.during]) + of[-1] - (self.during + 1) * float(np.mean(of[self.during : -1]))


def bench_checkpoint(plan: RunPlan, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """What a full checkpoint every `EVERY` updates adds to their seconds, and to their work.

    What the loop does for a checkpoint is done here too: wait for the update in flight, write the ledger, save. What is
    written in the background while the updates go on is in the figure, since it takes their cores.

    Args:
      plan: a run; only its first phase is trained.
      rounds: checkpoints; the median is given.
    """
    plan = shortened(plan, 10**6)
    data = opened(plan, say)
    mix = check_data(plan, data)
    ledger = Ledger(mix, flops_per_token(plan.spec.model, plan.spec.batch.length), 0)
    updates = Updates(plan, data, mix)
    updates.run(EVERY)  # compiles
    with tempfile.TemporaryDirectory() as folder, undisturbed():
        checkpoints = Checkpoints(folder, plan.spec.checkpoints)

        def save() -> None:
            (Path(folder) / "ledger.json").write_text(json.dumps(ledger.to_json(), indent=1))
            checkpoints.save("rolling", updates.step, updates.state, {"ledger": ledger.to_json()})

        stretch(updates, checkpoints, save)  # compiles as well
        done = [stretch(updates, checkpoints, save) for _ in range(rounds)]
        checkpoints.close()
        size = bytes_of(checkpoints.finished()[0].path)
    step_s, step_cpu = (float(np.median([t for s in done for t in getattr(s, k)[s.during : -1]])) for k in FIELDS)
    cost_s, cost_cpu = (float(np.median([s.cost(getattr(s, k)) for s in done])) for k in FIELDS)
    return {
        "config": plan.name,
        "every_steps": EVERY,
        "checkpoint_bytes": size,
        "step_ms": 1e3 * step_s,
        "blocked_ms": 1e3 * float(np.median([s.blocked_s for s in done])),
        "cost_ms": 1e3 * cost_s,
        "share": cost_s / (EVERY * step_s),
        "cpu_ms": 1e3 * cost_cpu,
        "cpu_share": cost_cpu / (EVERY * step_cpu),
        "rounds": [asdict(s) for s in done],
    }


FIELDS = ("seconds", "work")


def stretch(updates: Updates, checkpoints: Checkpoints, save: Callable[[], None]) -> Stretch:
    """Save, and train until the next checkpoint."""
    at, worked = [time.monotonic()], [time.process_time()]
    save()
    blocked_s = time.monotonic() - at[0]
    during, over = 0, False
    while not over:
        if checkpoints.writing:
            during = len(at) + AFTER
        over = len(at) > max(EVERY, during + QUIET)
        # The result is that of the update before, which makes the last one one that nothing follows.
        if (updates.last() if over else updates.one()) is not None:
            at.append(time.monotonic())
            worked.append(time.process_time())
    return Stretch(blocked_s, np.diff(at).tolist(), np.diff(worked).tolist(), during)


def show(result: dict[str, Any], say: Callable[[str], None]) -> None:
    """Say the figures of `bench_checkpoint`."""
    say(
        f"a checkpoint ({result['checkpoint_bytes'] / 1e6:.1f} MB) every {result['every_steps']} updates of "
        f"{result['step_ms']:.0f} ms costs {100 * result['share']:.2f} % of their time ({result['cost_ms']:.0f} ms, "
        f"{result['blocked_ms']:.0f} ms of waiting) and {100 * result['cpu_share']:.2f} % of their work on the "
        f"processor ({result['cpu_ms']:.0f} ms)"
    )
