"""The cost of one update: our trainer against a plain jitted loop, and both against the matmul rate of the machine."""

from __future__ import annotations

import dataclasses
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

from cpt.data.preparing import open_sources
from cpt.models import base
from cpt.models.spec import flops_per_token
from cpt.objectives.cross_entropy import automatic_rows, cross_entropy
from cpt.optimizers.adamw import adamw
from cpt.plan import RunPlan, resolve
from cpt.training.feed import Data, check_data, host_batches
from cpt.training.loop import train
from cpt.training.workdir import claim, prepare_workdir

WARM_UP = 5  # updates at the start of each round that are not counted (compilation, caches)


def bench_step(plan: RunPlan, steps: int, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Median step time of the trainer and of the plain loop.

    Args:
      plan: a run; only its first phase is trained, without evaluations.
      steps: updates per round and loop.
      rounds: how often both are timed, one after the other; the ratio is taken per round.
    """
    plan = shortened(plan, steps + WARM_UP)
    sources, tokenizer = open_sources(plan.spec.sources, plan.spec.tokenizer, Path(plan.spec.stores), say)
    data = Data(sources, tokenizer)
    trainer, plain, ratios, peaks = [], [], [], []
    for i in range(rounds):
        order = (trainer_steps, plain_steps) if i % 2 == 0 else (plain_steps, trainer_steps)
        timed = {f: f(plan, data)[WARM_UP:] for f in order}
        trainer += timed[trainer_steps]
        plain += timed[plain_steps]
        ratios.append(float(np.median(timed[trainer_steps]) / np.median(timed[plain_steps])))
        peaks.append(matmul_peak(plan.spec.model.compute_dtype))
        say(f"round {i + 1}/{rounds}: trainer/plain {ratios[-1]:.3f}")
    flops = flops_per_token(plan.spec.model, plan.spec.batch.length) * plan.phases[0].tokens_per_step
    peak = max(peaks) * jax.device_count()
    return {
        "config": plan.name,
        "jax": jax.__version__,
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "steps": steps,
        "flops_per_step": flops,
        "peak_gflops_per_second": peak / 1e9,
        "ratio": float(np.median(ratios)),
        "ratios": ratios,
        "trainer": _figures(trainer, plan.phases[0].tokens_per_step, flops, peak),
        "plain": _figures(plain, plan.phases[0].tokens_per_step, flops, peak),
    }


def shortened(plan: RunPlan, steps: int) -> RunPlan:
    """The first phase of `plan`, `steps` long, with nothing but training in it."""
    spec, name = plan.spec, plan.spec.order[0]
    phase = dataclasses.replace(spec.phases[name], tokens=None, steps=steps)
    sources = {n: dataclasses.replace(s, epochs=1e9) for n, s in spec.sources.items()}
    evaluation = dataclasses.replace(spec.evaluation, sets={})
    changed = {"order": (name,), "phases": {name: phase}, "sources": sources, "evaluation": evaluation}
    return resolve(dataclasses.replace(spec, **changed))


def trainer_steps(plan: RunPlan, data: Data) -> list[float]:
    """Seconds per update of our trainer, from its own metrics (wall time between results, host work included)."""
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        workdir = Path(folder)
        prepare_workdir(workdir)
        claim(workdir, plan, 0)
        train(plan, data, workdir, Console(file=nowhere))
        return [json.loads(line)["step_s"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def plain_steps(plan: RunPlan, data: Data) -> list[float]:
    """Seconds per update of a jitted loop that only trains: same model, optimizer and tokens, read beforehand."""
    spec = plan.spec
    model, tx = base.build(spec.model), adamw(spec.optimizer)
    batches = host_batches(plan, data, check_data(plan, data))
    batches = [(b["tokens_BxL"], b["targets_BxL"]) for b in (batches[t] for t in range(plan.total_steps))]

    def step(params: Any, opt_state: Any, tokens_BxL: jax.Array, targets_BxL: jax.Array):
        def loss(params: Any) -> jax.Array:
            rows = automatic_rows(tokens_BxL.size, spec.model.vocab_size)
            return cross_entropy(model.apply(params, tokens_BxL), model.head(params), targets_BxL, rows).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, jax.tree.map(lambda u: -1e-3 * u, updates)), opt_state, value

    step = jax.jit(step, donate_argnums=(0, 1))
    params = model.init(jax.random.key(0))
    opt_state, seconds, before = tx.init(params), [], None
    done = time.monotonic()
    for tokens_BxL, targets_BxL in batches:
        params, opt_state, value = step(params, opt_state, tokens_BxL, targets_BxL)
        if before is not None:  # one step late, as any careful loop does
            float(before)
            seconds.append(time.monotonic() - done)
            done = time.monotonic()
        before = value
    float(before)
    return [*seconds, time.monotonic() - done]


def matmul_peak(dtype: str, size: int = 1024, repeats: int = 12) -> float:
    """Best FLOP/s of a square matrix product on one device, in the compute dtype."""
    size = size if jax.default_backend() == "cpu" else 8192
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
    product = jax.jit(lambda a, b: a @ b)
    product(a, a).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        product(a, a).block_until_ready()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _figures(seconds: list[float], tokens: int, flops: float, peak: float) -> dict[str, float]:
    median = float(np.median(seconds))
    return {
        "median_ms": 1e3 * median,
        "p95_ms": 1e3 * float(np.percentile(seconds, 95)),
        "tokens_per_second": tokens / median,
        "gflops_per_second": flops / median / 1e9,
        "share_of_peak": flops / median / peak,
    }
