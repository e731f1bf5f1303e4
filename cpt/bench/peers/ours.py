"""The peer that is us: the trainer's own update and its own evaluation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from cpt.backend import keep_memory
from cpt.bench.facts import peak_memory
from cpt.bench.updates import Updates, as_batch, synthetic
from cpt.evaluators.losses import EvalSet, SetLosses
from cpt.models import convert
from cpt.training.evaluation import narrowing
from cpt.training.sharding import BATCH


class ours:
    """Updates and evaluations on the rows of the setting."""

    def __init__(self, setting: dict[str, Any]):
        keep_memory()  # as the training command does
        spec, params = convert.read(setting["model"])
        spec = replace(spec, compute_dtype=setting["dtype"])
        optimizer = {name: setting[name] for name in ("lr", "b1", "b2", "eps", "weight_decay", "clip")}
        plan = synthetic(spec, setting["sequences"], setting["length"], **optimizer)
        self.updates = Updates(plan, params=params)
        self.rows_TxBxM = np.load(setting["rows"])
        windows_RxM = np.load(setting["evaluation"])
        none = np.zeros(len(windows_RxM), np.int64)
        machine = self.updates.machine
        sets = [EvalSet("rows", windows_RxM, None, none, none)]
        batch = NamedSharding(machine.mesh, BATCH)
        self.losses = SetLosses(machine.model.on(machine.mesh), sets, len(windows_RxM), batch)
        self.narrow = narrowing(machine.model)
        self.facts = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}

    def step(self, times: int) -> float:
        for _ in range(times):
            self.updates.one(as_batch(self.rows_TxBxM[self.updates.step % len(self.rows_TxBxM)]))
        return float(self.updates.last().objective)

    def evaluate(self, times: int) -> float:
        for _ in range(times):
            nats = self.losses(self.narrow(self.updates.state.params))
        return self.losses.rows(jax.device_get(nats))[0][0]["loss"]

    def memory(self) -> int:
        return peak_memory()


make = ours
