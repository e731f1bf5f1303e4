"""Loss under a checkpoint of a run: what that model finds likely."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cpt.data.scorers._base import Scorer, ScorerSpec
from cpt.errors import ConfigError, DataError

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
    # Only here: a store is selected from by other scorers on machines that have no accelerator to start.
    from cpt.training.scoring import load_run

    run = load_run(spec.workdir, spec.step)
    if run.tokenizer not in (None, spec.tokenizer.hash):
        raise DataError(f"{spec.workdir}: trained with another tokenizer than the store that is scored was made with")

    def score(documents: Sequence[np.ndarray]) -> np.ndarray:
        return _score(run, documents, spec.tokenizer.eod_id)

    return score


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
