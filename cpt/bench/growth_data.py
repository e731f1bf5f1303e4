"""Seconds on the host for the batch of a step, at a number of sources, hosts or steps; for a save among checkpoints."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from cpt import config as c
from cpt.data.loader import Batches
from cpt.data.megatron import Writer
from cpt.data.mix import MixPlan
from cpt.data.store import TokenStore
from cpt.plan import RunPlan, resolve
from cpt.training.checkpoint import Checkpoints
from cpt.training.spec import CheckpointSpec
from cpt.training.state import State

LENGTH, ROWS, STORE_ROWS = 128, 64, 20_000
REPEATS = 30
MANY = 1e9
_kept = tempfile.TemporaryDirectory(prefix="cpt-bench-")  # removed with the process


@lru_cache(maxsize=1)
def store() -> TokenStore:
    """Random tokens; every source reads the same ones."""
    prefix = Path(_kept.name) / "store"
    with Writer(prefix, np.dtype(np.uint16)) as writer:
        ids = np.random.default_rng(0).integers(0, 1000, (STORE_ROWS, LENGTH), np.uint16)
        for row in ids:
            writer.add(row)
    return TokenStore.open(prefix)


def plan_of(n_sources: int = 4, sequences: int = ROWS, steps: int = 1000) -> RunPlan:
    """Two phases of sources in unequal parts; the second replays the first."""
    names = [f"s{i}" for i in range(n_sources)]
    parts = np.arange(1, n_sources + 1) / sum(range(1, n_sources + 1))
    mix = dict(zip(names, parts.tolist(), strict=True))
    run = c.run(
        name="growth",
        model=c.model(width=8, layers=1, heads=1, vocab_size=1000, context=LENGTH),
        batch=c.batch(sequences=sequences, length=LENGTH),
        sources={name: c.source(store=name, epochs=MANY) for name in names},
        order=("old", "new"),
        phases={
            "old": c.phase(steps=steps, mix=mix, lr=c.lr(peak=1e-3)),
            "new": c.phase(
                steps=steps,
                mix=mix,
                replay=c.replay(of="old", share=0.05, max_repeats=MANY),
                lr=c.lr(peak=1e-3),
            ),
        },
    )
    return resolve(c.load(run))


def batches_of(plan: RunPlan, rows: np.ndarray | None = None) -> Batches:
    stores = dict.fromkeys(plan.spec.sources, store())
    sizes = {name: s.rows(LENGTH) for name, s in stores.items()}
    return Batches(MixPlan(plan, sizes, dict.fromkeys(stores, MANY)), stores, rows, vocab_size=1000)


def fastest(call: Callable[[int], object], repeats: int = REPEATS) -> float:
    """Seconds of the fastest call; each gets another number. The first two prepare what is kept."""
    took = []
    for i in range(repeats + 2):
        begun = time.perf_counter()
        call(i)
        took.append(time.perf_counter() - begun)
    return min(took[2:])


def sources(size: int) -> float:
    """The batch of a step of the second phase."""
    plan = plan_of(n_sources=size)
    batches = batches_of(plan)
    return fastest(lambda i: batches[plan.phases[1].first_step + i])


def hosts_of_one_batch(size: int) -> float:
    """The rows of one host of `size`, of a batch of 4,096 rows that all of them share."""
    return _host(size, 4096)


def hosts_of_four_rows(size: int) -> float:
    """The four rows of one host, of a batch that grows with the hosts."""
    return _host(size, 4 * size)


def _host(hosts: int, sequences: int) -> float:
    plan = plan_of(sequences=sequences)
    each = sequences // hosts
    batches = batches_of(plan, np.arange(each) + each * (hosts // 2))
    return fastest(lambda i: batches[plan.phases[1].first_step + i])


def run_length(size: int) -> float:
    """Batch and learning rate of a step that far into the second phase."""
    plan = plan_of(steps=size + REPEATS + 2)
    batches, first = batches_of(plan), plan.phases[1].first_step + size

    def step(i: int) -> object:
        return batches[first + i], plan.lr(first + i)

    return fastest(step)


def checkpoints(size: int) -> float:
    """Until a save returns to the loop, among `size` checkpoints that are there."""
    with tempfile.TemporaryDirectory() as folder:
        state = State({"w": jnp.ones((64, 64))}, {"m": jnp.zeros((64, 64))})
        filled(Path(folder), state, size)
        there = Checkpoints(folder, CheckpointSpec(keep_rolling=2))
        assert len(there.finished()) == size

        took = []
        for i in range(8):
            there.wait()
            begun = time.perf_counter()
            there.save("rolling", 10**6 + i, state, {})
            took.append(time.perf_counter() - begun)
        there.close()
    return min(took[2:])


def filled(folder: Path, state: State, count: int) -> None:
    """`count` finished checkpoints: one that was saved, and copies of it under other steps."""
    first = Checkpoints(folder, CheckpointSpec())
    first.save("anchor", 1, state, {}, must=True)
    first.close()
    for step in range(2, count + 1):
        shutil.copytree(folder / "anchor" / "1", folder / "anchor" / str(step))
