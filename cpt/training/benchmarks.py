"""Tasks of lm-evaluation-harness, run on whatever model is evaluated; their numbers are kept as those of probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from cpt.data.tokenizers._base import Tokenizer
from cpt.errors import ConfigError
from cpt.models.base import Model
from cpt.training.evaluation_rows import Tasks

PREFIX = "harness/"


@dataclass(frozen=True)
class Benchmarks:
    """What to ask.

    Attributes:
      tasks: names that the harness knows, or those of task files.
      include_path: folder of further task files.
      num_fewshot, limit: as in `cpt.evaluators.harness.run_tasks`.
    """

    tasks: tuple[str, ...]
    include_path: Path | None = None
    num_fewshot: int | None = None
    limit: int | None = None

    @property
    def names(self) -> list[str]:
        """What their rows are called; a part of a task, or one asked otherwise, is not the task."""
        return [f"{PREFIX}{task}{self.asked}" for task in self.tasks]

    @property
    def asked(self) -> str:
        """`@limit=100,shots=5`; empty where the task is asked as it says."""
        said = {"limit": self.limit, "shots": self.num_fewshot}
        given = ",".join(f"{k}={v}" for k, v in said.items() if v is not None)
        return f"@{given}" if given else ""

    def of(self, model: Model, tokenizer: Tokenizer | None, batch: NamedSharding) -> Tasks:
        """A function that runs tasks on parameters of `model`.

        Args:
          batch: sharding of a batch, whose axes split the rows of a pass.

        Raises:
          ConfigError: nobody knows the tokenizer; the harness is not installed.
        """
        from cpt.evaluators.harness import run_tasks
        from cpt.evaluators.scored_windows import HarnessModel, model_follow, model_scores

        if tokenizer is None or tokenizer.eod_id is None:
            raise ConfigError("--harness: needs a tokenizer; name one with tokenizer.kind=file and tokenizer.path")
        devices = int(np.prod([batch.mesh.shape[axis] for axis in batch.spec[0]]))
        replicated = NamedSharding(batch.mesh, PartitionSpec())

        def run(params: Any, names: Sequence[str]) -> Mapping[str, Mapping[str, float]]:
            spread = model.on(batch.mesh)
            scores, follow = model_scores(spread, params, batch), model_follow(spread, params, batch)
            whole = lambda windows: jax.device_put(scores(windows), replicated)  # noqa: E731
            rows = -(-16 // devices) * devices
            asked = HarnessModel(whole, tokenizer, model.spec.context, rows, follow)
            tasks = [name.removeprefix(PREFIX).removesuffix(self.asked) for name in names]
            found = run_tasks(asked, tasks, self.include_path, self.num_fewshot, self.limit)
            # A tag stands for its tasks and has no numbers of its own; its row says that it was asked.
            return {f"{PREFIX}{task}{self.asked}": found.get(task, {}) for task in dict.fromkeys([*tasks, *found])}

        return run
