"""Loss under a checkpoint of a run: what that model finds likely."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cpt.data.scorers._base import Score, Scorer, ScorerSpec
from cpt.errors import ConfigError, DataError, RunError

ROWS = 16  # of a forward pass


def checkpoint(spec: ScorerSpec) -> Scorer:
    """Mean nats per token of each document under the parameters of a checkpoint.

    A document longer than the run's rows is cut into windows of that length, each of which begins anew with the id
    that ends a document; so does every document.

    Raises:
      ConfigError: no run directory.
      DataError: the run was trained with another tokenizer.
      RunError: no run there, no such checkpoint, or a damaged one.
    """
    if spec.workdir is None:
        raise ConfigError("--workdir: the checkpoint scorer needs the directory of a run")
    step, identity, trained_with = _which(spec.workdir, spec.step)
    if trained_with not in (None, spec.tokenizer.hash):
        raise DataError(
            f"{spec.workdir}: trained with another tokenizer ({trained_with[:8]}) than the store that is scored was "
            f"made with ({spec.tokenizer.hash[:8]})"
        )

    def load() -> Score:
        # Only here: a store is selected from by other scorers on machines that have no accelerator to start.
        from cpt.training.scoring import load_run

        run = load_run(spec.workdir, step)
        return lambda documents: _score(run, documents, spec.tokenizer.eod_id)

    return Scorer({"step": step, "parameters": identity}, load)


def _which(workdir: Path, step: int | None) -> tuple[int, str, str | None]:
    """(step, sha256 of what decides the losses under it, hash of its tokenizer); the newest step if none is given.

    "The newest" is another one as soon as the run goes on, and scores of two models must not end up in one file.
    """
    from cpt.training.checkpoint import Checkpoints, DamagedCheckpoint, read_meta
    from cpt.training.merging import KINDS, find_checkpoints
    from cpt.training.preservation import checkpoints_of
    from cpt.training.workdir import stored_plan

    if (stored := stored_plan(workdir)) is None:
        raise RunError(f"{workdir}: no plan.json in it; give the directory of a run")
    found = Checkpoints(checkpoints_of(workdir)).finished(KINDS)
    if not found:
        raise RunError(f"{workdir}: has no finished checkpoint")
    step = max(s.step for s in found) if step is None else step
    (saved,) = find_checkpoints(workdir, [step])
    try:
        meta = read_meta(saved)
    except DamagedCheckpoint as e:
        raise RunError(f"{saved.path}: {e}; name another --step, or bring it back from a copy") from e
    parameters = {name: pair for name, pair in meta["digests"].items() if name.startswith("params/")}
    spec = stored[0].spec
    decides = json.dumps([parameters, spec.batch.length, repr(spec.model)], sort_keys=True)
    return step, hashlib.sha256(decides.encode()).hexdigest(), meta.get("tokenizer")


def _score(run: Any, documents: Sequence[np.ndarray], begin: int) -> np.ndarray:
    """Windows of all documents in batches of one shape; what pads them does not count."""
    length, nats = run.length, np.zeros(len(documents))
    windows, owners = [], []
    for i, ids in enumerate(documents):
        for first in range(0, len(ids), length):
            part = ids[first : first + length]
            windows.append(np.concatenate([[begin], part, np.full(length - len(part), -1)]))
            owners.append(i)
    for at in range(0, len(windows), ROWS):
        batch_RxM = np.stack(windows[at : at + ROWS])
        batch_RxM = np.pad(batch_RxM, ((0, ROWS - len(batch_RxM)), (0, 0)), constant_values=-1)
        scored_RxL = batch_RxM[:, 1:] >= 0
        nats_RxL = np.asarray(run.nats(np.maximum(batch_RxM, 0).astype(np.int32)), np.float64)
        for row, mine in zip(np.where(scored_RxL, nats_RxL, 0.0).sum(axis=1), owners[at : at + ROWS], strict=False):
            nats[mine] += row
    sizes = np.array([len(ids) for ids in documents])
    with np.errstate(invalid="ignore"):
        return nats / sizes
