"""The best documents of a store, up to a budget of tokens, as a store of their own (strategy II of 2406.14833)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cpt.data.disk import disk_errors, locked
from cpt.data.store import TokenStore
from cpt.data.tokenizers._base import load
from cpt.data.writing import StoreWriter, finished, whole_identity
from cpt.errors import ConfigError, DataError

SCORES = "scores.f32"
CHUNK_TOKENS = 1 << 20  # scored at a time, and kept

Progress = Callable[[int, int], None]


def select(
    store: Path,
    scorer: Callable[[], Any],
    identity: dict[str, Any],
    out: Path,
    keep_tokens: int,
    worst: bool = False,
    min_tokens: int = 1,
    command: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make the store `out` of the documents of `store` with the lowest scores.

    The scores are kept beside the result, so stopped work goes on and another budget scores nothing again. From the
    best on, documents are taken until the next one does not fit into the budget; they are written in the order of the
    store. Its other splits are taken over whole.

    Args:
      scorer: makes the `Scorer`, where there is something left to score.
      identity: what decides the scores, as JSON data.
      keep_tokens: the budget.
      worst: take the highest scores instead (a control).
      min_tokens: shorter documents are not taken: of a few tokens a mean says little.
      progress: called with the documents scored and all of them.

    Returns:
      The manifest, with `selection`: threshold, documents and tokens kept, and what was asked for.

    Raises:
      ConfigError: a budget that is none.
      DataError: no finished store, nothing that fits the budget.
    """
    if keep_tokens < 1:
        raise ConfigError(f"--keep_tokens: {keep_tokens} is out of range (>= 1)")
    train = TokenStore.open(store)
    train.verify()
    whole = {"of": train.fingerprint, "scorer": identity}
    asked = {"keep_tokens": keep_tokens, "worst": worst, "min_tokens": min_tokens}
    described = {"description": {"selected_from": whole, **asked}}
    tokenizer = load(store, train.manifest["tokenizer"]["eod_token"])
    done = finished(out, whole_identity(described, tokenizer, train.manifest["shard_tokens"]))
    if done is not None:
        return done
    scores = score_documents(train, scorer, whole, out, progress)
    sizes = np.concatenate([np.diff(s.files.starts, append=s.n_tokens) for s in train.shards])
    chosen, threshold = best(scores, sizes, keep_tokens, worst, min_tokens)
    splits = tuple(train.manifest["splits"])
    kept = {"threshold": threshold, "documents": int(chosen.sum()), "tokens": int(sizes[chosen].sum()), **asked}
    with StoreWriter(out, tokenizer, described, splits, train.manifest["shard_tokens"], command) as writer:
        if writer.done is not None:
            return writer.done
        token_bytes = tokenizer.token_bytes()
        count = lambda ids: 0 if token_bytes is None else int(token_bytes[ids].sum())  # noqa: E731
        for split in splits:
            for number, domain, ids in TokenStore.open(store, split).documents():
                if split != "train" or chosen[number]:
                    writer.add(split, domain, ids, count(ids))
                if writer.waiting_tokens >= 1 << 24:
                    writer.commit(None)
        return writer.finish(selection=kept)


def score_documents(
    store: TokenStore, scorer: Callable[[], Any], identity: dict[str, Any], out: Path, progress: Progress | None
) -> np.ndarray:
    """float32 score of every document; those that `out` has already are read from there."""
    with disk_errors(out), locked(out / ".lock"):
        file, said = out / SCORES, out / "scores.json"
        if not said.is_file() or json.loads(said.read_text() or "{}") != identity:
            file.unlink(missing_ok=True)
            said.write_text(json.dumps(identity))
        there = file.stat().st_size // 4 if file.is_file() else 0
        with file.open("ab") as f:
            f.truncate(4 * there)
            ask = scorer() if there < store.n_documents else None
            for documents in _chunks(store, there):
                f.write(np.asarray(ask(documents), "<f4").tobytes())
                f.flush()
                there += len(documents)
                if progress is not None:
                    progress(there, store.n_documents)
        return np.fromfile(file, "<f4")


def _chunks(store: TokenStore, first: int) -> Iterator[list[np.ndarray]]:
    waiting, tokens = [], 0
    for _, _, ids in store.documents(first):
        waiting.append(ids)
        tokens += len(ids)
        if tokens >= CHUNK_TOKENS:
            yield waiting
            waiting, tokens = [], 0
    if waiting:
        yield waiting


def best(
    scores: np.ndarray, sizes: np.ndarray, keep_tokens: int, worst: bool = False, min_tokens: int = 1
) -> tuple[np.ndarray, float]:
    """(which documents are taken, the score of the last of them); ties go to the earlier document.

    Raises:
      DataError: not even one fits.
    """
    able = np.flatnonzero(np.isfinite(scores) & (sizes >= min_tokens))
    order = able[np.argsort(-scores[able] if worst else scores[able], kind="stable")]
    taken = order[np.cumsum(sizes[order]) <= keep_tokens]
    if not len(taken):
        raise DataError(
            f"--keep_tokens: {keep_tokens:,} hold none of the {len(able):,} documents that have a score"
            f" and at least {min_tokens} tokens"
        )
    chosen = np.zeros(len(scores), bool)
    chosen[taken] = True
    return chosen, float(scores[taken[-1]])
