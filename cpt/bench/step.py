"""The cost of one update: our trainer, its own update with nothing around it, and a plain jitted loop.

They take turns of a few updates within one run of the trainer, so that whatever else the machine does meets all three.
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from cpt.bench.contention import Others
from cpt.bench.facts import matmul_rate, peak_memory, stated_peak
from cpt.bench.stamps import KIND, calling, read
from cpt.bench.timing import FEWEST_QUIET, Step, figures, over_rounds, rates
from cpt.bench.updates import Updates, opened, shortened
from cpt.data.loader import PACE, Batches, read_ahead
from cpt.models import base
from cpt.models.spec import flops_per_token
from cpt.objectives.linear_cross_entropy import linear_cross_entropy
from cpt.optimizers.adamw import adamw
from cpt.plan import RunPlan
from cpt.training.accounting import Account
from cpt.training.feed import Data, check_data, host_batches
from cpt.training.loop import train
from cpt.training.workdir import claim, prepare_workdir

WARM_UP = 5  # updates at the start of each round that are not looked at (compilation, caches)
STRETCH = 10  # updates in a turn that are looked at
LEAD_IN = 2  # and those before them, until the next update is always on its way again


@dataclass(frozen=True)
class Loop:
    """One of the loops that are timed beside the trainer.

    Attributes:
      call: dispatches an update on a batch; gives the result of the one before it, None if there was none.
      last: waits for the last one.
    """

    call: Callable[[dict[str, np.ndarray]], Any]
    last: Callable[[], Any]


@dataclass
class Round:
    """What a run of the trainer showed.

    Attributes:
      turns: by loop, the steps of each of its turns. Those of the trainer lie between two of each other loop.
      stall: of the time of the trainer's steps, the share in which it waited for data.
      buckets: seconds of its run by bucket and, as `wall`, by a clock of its own; without the turns of others.
    """

    turns: dict[str, list[list[Step]]]
    stall: float
    buckets: dict[str, float]

    def ratios(self, name: str) -> list[float]:
        """Per turn of the trainer, its time over that of another loop in the turns before and after it.

        So a machine that becomes slower or faster meanwhile is in both. Of a turn the mean counts: what is done once in
        several updates (batches are read and rows written several at a time) is in no single one.
        """
        others = [_mean(turn) for turn in self.turns[name]]
        mine = [_mean(turn) for turn in self.turns["trainer"]]
        return [2 * m / (a + b) for m, (a, b) in zip(mine, itertools.pairwise(others), strict=True)]


def bench_step(plan: RunPlan, steps: int, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Step time of the trainer, of the bare update and of the plain loop.

    The trainer trains once alone, which shows what it waits for data, its buckets and its memory, and then in turn with
    the others. In the turns of others its loader may go on with what it is reading. Points for TensorBoard are written
    twice a minute, which is in no turn.

    Args:
      plan: a run; only its first phase is trained, without evaluations and checkpoints.
      steps: updates per round and loop.
      rounds: runs of the trainer with others; the ratio is over the turns of all of them.
    """
    turn = min(STRETCH, steps)
    turns = max(steps // turn, 1)
    few = shortened(plan, LEAD_IN + turn)
    data = opened(few, say)
    batches = host_batches(few, data, check_data(few, data))
    ahead = read_ahead(batches, update_seconds(few, data, batches))
    # What is read ahead is in no figure: it is read while others compile, and at the end of a run nothing is read.
    first = PACE + ahead + WARM_UP
    plan = shortened(plan, first + turns * (LEAD_IN + turn) + 2 * ahead, (KIND,))
    alone = timed_round(plan, data, {}, LEAD_IN + turn, turns, first)
    peak_bytes = peak_memory()
    batches = [batches[t] for t in range(LEAD_IN + turn)]
    done, matmuls = [], []
    for i in range(rounds):
        # Anew in each round, as the trainer is: where arrays come to lie in memory decides over 4 % of a loop's time.
        loops = {"bare": bare_loop(plan, data), "plain": plain_loop(plan)}
        for loop in loops.values():  # compiles, and warms the caches
            timed_turn(loop, batches)
        done.append(timed_round(plan, data, loops, LEAD_IN + turn, turns, first, batches))
        matmuls.append(matmul_rate(plan.spec.model.compute_dtype))
        said = ", ".join(f"trainer/{name} {over_rounds([done[-1].ratios(name)])[0]:.3f}" for name in loops)
        say(f"round {i + 1}/{rounds}: {said}")
    tokens, matmul = plan.phases[0].tokens_per_step, max(matmuls) * jax.device_count()
    palm, causal = (tokens * flops_per_token(plan.spec.model, plan.spec.batch.length, a) for a in ("palm", "causal"))
    peak = stated_peak(jax.devices()[0].device_kind)
    peak = peak and peak * jax.device_count()
    loops_said = {}
    for name in done[0].turns:
        said = figures([step for r in done for steps in r.turns[name] for step in steps])
        loops_said[name] = said | rates(said["median_s"], tokens, palm, causal, peak, matmul)
    ratios = {name: [r.ratios(name) for r in done] for name in done[0].turns if name != "trainer"}
    over = {name: over_rounds(of) for name, of in ratios.items()}
    return {
        "config": plan.name,
        "steps": turns * turn,
        "turn": turn,
        "flops_per_step": {"palm": palm, "causal": causal},
        "matmul_gflops_per_second": matmul / 1e9,
        "stated_peak_gflops_per_second": peak and peak / 1e9,
        "ratio": {name: ratio for name, (ratio, _) in over.items()},
        "ratio_ci95": {name: interval for name, (_, interval) in over.items()},
        "ratio_of_all": {name: float(np.mean(of)) for name, of in ratios.items()},
        "ratios": ratios,
        "data_stall": alone.stall,
        "buckets": alone.buckets,
        "peak_memory_bytes": peak_bytes,
        **loops_said,
    }


def update_seconds(plan: RunPlan, data: Data, batches: Batches) -> float:
    """Of the bare update, roughly."""
    loop = bare_loop(plan, data)
    return float(np.median([end - begin for begin, end in timed_turn(loop, list(batches))[1:]]))


def _mean(steps: list[Step]) -> float:
    quiet = [s.seconds for s in steps if not s.contended]
    return float(np.mean(quiet if len(quiet) >= FEWEST_QUIET else [s.seconds for s in steps]))


def timed_round(
    plan: RunPlan,
    data: Data,
    loops: dict[str, Loop],
    length: int,
    turns: int,
    first: int,
    batches: list[dict[str, np.ndarray]] | None = None,
) -> Round:
    """One run of the trainer, from its own metrics (wall time between results, host work included), with pauses in
    which other loops take their turns.

    Args:
      loops: the others; none for a run without pauses.
      length: of a turn, in updates; the first `LEAD_IN` are not looked at.
      turns: of the trainer; the others have one more.
      first: update after which they begin.
      batches: of a turn of the others.
    """
    stood_s = 0.0
    spans: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in loops}

    def others_take_their_turn(update: int) -> None:
        nonlocal stood_s
        if not loops or (update - first) % length or not 0 <= (update - first) // length <= turns:
            return
        began = time.monotonic()
        for name in list(loops)[:: 1 if len(spans["bare"]) % 2 == 0 else -1]:
            spans[name].append(timed_turn(loops[name], batches)[LEAD_IN:])
        stood_s += time.monotonic() - began

    began, clock = time.perf_counter(), lambda: time.monotonic() - stood_s
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        workdir = Path(folder)
        with Others() as others, calling(others_take_their_turn), Account(clock).watching() as account:
            prepare_workdir(workdir)
            claim(workdir, plan, 0)
            train(plan, data, workdir, Console(file=nowhere), account)
            buckets = account.seconds() | {"wall": time.perf_counter() - began - stood_s}
        rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        at = read(workdir)
    mine = [rows[first + i * length :][LEAD_IN:length] for i in range(turns)]
    spans["trainer"] = [[(at[r["step"]] - r["step_s"], at[r["step"]]) for r in turn] for turn in mine]
    steps = {
        name: [[Step(end - begin, others.share(begin, end)) for begin, end in turn] for turn in all_turns]
        for name, all_turns in spans.items()
    }
    looked_at = [r for turn in mine for r in turn]
    stall = sum(r["data_wait_s"] for r in looked_at) / sum(r["step_s"] for r in looked_at)
    return Round(steps, stall, buckets)


def timed_turn(loop: Loop, batches: list[dict[str, np.ndarray]]) -> list[tuple[float, float]]:
    """When each of some updates began and ended; one begins when the one before it ends."""
    ends = [time.monotonic()]
    for batch in batches:
        if loop.call(batch) is not None:
            ends.append(time.monotonic())
    loop.last()
    ends.append(time.monotonic())
    return list(itertools.pairwise(ends))


def bare_loop(plan: RunPlan, data: Data) -> Loop:
    """The trainer's own compiled update, on batches read beforehand, with nothing around it."""
    updates = Updates(plan, data)
    return Loop(updates.one, updates.last)


def plain_loop(plan: RunPlan) -> Loop:
    """A jitted loop that only trains: same model, optimizer and tokens, read beforehand."""
    spec = plan.spec
    model, tx = base.build(spec.model), adamw(spec.optimizer)

    def step(params: Any, opt_state: Any, tokens_BxL: jax.Array, targets_BxL: jax.Array):
        def loss(params: Any) -> jax.Array:
            weights_BxL, tokens = jnp.ones(targets_BxL.shape), targets_BxL.size
            hidden_BxLxD = model.apply(params, tokens_BxL)
            return linear_cross_entropy(hidden_BxLxD, model.head(params), targets_BxL, weights_BxL, tokens)[0]

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, jax.tree.map(lambda u: -1e-3 * u, updates)), opt_state, value

    step = jax.jit(step, donate_argnums=(0, 1))
    params = model.init(jax.random.key(0))
    now = {"params": params, "opt_state": tx.init(params), "before": None}

    def one(batch: dict[str, np.ndarray]) -> Any:
        with jax.transfer_guard("allow"):  # it is called from within the trainer, which forbids what nobody asked for
            params, opt_state, value = step(now["params"], now["opt_state"], batch["tokens_BxL"], batch["targets_BxL"])
        before = now["before"]
        now.update(params=params, opt_state=opt_state, before=value)
        return None if before is None else float(jax.device_get(before))  # one step late, as any careful loop does

    def last() -> float:
        before, now["before"] = now["before"], None
        return float(jax.device_get(before))

    return Loop(one, last)
