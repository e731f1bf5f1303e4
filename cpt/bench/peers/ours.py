"""The peer that is us: the trainer's own update and its own evaluation."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from cpt import config as c
from cpt.bench.facts import peak_memory
from cpt.bench.updates import Updates
from cpt.evaluators.losses import EvalSet, SetLosses
from cpt.models import convert
from cpt.plan import RunPlan, resolve
from cpt.training.sharding import BATCH


def plan_of(setting: dict[str, Any]) -> RunPlan:
    """A run of one phase at a constant learning rate, whose source is never read."""
    spec = convert.read_spec(setting["model"])
    fields = {name: getattr(spec, name) for name in ("layers", "width", "heads", "vocab_size", "context", "gelu")}
    optimizer = {name: setting[name] for name in ("b1", "b2", "eps", "weight_decay", "clip")}
    run = c.run(
        name="peers",
        model=c.model(**fields, compute_dtype=setting["dtype"], remat=setting.get("remat", "none")),
        batch=c.batch(sequences=setting["sequences"], length=setting["length"]),
        sources={"none": c.source(store="none", epochs=1e9)},
        order=("only",),
        phases={"only": c.phase(steps=10**6, mix={"none": 1.0}, lr=c.lr(kind="constant", value=setting["lr"]))},
        optimizer=c.optimizer(**optimizer),
    )
    return resolve(c.load(run))


class ours:
    """Updates and evaluations on the rows of the setting."""

    def __init__(self, setting: dict[str, Any]):
        plan = plan_of(setting)
        _, params = convert.read(setting["model"])
        self.updates = Updates(plan, params=params)
        self.rows_TxBxM = np.load(setting["rows"])
        windows_RxM = np.load(setting["evaluation"])
        none = np.zeros(len(windows_RxM), np.int64)
        machine = self.updates.machine
        sets = [EvalSet("rows", windows_RxM, None, none, none)]
        batch = NamedSharding(machine.mesh, BATCH)
        self.losses = SetLosses(machine.model.on(machine.mesh), sets, len(windows_RxM), batch)
        self.facts = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}

    def step(self, times: int) -> float:
        for _ in range(times):
            self.updates.one(self._batch(self.updates.step % len(self.rows_TxBxM)))
        return float(self.updates.last().objective)

    def evaluate(self, times: int) -> float:
        for _ in range(times):
            nats = self.losses(self.updates.state.params)
        return self.losses.rows(jax.device_get(nats))[0][0]["loss"]

    def memory(self) -> int:
        return peak_memory()

    def _batch(self, i: int) -> dict[str, np.ndarray]:
        rows_BxM = self.rows_TxBxM[i]
        return {
            "tokens_BxL": rows_BxM[:, :-1],
            "targets_BxL": rows_BxM[:, 1:],
            "weights_BxL": np.ones(rows_BxM[:, 1:].shape, np.float32),
            "source_B": np.zeros(len(rows_BxM), np.int32),
        }


make = ours
