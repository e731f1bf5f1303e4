"""Weights & Biases. `WANDB_PROJECT` (default: cpt), `WANDB_ENTITY` and `WANDB_MODE=offline` work as they do everywhere.

Where nobody is logged in it writes offline, to be sent later with `wandb sync`; it never asks for a key while a run
starts. A resumed run goes on in the same W&B run; the axis is `step` of the run, so what it does again after a resume
lies over what it did before.
"""

from __future__ import annotations

import importlib
import os
import uuid
from collections.abc import Mapping
from typing import Any

from cpt.training.loggers._base import Background, LoggerFacts, kept_id

NEEDS = ("wandb", "pip install wandb")


def wandb(facts: LoggerFacts) -> Background:
    """A logger to W&B, through a thread of its own."""
    package = importlib.import_module("wandb")
    return Background("wandb", lambda: _Run(package, facts), facts.say)


class _Run:
    def __init__(self, package: Any, facts: LoggerFacts):
        mode = os.environ.get("WANDB_MODE")
        if mode is None and not package.api.api_key:
            mode = "offline"
            facts.say(
                f"wandb: not logged in; written offline, `wandb sync {facts.workdir}/wandb/offline-run-*` sends it"
            )
        self._run = package.init(
            project=os.environ.get("WANDB_PROJECT", "cpt"),
            id=kept_id(facts.workdir, "wandb", lambda: uuid.uuid4().hex[:12]),
            name=f"{facts.name}-{facts.hash[:8]}",
            dir=str(facts.workdir),
            config=dict(facts.config),
            resume="allow",
            mode=mode,
            # The terminal belongs to the run's own progress.
            settings=package.Settings(console="off", silent=True),
        )
        # W&B's own step only ever grows; after a resume ours goes back.
        self._run.define_metric("*", step_metric="step")

    def send(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def finish(self) -> None:
        self._run.finish()
