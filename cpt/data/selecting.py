"""The best documents of a store, up to a budget of tokens, as a store of their own (strategy II of 2406.14833)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from cpt.data.disk import disk_errors, locked
from cpt.data.manifest import read_manifest
from cpt.data.scorers._base import Scorer
from cpt.data.store import TokenStore
from cpt.data.tokenizers._base import Tokenizer, load
from cpt.data.writing import StoreWriter, finished, whole_identity
from cpt.errors import ConfigError, DataError

SCORES = "scores.npy"
SCORES_OF = "scores.json"
CHUNK_TOKENS = 1 << 20  # scored at a time, and kept
COMMIT_TOKENS = 1 << 24  # written at a time

Progress = Callable[[int, int], None]


def select(
    store: Path,
    scorer: Scorer,
    out: Path,
    keep_tokens: int,
    worst: bool = False,
    min_tokens: int = 1,
    scores: Path | None = None,
    command: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make the store `out` of the documents of `store` with the lowest scores.

    From the best on, documents are taken until the next one does not fit into the budget; they are written in the order
    of the store. Its other splits are taken over whole. The scores are kept, so stopped work goes on and another budget
    scores nothing again.

    Args:
      keep_tokens: the budget.
      worst: take the highest scores instead (a control).
      min_tokens: shorter documents are not taken: of a few tokens a mean says little.
      scores: folder where the scores are kept, `out` by default; that of an earlier selection saves scoring again.
      progress: called with the documents scored and all of them.

    Returns:
      The manifest, with `selection`: threshold, documents and tokens kept, and what was asked for.

    Raises:
      ConfigError: a budget that is none.
      DataError: no finished store, nothing that fits the budget, `out` or `scores` hold something else.
    """
    if keep_tokens < 1:
        raise ConfigError(f"--keep_tokens: {keep_tokens} is out of range (>= 1)")
    train = TokenStore.open(store)
    train.verify()
    key = {"of": train.fingerprint, "scorer": dict(scorer.identity)}
    asked = {"keep_tokens": keep_tokens, "worst": worst, "min_tokens": min_tokens}
    described = {"description": {"selected_from": key, **asked}}
    tokenizer = load(store, train.manifest["tokenizer"]["eod_token"])
    _refuse_another_budget(out, described["description"])
    done = finished(out, whole_identity(described, tokenizer, train.manifest["shard_tokens"]))
    if done is not None:
        return done
    if scores is not None and (_read_key(scores) not in (None, key)):
        raise DataError(f"--scores={scores}: holds scores of another store or scorer; name another folder")
    found = score_documents(train, scorer, key, scores or out, progress)
    chosen, threshold = best(found, sizes_of(train), keep_tokens, worst, min_tokens)
    kept = {"threshold": threshold, "documents": int(chosen.sum()), "tokens": int(sizes_of(train)[chosen].sum())}
    splits = tuple(train.manifest["splits"])
    with StoreWriter(out, tokenizer, described, splits, train.manifest["shard_tokens"], command) as writer:
        if writer.done is None:
            _write(writer, store, splits, chosen, tokenizer)
        return writer.done or writer.finish(selection={**kept, **asked})


def sizes_of(store: TokenStore) -> np.ndarray:
    """Tokens of each document, int64."""
    sizes = (np.diff(s.files.starts, append=s.n_tokens) for s in store.shards)
    return np.concatenate([np.zeros(0, np.int64), *sizes])


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


def score_documents(
    store: TokenStore, scorer: Scorer, key: dict[str, Any], folder: Path, progress: Progress | None = None
) -> np.ndarray:
    """float32 score of every document of `store`, from `scores.npy` in `folder` as far as it has them.

    The file says from its beginning how long it will be, so nobody takes a part of it for the whole.

    Args:
      key: which scores they are; what is there of another key is begun anew.

    Raises:
      ConfigError: the scorer does not give one number per document.
    """
    with disk_errors(folder), locked(folder / ".lock"):
        file, header = folder / SCORES, _npy_header(store.n_documents)
        if _read_key(folder) != key:
            file.unlink(missing_ok=True)  # first: scores of one key never lie beside another
            temporary = folder / f"{SCORES_OF}.tmp"
            temporary.write_text(json.dumps(key))
            os.replace(temporary, folder / SCORES_OF)
        if not file.is_file() or _first(file, len(header)) != header:
            file.write_bytes(header)
        there = min((file.stat().st_size - len(header)) // 4, store.n_documents)
        os.truncate(file, len(header) + 4 * there)
        if there < store.n_documents:
            score = scorer.make()
            with file.open("ab") as f:
                for documents in _chunks(store, there):
                    f.write(_checked(score(documents), len(documents)).tobytes())
                    f.flush()
                    there += len(documents)
                    if progress is not None:
                        progress(there, store.n_documents)
        return np.load(file)


def _write(writer: StoreWriter, store: Path, splits: tuple[str, ...], chosen: np.ndarray, tokenizer: Tokenizer) -> None:
    """From where the writer was stopped, if it was."""
    token_bytes = tokenizer.token_bytes()
    at, first = writer.position or (0, 0)
    for i in range(at, len(splits)):
        for number, domain, ids in TokenStore.open(store, splits[i]).documents(first):
            if splits[i] == "train" and not chosen[number]:
                continue
            text_bytes = len(tokenizer.decode(ids).encode()) if token_bytes is None else int(token_bytes[ids].sum())
            writer.add(splits[i], domain, ids, text_bytes)
            if writer.waiting_tokens >= COMMIT_TOKENS:
                writer.commit([i, number + 1])
        first = 0


def _refuse_another_budget(out: Path, described: dict[str, Any]) -> None:
    """`out` is finished, and differs only in how much was taken: say how that need not cost the scores."""
    try:
        there = read_manifest(out).get("description") or {}
    except DataError:  # damaged, so it is made anew
        return
    if there != described and there.get("selected_from") == described["selected_from"]:
        differing = next(k for k, v in described.items() if there.get(k) != v)
        raise DataError(
            f"{out}: holds a finished selection with --{differing}={there.get(differing)}; name another --out, "
            f"and --scores={out} to score nothing again"
        )


def _read_key(folder: Path) -> dict[str, Any] | None:
    """Which scores lie in `folder`."""
    try:
        return json.loads((folder / SCORES_OF).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def _first(file: Path, n: int) -> bytes:
    with file.open("rb") as f:
        return f.read(n)


def _npy_header(n: int) -> bytes:
    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (n,)})
    return header.getvalue()


def _checked(scores: Any, n: int) -> np.ndarray:
    scores = np.asarray(scores, "<f4")
    if scores.shape != (n,):
        raise ConfigError(f"--scorer: gave scores of shape {scores.shape} for {n} documents; it must give one for each")
    return scores


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
