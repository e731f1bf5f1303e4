"""The cost of one update: our trainer, its own update with nothing around it, and a plain jitted loop, in turn."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from cpt.bench.contention import Others
from cpt.bench.facts import matmul_rate, peak_memory, stated_peak
from cpt.bench.stamps import KIND, read
from cpt.bench.timing import Step, counted, figures, rates
from cpt.bench.updates import Updates, opened, shortened
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


def bench_step(plan: RunPlan, steps: int, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Median step time of the trainer, of the bare update and of the plain loop.

    Args:
      plan: a run; only its first phase is trained, without evaluations.
      steps: updates per round and loop.
      rounds: how often all are timed, one after the other; the ratio is taken per round.
    """
    plan = shortened(plan, steps + WARM_UP, (KIND,))
    data = opened(plan, say)
    loops: dict[str, Callable[[RunPlan, Data], list[Step]]] = {"bare": bare_steps, "plain": plain_steps}
    timed: dict[str, list[Step]] = {"trainer": [], "bare": [], "plain": []}
    ratios: dict[str, list[float]] = {"bare": [], "plain": []}
    matmuls, stalls, buckets = [], [], {}
    for i in range(rounds):
        this = {}
        for name in list(timed)[:: 1 if i % 2 == 0 else -1]:
            if name == "trainer":
                this[name], stall, buckets = trainer_steps(plan, data)
                stalls.append(stall)
            else:
                this[name] = loops[name](plan, data)[WARM_UP:]
            timed[name] += this[name]
        for name, of in ratios.items():
            of.append(_median(this["trainer"]) / _median(this[name]))
        matmuls.append(matmul_rate(plan.spec.model.compute_dtype))
        say(f"round {i + 1}/{rounds}: trainer/bare {ratios['bare'][-1]:.3f}, trainer/plain {ratios['plain'][-1]:.3f}")
    tokens, matmul = plan.phases[0].tokens_per_step, max(matmuls) * jax.device_count()
    palm, causal = (tokens * flops_per_token(plan.spec.model, plan.spec.batch.length, a) for a in ("palm", "causal"))
    peak = stated_peak(jax.devices()[0].device_kind)
    peak = peak and peak * jax.device_count()
    loops_said = {}
    for name, all_steps in timed.items():
        said = figures(all_steps)
        loops_said[name] = said | rates(said["median_s"], tokens, palm, causal, peak, matmul)
    return {
        "config": plan.name,
        "steps": steps,
        "flops_per_step": {"palm": palm, "causal": causal},
        "matmul_gflops_per_second": matmul / 1e9,
        "stated_peak_gflops_per_second": peak and peak / 1e9,
        "ratio": {name: float(np.median(of)) for name, of in ratios.items()},
        "ratios": ratios,
        "data_stall": float(np.median(stalls)),
        "buckets": buckets,
        "peak_memory_bytes": peak_memory(),
        **loops_said,
    }


def _median(steps: list[Step]) -> float:
    return float(np.median([s.seconds for s in counted(steps)]))


def trainer_steps(plan: RunPlan, data: Data) -> tuple[list[Step], float, dict[str, float]]:
    """Updates of our trainer, from its own metrics (wall time between results, host work included).

    Returns:
      The steps after the warm-up; of their time, the share spent waiting for data; seconds of the run by bucket and, as
      `wall`, by a clock of its own.
    """
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        workdir = Path(folder)
        with Others() as others, Account().watching() as account:
            prepare_workdir(workdir)
            claim(workdir, plan, 0)
            train(plan, data, workdir, Console(file=nowhere), account)
            buckets = account.seconds() | {"wall": time.perf_counter() - began}
        rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()][WARM_UP:]
        at = read(workdir)
    steps = [Step(r["step_s"], others.share(at[r["step"]] - r["step_s"], at[r["step"]])) for r in rows]
    return steps, sum(r["data_wait_s"] for r in rows) / sum(r["step_s"] for r in rows), buckets


def bare_steps(plan: RunPlan, data: Data) -> list[Step]:
    """The trainer's own compiled update, on batches read beforehand, with nothing around it."""
    updates = Updates(plan, data)
    batches = [updates.batches[t] for t in range(plan.total_steps)]
    return _timed([lambda b=b: updates.one(b) for b in batches], updates.last)


def plain_steps(plan: RunPlan, data: Data) -> list[Step]:
    """A jitted loop that only trains: same model, optimizer and tokens, read beforehand."""
    spec = plan.spec
    model, tx = base.build(spec.model), adamw(spec.optimizer)
    batches = host_batches(plan, data, check_data(plan, data))
    batches = [(b["tokens_BxL"], b["targets_BxL"]) for b in (batches[t] for t in range(plan.total_steps))]

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

    def one(tokens_BxL: np.ndarray, targets_BxL: np.ndarray) -> Any:
        params, opt_state, value = step(now["params"], now["opt_state"], tokens_BxL, targets_BxL)
        before = now["before"]
        now.update(params=params, opt_state=opt_state, before=value)
        return None if before is None else float(before)  # one step late, as any careful loop does

    return _timed([lambda b=b: one(*b) for b in batches], lambda: float(now["before"]))


def _timed(calls: list[Callable[[], Any]], last: Callable[[], Any]) -> list[Step]:
    """Seconds between results. A call gives the result of the one before it, None the first time; `last` the last."""
    at = []
    with Others() as others:
        done = time.monotonic()
        for call in calls:
            if call() is not None:
                at.append((done, time.monotonic()))
                done = at[-1][1]
        last()
        at.append((done, time.monotonic()))
    return [Step(end - begin, others.share(begin, end)) for begin, end in at]
