"""How fast batches come: tokens per second out of token stores, and the time to the first batch anywhere in a run."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cpt import config as c
from cpt.data.loader import PACE, Batches, start_at
from cpt.data.megatron import Writer
from cpt.data.mix import MixPlan
from cpt.data.store import TokenStore
from cpt.plan import RunPlan, resolve

LENGTH, BATCH, VOCABULARY = 2048, 64, 50_000
STORE_TOKENS = 50_000_000  # 100 MB each: more than a cache of the CPU, less than anybody's memory
FAR = 1_000_000


def bench_loader(seconds: float, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Throughput of one process on three sources and replay, and how long the first batch takes at step 0 and far on.

    Args:
      seconds: measured per round.
      rounds: how often; the median is given.
    """
    with tempfile.TemporaryDirectory() as folder:
        say(f"writing three stores of {STORE_TOKENS:,} tokens")
        stores = {name: _store(Path(folder) / name, seed) for seed, name in enumerate(("web", "code", "books"))}
        plan = _plan()
        first = _first_batch(plan, stores, 0)
        far = _first_batch(plan, stores, FAR)
        rates = [_throughput(plan, stores, FAR + 100_000 * i, seconds) for i in range(rounds)]
    return {
        "tokens_per_second": float(np.median(rates)),
        "rounds": rates,
        "first_batch_s": first,
        "first_batch_far_s": far,
        "far_step": FAR,
        "sequence_length": LENGTH,
        "batch_sequences": BATCH,
    }


def _store(prefix: Path, seed: int) -> TokenStore:
    rng = np.random.default_rng(seed)
    with Writer(prefix, np.dtype(np.uint16)) as writer:
        for _ in range(STORE_TOKENS // 1_000_000):
            for ids in np.split(rng.integers(0, VOCABULARY, 1_000_000, np.uint16), 1000):
                writer.add(ids)
    return TokenStore.open(prefix)


def _plan() -> RunPlan:
    """Two phases of three sources each; the second, of two million steps, replays the first."""
    many = 1e9
    run = c.run(
        name="loader",
        model=c.model(width=8, layers=1, heads=1, vocab_size=VOCABULARY, context=LENGTH),
        batch=c.batch(sequences=BATCH, length=LENGTH),
        sources={name: c.source(store=name, epochs=many) for name in ("web", "code", "books")},
        order=("old", "new"),
        phases={
            "old": c.phase(steps=100_000, mix={"web": 0.7, "books": 0.3}, lr=c.lr(peak=1e-3)),
            "new": c.phase(
                steps=2 * FAR,
                mix={"web": 0.35, "code": 0.52, "books": 0.13},
                replay=c.replay(of="old", share=0.05, max_repeats=many),
                lr=c.lr(peak=1e-3),
            ),
        },
    )
    return resolve(c.load(run))


def _batches(plan: RunPlan, stores: dict[str, TokenStore]) -> Batches:
    rows = {name: store.rows(LENGTH) for name, store in stores.items()}
    return Batches(MixPlan(plan, rows, dict.fromkeys(stores, 1e9)), stores, vocab_size=VOCABULARY)


def _first_batch(plan: RunPlan, stores: dict[str, TokenStore], step: int) -> float:
    """Seconds from the plan and the open stores to the batch of a step of the second phase."""
    begin = time.perf_counter()
    next(start_at(_batches(plan, stores), plan.phases[1].first_step + step))
    return time.perf_counter() - begin


def _throughput(plan: RunPlan, stores: dict[str, TokenStore], step: int, seconds: float) -> float:
    batches = start_at(_batches(plan, stores), step)
    for _ in range(2 * PACE):  # until it is seen how soon they are used
        next(batches)
    begin = time.perf_counter()
    for done in itertools.count(1):
        next(batches)
        if (took := time.perf_counter() - begin) >= seconds:
            return done * BATCH * LENGTH / took
    raise AssertionError
