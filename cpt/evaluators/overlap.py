"""Evaluation documents that are trained on as well: a set that overlaps the training data says little about forgetting.

`cpt.prepare` splits by the hash of each document, so a text that is held out in one store is held out in all that were
made with the same shares. Stores of different shares, and those that others made, can overlap.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from cpt.evaluators.losses import spread
from cpt.plan import RunPlan

LIMIT = 50_000
"""Documents of one source that a run reads for this before it starts: about a second."""


def overlap_lines(plan: RunPlan, sources: Any, limit: int | None = LIMIT) -> Iterator[str]:
    """A line for every set and source that is trained on which share documents.

    Args:
      sources: opened sources by name.
      limit: documents to read per set and source; where it takes more, the line says that it was not looked at.
    """
    trained = {c.source for p in plan.phases for c in p.columns if c.source is not None}
    for name, spec in plan.spec.evaluation.sets.items():
        validation = sources[spec.source].validation
        if validation is None:
            continue
        documents = documents_of(validation, spec.sequences, plan.spec.batch.length)
        for source in sorted(trained):
            where = f"evaluation.sets.{name}"
            shared = shared_documents(validation, documents, sources[source].train, limit)
            if shared is None:
                yield f"{where}: not compared with the training data of '{source}'; see `python -m cpt.data overlap`"
            elif shared:
                yield (
                    f"{where}: {len(shared):,} of its {len(documents):,} documents are in the training data of "
                    f"'{source}' too; what is trained on cannot be forgotten, so leave them out of one of the two"
                )


def documents_of(store: Any, sequences: int, length: int) -> np.ndarray:
    """Numbers of the documents that lie in the rows of an evaluation set, increasing."""
    available = store.rows(length)
    if not available:
        return np.zeros(0, np.int64)
    first_R = store.first_token(spread(min(sequences, available), available), length)
    ends = np.stack([store.document_at(first_R), store.document_at(first_R + length)], axis=1)
    return np.unique(np.concatenate([np.arange(a, b + 1) for a, b in ends]))


def shared_documents(evaluated: Any, documents: np.ndarray, train: Any, limit: int | None = None) -> list[int] | None:
    """Which of the `documents` of the store `evaluated` are documents of the store `train` as well, token for token.

    Only documents of a length that occurs on both sides are read.

    Returns:
      Their numbers; None if more than `limit` documents of `train` would have to be read.
    """
    digests = {_digest(ids): int(n) for n in documents for _, _, ids in evaluated.documents(int(n), int(n) + 1)}
    lengths = np.unique([len(ids) for n in documents for _, _, ids in evaluated.documents(int(n), int(n) + 1)])
    before, candidates = 0, []
    for shard in train.shards:
        sizes = np.diff(shard.files.starts, append=shard.n_tokens)
        # One token is no document that could be recognised.
        candidates.append(before + np.flatnonzero(np.isin(sizes, lengths) & (sizes > 1)))
        before += shard.n_documents
    numbers = np.concatenate([np.zeros(0, np.int64), *candidates])
    if limit is not None and len(numbers) > limit:
        return None
    found = {_digest(ids) for n in numbers.tolist() for _, _, ids in train.documents(n, n + 1)}
    return sorted(n for digest, n in digests.items() if digest in found)


def _digest(ids: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(ids, np.int32).tobytes(), digest_size=16).digest()
