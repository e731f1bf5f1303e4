"""The manifest of a token store: what it is, and how one tells that it still is that."""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cpt.data.megatron import bin_paths, paths
from cpt.errors import DataError

MANIFEST = "manifest.json"
_BLOCK = 1 << 22  # bytes that are read at a time


def file_hash(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def sampled_hash(prefix: str | Path, blocks: int = 64, block_bytes: int = 1 << 16) -> str:
    """sha256 over the size of the `.bin`, the whole `.idx` and evenly spaced blocks of the `.bin`, ends included.

    A large foreign store is identified in seconds rather than hours. The index holds the length of every document, so
    other data nearly always shows; a few changed ids between two samples do not.
    """
    idx_path, pieces = paths(prefix)[1], bin_paths(prefix)
    sizes = [p.stat().st_size for p in pieces]
    size = sum(sizes)
    digest = hashlib.sha256(size.to_bytes(8, "little"))
    with idx_path.open("rb") as f:
        while block := f.read(_BLOCK):
            digest.update(block)
    ends = np.cumsum(sizes).tolist()
    for i in range(blocks):
        at = max(0, size - block_bytes) * i // (blocks - 1)
        left = min(block_bytes, size - at)
        while left:
            piece = bisect_right(ends, at)
            with pieces[piece].open("rb") as f:
                f.seek(at - ends[piece] + sizes[piece])
                block = f.read(left)
            digest.update(block)
            at, left = at + len(block), left - len(block)
    return digest.hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The finished manifest in `folder`, or `{}` where there is none (or one of something else, without splits).

    Raises:
      DataError: it is not one, or it is not marked complete.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as e:
        raise DataError(f"{path}: cannot be read ({e}); {remedy(folder)}") from e
    if not isinstance(manifest, dict) or "splits" not in manifest:
        return {}
    if manifest.get("complete") is not True:
        raise DataError(f"{path}: not the manifest of a finished store; {remedy(folder)}")
    if manifest.get("digest") != manifest_digest(manifest):
        raise DataError(f"{path}: changed or damaged since it was written; {remedy(folder)}")
    return manifest


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Write it with `complete: true` and its own digest, whole or not at all; returns what was written."""
    whole = {**manifest, "complete": True}
    whole["digest"] = manifest_digest(whole)
    temporary = folder / f"{MANIFEST}.{os.getpid()}.tmp"
    with temporary.open("w", encoding="utf-8") as f:
        json.dump(whole, f, indent=2, sort_keys=True)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, folder / MANIFEST)
    return whole


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """sha256 of the manifest without its digest: a damaged count in it would be believed otherwise."""
    content = {k: v for k, v in manifest.items() if k != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def remedy(folder: Path, manifest: Mapping[str, Any] | None = None) -> str:
    """How to mend the store in `folder`: the command that made it, where the manifest tells."""
    command = (manifest or {}).get("command")
    return f"run `{command}`" if command else f"remove {folder} and make it again with `python -m cpt.prepare`"


def domain_entries(shards: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Counts by domain over the shards of a split."""
    out: dict[str, dict[str, int]] = {}
    for shard in shards:
        counts = out.setdefault(shard["domain"], dict.fromkeys(("documents", "tokens", "text_bytes"), 0))
        for key in counts:
            counts[key] += shard[key]
    return out
