"""A token store: one long row of token ids on disk, cut into rows of any length when they are read.

The ids lie in a Megatron pair (see `megatron.py`). A folder made by `cpt.prepare` holds a `train` and perhaps a
`validation` pair, the tokenizer that made them and a manifest that says what they are; any other pair opens as well.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cpt.data.megatron import open_pair, paths
from cpt.errors import DataError

MANIFEST = "manifest.json"
READ_WHOLE = 1 << 28  # bytes: a fraction of a second
_BLOCK = 1 << 22  # tokens or bytes that are read at a time


@dataclass(frozen=True, eq=False)
class TokenStore:
    """All tokens of one split of one source, documents one after the other.

    Attributes:
      prefix: path of the pair without its suffix.
      tokens: every id, 1-D, memory-mapped and read-only.
      manifest: the manifest of the folder, empty for a bare Megatron pair.
    """

    prefix: Path
    tokens: np.ndarray
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, prefix: str | Path) -> TokenStore:
        """Open the pair `prefix.bin`, `prefix.idx` (`prefix` may end in either suffix).

        Raises:
          DataError: a file is missing or damaged, or does not have the size that the manifest beside it says.
        """
        prefix = Path(prefix).expanduser()
        if prefix.suffix in (".bin", ".idx"):
            prefix = prefix.with_suffix("")
        manifest = read_manifest(prefix.parent)
        # A pair that the manifest does not list is a bare one that happens to lie beside it.
        manifest = manifest if prefix.name in manifest.get("splits", {}) else {}
        if manifest:
            _check_size(prefix, manifest)
        return cls(prefix, open_pair(prefix).tokens, manifest)

    def __reduce__(self) -> tuple:
        # A worker process opens the files itself; pickling the array would copy every token to it.
        return TokenStore.open, (self.prefix,)

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    @property
    def _split(self) -> Mapping[str, Any]:
        return self.manifest["splits"][self.prefix.name] if self.manifest else {}

    def rows(self, length: int) -> int:
        """How many rows of `length` predictions there are.

        Row r holds the `length + 1` tokens from `r * length` on: it shares its first token with the row before it, so
        that each token of the store but the first is predicted exactly once (less a remainder shorter than a row).
        """
        return max(0, (self.n_tokens - 1) // length)

    def read_rows(self, row_ids: np.ndarray, length: int) -> np.ndarray:
        """Rows by number.

        Args:
          row_ids: integers `[n]`, each in `[0, rows(length))`.
          length: predictions per row.

        Returns:
          int32 `[n, length + 1]`.

        Raises:
          IndexError: a row that does not exist.
        """
        row_ids = np.asarray(row_ids, np.int64)
        if row_ids.size and not 0 <= row_ids.min() <= row_ids.max() < self.rows(length):
            raise IndexError(f"{self.prefix}: rows {row_ids.min()} to {row_ids.max()} of {self.rows(length)}")
        return self.tokens[row_ids[:, None] * length + np.arange(length + 1)].astype(np.int32)

    def document_at(self, positions: np.ndarray) -> np.ndarray:
        """Number of the document that the token at each position belongs to, int64 like `positions`."""
        files = open_pair(self.prefix)
        # The last boundary is the end; an empty document begins where the next one does and holds no token.
        starts = files.pointers[np.asarray(files.documents[:-1])] // files.tokens.dtype.itemsize
        return np.searchsorted(starts, np.asarray(positions, np.int64), side="right") - 1

    def max_id(self) -> int:
        """The largest id (-1 in an empty store): from the manifest, else found by reading everything, once."""
        return self._max_id

    @cached_property
    def _max_id(self) -> int:
        if self.manifest:
            return self._split["max_id"]
        return max((int(self.tokens[i : i + _BLOCK].max()) for i in range(0, self.n_tokens, _BLOCK)), default=-1)

    @cached_property
    def fingerprint(self) -> str:
        """Which tokens these are: sha256 of the `.bin` from the manifest, else `sampled_hash` of the pair."""
        return self._split["sha256"] if self.manifest else sampled_hash(self.prefix)

    def verify(self) -> None:
        """Compare the tokens with the manifest: all of them up to `READ_WHOLE` bytes, samples of a larger store.

        Raises:
          DataError: they are not the ones that were written.
        """
        bin_path, _ = paths(self.prefix)
        if not self.manifest:
            return
        if bin_path.stat().st_size <= READ_WHOLE:
            with bin_path.open("rb") as f:
                same = hashlib.file_digest(f, "sha256").hexdigest() == self._split["sha256"]
        else:
            same = self._split.get("sampled_sha256") in (None, sampled_hash(self.prefix))
        if not same:
            raise DataError(
                f"{bin_path}: not the tokens that its manifest says (changed or damaged since it was written); "
                f"{remedy(self.prefix.parent, self.manifest)}"
            )


def sampled_hash(prefix: str | Path, blocks: int = 64, block_bytes: int = 1 << 16) -> str:
    """sha256 over the size of the `.bin`, the whole `.idx` and evenly spaced blocks of the `.bin`, ends included.

    A large foreign store is identified in seconds rather than hours. The index holds the length of every document, so
    other data nearly always shows; a few changed ids between two samples do not.
    """
    bin_path, idx_path = paths(prefix)
    size = bin_path.stat().st_size
    digest = hashlib.sha256(size.to_bytes(8, "little"))
    with idx_path.open("rb") as f:
        while block := f.read(_BLOCK):
            digest.update(block)
    with bin_path.open("rb") as f:
        for i in range(blocks):
            f.seek(max(0, size - block_bytes) * i // (blocks - 1))
            digest.update(f.read(block_bytes))
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
    except (OSError, ValueError) as e:
        raise DataError(f"{path}: cannot be read ({e}); {remedy(folder)}") from e
    if not isinstance(manifest, dict) or "splits" not in manifest:
        return {}
    if manifest.get("complete") is not True:
        raise DataError(f"{path}: not the manifest of a finished store; {remedy(folder)}")
    return manifest


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write it with `complete: true`, whole or not at all."""
    temporary = folder / f"{MANIFEST}.{os.getpid()}.tmp"
    with temporary.open("w", encoding="utf-8") as f:
        json.dump({**manifest, "complete": True}, f, indent=2, sort_keys=True)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, folder / MANIFEST)


def remedy(folder: Path, manifest: Mapping[str, Any] | None = None) -> str:
    """How to mend the store in `folder`: the command that made it, where the manifest tells."""
    command = (manifest or {}).get("command")
    return f"run `{command}`" if command else f"remove {folder} and make it again with `python -m cpt.prepare`"


def _check_size(prefix: Path, manifest: Mapping[str, Any]) -> None:
    bin_path, _ = paths(prefix)
    if not bin_path.is_file():
        raise DataError(f"{bin_path}: listed in {MANIFEST}, but missing; {remedy(prefix.parent, manifest)}")
    difference = bin_path.stat().st_size - manifest["splits"][prefix.name]["bytes"]
    if difference:
        how = f"{abs(difference):,} bytes {'shorter' if difference < 0 else 'longer'}"
        raise DataError(f"{bin_path}: {how} than its manifest says; {remedy(prefix.parent, manifest)}")
