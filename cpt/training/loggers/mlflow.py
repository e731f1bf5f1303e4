"""MLflow: the server of `MLFLOW_TRACKING_URI`, or files in `mlruns/` of the run directory where there is none.

The experiment is `MLFLOW_EXPERIMENT_NAME` (default: cpt). The files are read by `mlflow ui --backend-store-uri=DIR`. A
resumed run goes on in the same MLflow run.
"""

from __future__ import annotations

import importlib
import os
import re
import time
from collections.abc import Mapping
from typing import Any

from cpt.training.loggers._base import Background, LoggerFacts, flat, kept_id

NEEDS = ("mlflow", "pip install mlflow-skinny")
_LONGEST, _AT_ONCE = 500, 100  # characters of a parameter, parameters in one request


def mlflow(facts: LoggerFacts) -> Background:
    """A logger to MLflow, through a thread of its own."""
    package = importlib.import_module("mlflow")
    return Background("mlflow", lambda: _Run(package, facts), facts.say)


class _Run:
    def __init__(self, package: Any, facts: LoggerFacts):
        self._entities = importlib.import_module("mlflow.entities")
        if not (uri := os.environ.get("MLFLOW_TRACKING_URI")):
            # MLflow 3 has a data base as its default, and wants to be told that files are meant.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = (facts.workdir.resolve() / "mlruns").as_uri()
        self._client = package.MlflowClient(tracking_uri=uri)
        self._new = False
        self._id = kept_id(facts.workdir, "mlflow", lambda: self._create(facts))
        if not self._new:
            self._client.update_run(self._id, status="RUNNING")

    def send(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._entities.Metric(_allowed(name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def finish(self) -> None:
        self._client.set_terminated(self._id)

    def _create(self, facts: LoggerFacts) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "cpt")
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        run = self._client.create_run(experiment, run_name=f"{facts.name}-{facts.hash[:8]}").info.run_id
        self._new = True
        # A parameter cannot be changed later: they are those that the run began with.
        parameters = [self._entities.Param(_allowed(k), str(v)[:_LONGEST]) for k, v in flat(facts.config).items()]
        for first in range(0, len(parameters), _AT_ONCE):
            self._client.log_batch(run, params=parameters[first : first + _AT_ONCE])
        return run


def _allowed(name: str) -> str:
    """A name that MLflow takes: `replay(pile)` has parentheses, which it does not."""
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)
