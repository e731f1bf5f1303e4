"""The trainer's own compiled update with nothing around it, for suites that put something beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cpt import config as c
from cpt.data.mix import MixPlan
from cpt.data.preparing import open_sources
from cpt.models.spec import DecoderSpec
from cpt.plan import RunPlan, resolve
from cpt.training.feed import Data, check_data, host_batches
from cpt.training.machine import make_machine
from cpt.training.sharding import host_rows, put_batch
from cpt.training.state import State, Sums
from cpt.units import Duration


def shortened(plan: RunPlan, steps: int, loggers: tuple[str, ...] = (), grid: int | None = None) -> RunPlan:
    """The first phase of `plan`, `steps` long, with nothing but training in it, and further loggers.

    Args:
      grid: save parameters every so many steps; None for no checkpoint but the one at the end.
    """
    spec, name = plan.spec, plan.spec.order[0]
    phase = dataclasses.replace(spec.phases[name], tokens=None, steps=steps)
    sources = {n: dataclasses.replace(s, epochs=1e9) for n, s in spec.sources.items()}
    evaluation = dataclasses.replace(spec.evaluation, sets={}, probes={})
    none = Duration(steps=10 * steps)
    saved = dataclasses.replace(
        spec.checkpoints, grid=none if grid is None else Duration(steps=grid), rolling=none, rolling_minutes=None
    )
    changed = {"order": (name,), "phases": {name: phase}, "sources": sources}
    changed |= {"evaluation": evaluation, "checkpoints": saved}
    return resolve(dataclasses.replace(spec, **changed, loggers=(*spec.loggers, *loggers)))


def opened(plan: RunPlan, say: Callable[[str], None]) -> Data:
    """The data of `plan`."""
    return Data(*open_sources(plan.spec.sources, plan.spec.tokenizer, Path(plan.spec.stores), say))


def synthetic(
    spec: DecoderSpec, sequences: int, length: int, accumulate: int = 1, sources: int = 1, **optimizer: Any
) -> RunPlan:
    """A run of one phase at a constant learning rate, whose sources are never read: batches are given to `Updates`.

    Args:
      sources: how many, in equal parts.
      optimizer: fields of its section; `lr` as well.
    """
    given = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)}
    names = [f"none-{i}" for i in range(sources)]
    rate = c.lr(kind="constant", value=optimizer.pop("lr", 1e-3))
    run = c.run(
        name="synthetic",
        model=c.model(**given),
        batch=c.batch(sequences=sequences, length=length, accumulate=accumulate),
        sources={name: c.source(store=name, epochs=1e9) for name in names},
        order=("only",),
        phases={"only": c.phase(steps=10**9, mix=dict.fromkeys(names, 1.0 / sources), lr=rate)},
        optimizer=c.optimizer(**optimizer),
    )
    return resolve(c.load(run))


def as_batch(rows_BxM: np.ndarray) -> dict[str, np.ndarray]:
    """A batch of rows of L + 1 tokens, all of one source."""
    return {
        "tokens_BxL": rows_BxM[:, :-1],
        "targets_BxL": rows_BxM[:, 1:],
        "weights_BxL": np.ones(rows_BxM[:, 1:].shape, np.float32),
        "source_B": np.zeros(len(rows_BxM), np.int32),
    }


class Updates:
    """Updates on a run's batches, each result fetched one update late, as any careful loop does.

    Attributes:
      machine: what is timed.
      state: now; `step` updates are behind it.

    Args:
      data, mix: what is read; None where `one` is given all batches.
      params: to start from; drawn from the plan's seed by default.
    """

    def __init__(
        self,
        plan: RunPlan,
        data: Data | None = None,
        mix: MixPlan | None = None,
        params: Any = None,
    ):
        self.machine, self.step, self._before = make_machine(plan), 0, None
        self.sequences = plan.spec.batch.sequences
        if data is not None:
            mix = check_data(plan, data) if mix is None else mix
            self.batches = host_batches(plan, data, mix, host_rows(self.machine.mesh, self.sequences))
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.machine.abstract)
        if params is None:
            params = jax.jit(self.machine.model.init, out_shardings=shardings.params)(jax.random.key(plan.spec.seed))
        else:
            params = jax.device_put(params, shardings.params)
        self.state = State(params, jax.jit(self.machine.tx.init, out_shardings=shardings.opt_state)(params))

    def one(self, batch: dict[str, Any] | None = None) -> Sums | None:
        """Dispatch one update; waits for the one before and returns its sums, fetched."""
        if self.machine.ahead is None:
            self.machine = self.machine.compiling()  # as the training loop has it
        batch = self.batches[self.step] if batch is None else batch
        batch = put_batch(self.machine.mesh, batch, self.sequences)
        self.state, sums = self.machine.dispatch(self.step, self.state, batch, self.machine.plan.lr(self.step), None)
        before, self._before, self.step = self._before, sums, self.step + 1
        return None if before is None else jax.device_get(before)

    def last(self) -> Sums:
        """Wait for the update under way; its sums, fetched."""
        before, self._before = self._before, None
        return jax.device_get(before)

    def run(self, updates: int) -> None:
        """So many updates; returns when the last is done."""
        for _ in range(updates):
            self.one()
        self.last()
