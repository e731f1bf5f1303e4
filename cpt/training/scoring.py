"""The loss of every token under a checkpoint of a finished or running run, for those who only read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from cpt.errors import RunError
from cpt.models import base
from cpt.objectives.cross_entropy import automatic_rows, cross_entropy
from cpt.optimizers import building as optimizers
from cpt.training.checkpoint import Checkpoints, DamagedCheckpoint, restore
from cpt.training.machine import abstract_state
from cpt.training.merging import KINDS, find_checkpoints
from cpt.training.preservation import checkpoints_of
from cpt.training.sharding import run_mesh
from cpt.training.workdir import stored_plan


@dataclass(frozen=True)
class ScoredRun:
    """A checkpoint that can be asked.

    Attributes:
      length: tokens of a row, as in training.
      tokenizer: hash of the run's, None where it does not say.
      nats: int32 `[R, length + 1]` -> float32 `[R, length]`, the nats of all but the first token of each row.
    """

    length: int
    tokenizer: str | None
    nats: Callable[[np.ndarray], jax.Array]


def load_run(workdir: Path, step: int | None = None) -> ScoredRun:
    """The checkpoint of `step` (the newest of any kind by default) of the run in `workdir`; parameters only.

    Raises:
      RunError: no run there, no such checkpoint, or it is damaged.
    """
    if (stored := stored_plan(workdir)) is None:
        raise RunError(f"{workdir}: no plan.json in it; give the directory of a run")
    plan = stored[0]
    if step is None:
        found = Checkpoints(checkpoints_of(workdir)).finished(KINDS)
        if not found:
            raise RunError(f"{workdir}: has no finished checkpoint")
        saved = max(found, key=lambda s: s.step)
    else:
        (saved,) = find_checkpoints(workdir, [step])
    mesh = run_mesh(plan.spec)
    model = base.build(plan.spec.model).on(mesh)
    try:
        (params, _), meta = restore(saved, abstract_state(model, optimizers.build(plan), mesh), params_only=True)
    except DamagedCheckpoint as e:
        raise RunError(f"{saved.path}: {e}; name another --step, or bring it back from a copy") from e

    @jax.jit
    def nats(params: dict, windows_RxM: jax.Array) -> jax.Array:
        tokens_RxL, targets_RxL = windows_RxM[:, :-1], windows_RxM[:, 1:]
        hidden_RxLxD = model.apply(params, tokens_RxL)
        chunk = automatic_rows(tokens_RxL.size, model.spec.vocab_size, 1)
        return cross_entropy(hidden_RxLxD, model.head(params), targets_RxL, chunk)

    return ScoredRun(plan.spec.batch.length, meta.get("tokenizer"), lambda windows: nats(params, windows))
