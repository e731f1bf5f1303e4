"""From documents to a token store on disk: tokenise once, split off a validation set, write a manifest last.

A document goes to validation when the hash of its text says so. The split is therefore disjoint by content (copies of a
document land on the same side), does not depend on the order of the documents and stays as it is when more are added.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from cpt.data.corpora._files import well_formed
from cpt.data.megatron import Writer, paths, token_dtype
from cpt.data.store import MANIFEST, TokenStore, read_manifest, sampled_hash, write_manifest
from cpt.data.tokenizers._base import Tokenizer
from cpt.errors import ConfigError, DataError

Progress = Callable[[int, int], None]
_BATCH_CHARACTERS = 1 << 21  # tokenised at a time: enough to keep every core busy, little enough for any memory


def chunked(documents: Iterable[str], max_chars: int | None) -> Iterator[str]:
    """Cut documents into pieces of at most `max_chars` characters, at line ends where possible; `None` cuts nothing.

    Raises:
      ConfigError: `max_chars` is less than 1.
    """
    if max_chars is not None and max_chars < 1:
        raise ConfigError(f"max_chars: {max_chars} is out of range (>= 1)")
    for document in documents:
        start = 0
        while max_chars is not None and len(document) - start > max_chars:
            end = document.rfind("\n", start, start + max_chars) + 1 or start + max_chars
            yield document[start:end]
            start = end
        yield document[start:]


def prepare(
    documents: Iterable[str],
    tokenizer: Tokenizer,
    out: Path,
    validation: float,
    describe: dict[str, Any],
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make the token store `out` of `documents`; the same input gives the same bytes.

    Each document is followed by the end-of-document id; blank ones are left out. If `out` already holds the finished
    store of the same tokenizer, split and description, nothing is done; a half-written or damaged one is made again.

    Args:
      documents: the text.
      tokenizer: what makes ids of it.
      out: folder of the store; made if need be.
      validation: share of the documents that goes to the validation split, in [0, 1).
      describe: JSON data that decides the documents (corpus, path, file versions, ...). A `command` in it says how to
        make the store again; it is kept for error messages and may change.
      progress: called with the documents and tokens so far, after every batch.

    Returns:
      The manifest: per split `documents`, `tokens`, `bytes` (of the `.bin`), `text_bytes`, `max_id`, `sha256`
      (of the `.bin`) and `sampled_sha256` (`cpt.data.store.sampled_hash`).

    Raises:
      ConfigError: `validation` out of range.
      DataError: no documents, or none for one of the splits; `out` holds another finished store; disk full.
    """
    if not 0 <= validation < 1:
        raise ConfigError(f"validation: {validation} is out of range (0 <= share < 1)")
    identity = {
        "description": {k: v for k, v in describe.items() if k != "command"},
        "tokenizer": {k: getattr(tokenizer, k) for k in ("kind", "hash", "vocab_size", "eod_token", "eod_id")},
        "validation": validation,
    }
    if (manifest := finished(out, identity)) is not None:  # needs no lock, and no right to write either
        return manifest
    try:
        with locked(out / ".lock") as alone:
            if (manifest := finished(out, identity)) is not None:
                return manifest
            # From here to the new manifest the folder is unfinished, whatever stops us.
            (out / MANIFEST).unlink(missing_ok=True)
            for left_behind in out.glob("*.tmp") if alone else ():  # by a process that was killed
                left_behind.unlink(missing_ok=True)
            splits = _write_splits(documents, tokenizer, out, validation, progress)
            tokenizer.save(out / "tokenizer.json")
            made = {"splits": splits, "versions": _versions(), "command": describe.get("command")}
            write_manifest(out, {**identity, **made})
            return read_manifest(out)
    except OSError as e:
        what = "the disk is full" if e.errno == errno.ENOSPC else e.strerror or str(e)
        raise DataError(f"{e.filename or out}: {what}; make room or mend it, then run the same again") from e


def finished(out: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The manifest of the finished, undamaged store in `out` that agrees with `identity`, or `None` if it must be made.

    Raises:
      DataError: there is a finished store of something else, which is not overwritten.
    """
    try:
        manifest = read_manifest(out)
    except DataError:
        return None
    if not manifest:
        return None
    differing = [k for k, v in identity.items() if manifest.get(k) != v]
    if differing:
        raise DataError(f"{out}: holds a finished store with another {differing[0]}; remove it, or name another folder")
    try:
        for split in manifest["splits"]:
            TokenStore.open(out / split).verify()
    except DataError:
        return None
    return manifest if (out / "tokenizer.json").is_file() else None


def _write_splits(
    documents: Iterable[str], tokenizer: Tokenizer, out: Path, validation: float, progress: Progress | None
) -> dict[str, Any]:
    names = ["train", "validation"] if validation else ["train"]
    dtype = token_dtype(tokenizer.vocab_size)
    end = np.asarray([tokenizer.eod_id])
    text_bytes = dict.fromkeys(names, 0)
    with contextlib.ExitStack() as stack:
        writers = {name: stack.enter_context(Writer(out / name, dtype)) for name in names}
        for batch in _batches(documents):
            for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
                encoded = text.encode()
                name = "validation" if _share(encoded) < validation else "train"
                writers[name].add(np.concatenate([ids, end]))
                text_bytes[name] += len(encoded)
            if progress is not None:
                progress(sum(w.n_documents for w in writers.values()), sum(w.n_tokens for w in writers.values()))
        _check_splits({name: w.n_documents for name, w in writers.items()}, out, validation)
    if not validation:
        for path in paths(out / "validation"):  # of an earlier, unfinished attempt with one
            path.unlink(missing_ok=True)
    return {name: _split_entry(out / name, writers[name], text_bytes[name]) for name in names}


def _split_entry(prefix: Path, writer: Writer, text_bytes: int) -> dict[str, Any]:
    bin_path, _ = paths(prefix)
    with bin_path.open("rb") as f:
        sha256 = hashlib.file_digest(f, "sha256").hexdigest()
    counts = {"documents": writer.n_documents, "tokens": writer.n_tokens, "max_id": writer.max_id}
    size = {"bytes": bin_path.stat().st_size, "text_bytes": text_bytes}
    return {**counts, **size, "sha256": sha256, "sampled_sha256": sampled_hash(prefix)}


def _check_splits(documents: Mapping[str, int], out: Path, validation: float) -> None:
    total = sum(documents.values())
    if not total:
        raise DataError(f"{out}: the corpus has no documents with text in them; check its path and text_field")
    for name, n in documents.items():
        if not n:
            raise DataError(
                f"{out}: with validation={validation:g} none of the {total:,} documents went to {name}; "
                "change the share, set it to 0, or cut documents with max_chars"
            )


def _share(encoded: bytes) -> float:
    """A number in [0, 1) that depends on the text only, evenly spread over texts."""
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=6).digest(), "big") / 2**48


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch, characters = [], 0
    for document in documents:
        if not document.strip():
            continue
        batch.append(well_formed(document))
        characters += len(document)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in ("numpy", "tokenizers")}


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """One process at a time: a second one that wants the same store waits and then finds it finished.

    Yields whether the lock was given.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as e:
        raise DataError(f"{path.parent}: cannot be written ({e.strerror}); name another folder") from e
    with file:
        # Some network file systems have no locks; then two processes may do the same work, into files of their own.
        alone = False
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
            alone = True
        yield alone
