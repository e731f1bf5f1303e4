"""A token store: one long row of token ids on disk, cut into rows of any length when they are read.

The ids lie in Megatron pairs (see `megatron.py`), the shards. A folder made by `cpt.prepare` holds those of the splits
`train`, `validation` and `replay_holdout`, each domain in shards of its own, the tokenizer that made them, and a
manifest that says what they are; any other pair opens as well.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cpt.data.manifest import MANIFEST, file_hash, read_manifest, remedy, sampled_hash
from cpt.data.megatron import TokenFiles, open_pair, paths
from cpt.errors import ConfigError, DataError, nearest

SPLITS = ("train", "validation", "replay_holdout")
READ_WHOLE = 1 << 28  # bytes: a fraction of a second
_BLOCK = 1 << 22  # tokens that are read at a time


@dataclass(frozen=True, eq=False)
class Shard:
    """One pair of a store; `entry` is what the manifest says of it, empty for a bare pair."""

    prefix: Path
    entry: Mapping[str, Any]

    @cached_property
    def files(self) -> TokenFiles:
        """Opened when first needed: a store may have a thousand shards."""
        return open_pair(self.prefix)

    @cached_property
    def n_tokens(self) -> int:
        return self.entry["tokens"] if self.entry else len(self.files.tokens)

    @cached_property
    def n_documents(self) -> int:
        return self.entry["documents"] if self.entry else self.files.n_documents

    @property
    def domain(self) -> str:
        return self.entry.get("domain", "")

    def __reduce__(self) -> tuple:
        return Shard, (self.prefix, self.entry)  # another process opens the files itself


@dataclass(frozen=True, eq=False)
class TokenStore:
    """All tokens of one split of one source, documents one after the other.

    Attributes:
      shards: its pairs, in order.
      split: which split of the manifest it is.
      manifest: the manifest of the folder, empty for a bare Megatron pair.
      folder: where it lies.
      first, n_tokens: the part of the shards' tokens that it is.
      whole_rows: whether rows are the stored sequences as they are (Pythia's hold 2,049 tokens) rather than cut anew.
    """

    shards: tuple[Shard, ...]
    split: str
    manifest: Mapping[str, Any]
    folder: Path
    first: int
    n_tokens: int
    whole_rows: bool = False

    @classmethod
    def open(cls, path: str | Path, split: str = "train") -> TokenStore:
        """Open a split of the store in the folder `path`, or the bare Megatron pair with the prefix `path`.

        Args:
          path: a folder with a manifest, or a prefix, which may end in `.bin` or `.idx`.
          split: of a folder.

        Raises:
          DataError: a file is missing or damaged, or does not have the size that the manifest says; no such split.
        """
        path = Path(path).expanduser()
        if path.is_dir():
            return cls._open_folder(path, split)
        prefix = path.with_suffix("") if path.suffix in (".bin", ".idx") else path
        shard = Shard(prefix, {})
        return cls((shard,), split, {}, prefix, 0, shard.n_tokens)

    @classmethod
    def _open_folder(cls, folder: Path, split: str) -> TokenStore:
        manifest = read_manifest(folder)
        if not manifest:
            raise DataError(f"{folder}: holds no finished store; make it with `python -m cpt.prepare`")
        if split not in manifest["splits"]:
            offered = ", ".join(manifest["splits"])
            raise DataError(
                f"{folder}: has no split '{split}'{nearest(split, manifest['splits'])}  (it has: {offered})"
            )
        shards = tuple(Shard(folder / entry["name"], entry) for entry in manifest["splits"][split]["shards"])
        for shard in shards:
            _check_size(shard, manifest)
        return cls(shards, split, manifest, folder, 0, sum(s.n_tokens for s in shards))

    def view(
        self, domain: str | None = None, skip_tokens: int = 0, take_tokens: int | None = None, whole_rows: bool = False
    ) -> TokenStore:
        """A part of the store that reads like one.

        Args:
          domain: only the documents of this domain.
          skip_tokens, take_tokens: leave out the first so many tokens, then take so many (all the rest by default).
          whole_rows: see the class.

        Raises:
          DataError: no such domain, no tokens left.
        """
        shards = self.shards
        if domain is not None:
            shards = tuple(s for s in shards if s.domain == domain)
            if not shards:
                offered = ", ".join(self.domains)
                raise DataError(
                    f"{self.folder}: no domain '{domain}'{nearest(domain, self.domains)}  (it has: {offered})"
                )
        there = sum(s.n_tokens for s in shards) if domain is not None else self.n_tokens
        n_tokens = there - skip_tokens if take_tokens is None else take_tokens
        if not (skip_tokens >= 0 and 0 < n_tokens <= there - skip_tokens):
            asked = "all" if take_tokens is None else f"{take_tokens:,}"
            raise DataError(f"{self.folder}: holds {there:,} tokens; skip_tokens={skip_tokens:,} leaves no {asked}")
        first = skip_tokens if domain is not None else self.first + skip_tokens
        return replace(self, shards=shards, first=first, n_tokens=n_tokens, whole_rows=whole_rows)

    # ---- tokens and rows ----
    @cached_property
    def _ends(self) -> list[int]:
        return np.cumsum([s.n_tokens for s in self.shards], dtype=np.int64).tolist()

    def read(self, start: int, count: int) -> np.ndarray:
        """The tokens `start .. start + count - 1`, int32.

        Raises:
          IndexError: beyond the end.
          DataError: a shard vanished or was cut off.
        """
        out = np.empty(count, np.int32)
        self._read_into(out, start)
        return out

    def _read_into(self, out: np.ndarray, start: int) -> None:
        if not 0 <= start <= start + len(out) <= self.n_tokens:
            raise IndexError(f"{self.folder}: tokens {start} to {start + len(out)} of {self.n_tokens}")
        position, done = self.first + start, 0
        while done < len(out):
            i = bisect_right(self._ends, position)
            count = min(len(out) - done, self._ends[i] - position)
            shard = self.shards[i]
            out[done : done + count] = shard.files.tokens.read(position - self._ends[i] + shard.n_tokens, count)
            position, done = position + count, done + count

    def _stride(self, length: int) -> int:
        if not self.whole_rows:
            return length
        if self._sequence_length != length + 1:
            raise ConfigError(
                f"batch.length: {length}; the rows of {self.folder} hold {self._sequence_length} tokens, which is "
                f"batch.length={self._sequence_length - 1} (or leave `rows` at packed)"
            )
        return length + 1

    @cached_property
    def _sequence_length(self) -> int:
        lengths = {n for s in self.shards for n in (int(s.files.sizes.min()), int(s.files.sizes.max()))}
        if len(lengths) != 1:
            raise DataError(
                f"{self.folder}: rows=stored needs sequences of one length, these have {min(lengths)} to {max(lengths)}"
            )
        return lengths.pop()

    def rows(self, length: int) -> int:
        """How many rows of `length` predictions there are.

        Row r holds the `length + 1` tokens from `r * length` on: it shares its first token with the row before it, so
        that each token of the store but the first is predicted exactly once (less a remainder shorter than a row).
        With `whole_rows` it is stored sequence r.
        """
        return self.n_tokens // self._stride(length) if self.whole_rows else max(0, (self.n_tokens - 1) // length)

    def read_rows(self, row_ids: np.ndarray, length: int) -> np.ndarray:
        """Rows by number.

        Args:
          row_ids: integers `[n]`, each in `[0, rows(length))`.
          length: predictions per row.

        Returns:
          int32 `[n, length + 1]`.

        Raises:
          IndexError: a row that does not exist.
          DataError: a shard vanished or was cut off.
        """
        row_ids = np.asarray(row_ids, np.int64)
        if row_ids.size and not 0 <= row_ids.min() <= row_ids.max() < self.rows(length):
            raise IndexError(f"{self.folder}: rows {row_ids.min()} to {row_ids.max()} of {self.rows(length)}")
        stride = self._stride(length)
        out = np.empty((len(row_ids), length + 1), np.int32)
        for row, i in zip(out, row_ids.tolist(), strict=True):
            self._read_into(row, i * stride)
        return out

    def first_token(self, row_ids: np.ndarray, length: int) -> np.ndarray:
        """Position of the first token of each row, int64."""
        return np.asarray(row_ids, np.int64) * self._stride(length)

    # ---- documents and domains ----
    @cached_property
    def _document_ends(self) -> list[int]:
        return np.cumsum([s.n_documents for s in self.shards], dtype=np.int64).tolist()

    @property
    def n_documents(self) -> int:
        """Documents in its shards (a part of them may lie outside of `skip_tokens` and `take_tokens`)."""
        return self._document_ends[-1] if self.shards else 0

    def document_at(self, positions: np.ndarray) -> np.ndarray:
        """Number of the document that the token at each position belongs to, int64 like `positions`."""
        positions = np.asarray(positions, np.int64) + self.first
        shard_of = np.searchsorted(self._ends, positions, side="right")
        out = np.empty(positions.shape, np.int64)
        for i in np.unique(shard_of):
            shard, mine = self.shards[i], shard_of == i
            inside = positions[mine] - (self._ends[i] - shard.n_tokens)
            # An empty document begins where the next one does and holds no token.
            found = np.searchsorted(shard.files.starts, inside, side="right") - 1
            out[mine] = found + self._document_ends[i] - shard.n_documents
        return out

    def domain_of(self, documents: np.ndarray) -> list[str]:
        """Domain of each document number, "" where the store has none."""
        return [self.shards[i].domain for i in np.searchsorted(self._document_ends, documents, side="right")]

    @property
    def domains(self) -> tuple[str, ...]:
        """The names of its domains, in the order of the store."""
        return tuple(dict.fromkeys(s.domain for s in self.shards if s.domain))

    def documents(self, first: int = 0, last: int | None = None) -> Iterator[tuple[int, str, np.ndarray]]:
        """(number, domain, ids) of the documents `first .. last - 1` of its shards, end-of-document ids included."""
        last, before = self.n_documents if last is None else last, 0
        for shard in self.shards:
            low, high = max(first - before, 0), min(last - before, shard.n_documents)
            ends = np.append(shard.files.starts, shard.n_tokens) if low < high else ()
            for i in range(low, high):
                yield before + i, shard.domain, shard.files.tokens[ends[i] : ends[i + 1]].astype(np.int32)
            before += shard.n_documents

    # ---- identity ----
    @property
    def _entry(self) -> Mapping[str, Any]:
        return self.manifest["splits"][self.split] if self.manifest else {}

    def max_id(self) -> int:
        """The largest id (-1 in an empty store): from the manifest, else found by reading, once.

        Of a bare pair of more than `READ_WHOLE` bytes only samples are read; the loader looks at every batch.
        """
        return self._max_id

    @cached_property
    def _max_id(self) -> int:
        if self.manifest:
            return self._entry["max_id"]
        blocks = range(0, self.n_tokens, _BLOCK)
        if self.n_tokens * 2 > READ_WHOLE:
            blocks = [blocks[i] for i in np.linspace(0, len(blocks) - 1, 16).astype(int)]
        return max((int(self.read(i, min(_BLOCK, self.n_tokens - i)).max()) for i in blocks), default=-1)

    @cached_property
    def fingerprint(self) -> str:
        """Which tokens these are: sha256 over those of the shards, or `sampled_hash` of a bare pair, and the part."""
        hashes = [s.entry["sha256"] if s.entry else sampled_hash(s.prefix) for s in self.shards]
        there = sum(s.n_tokens for s in self.shards)
        part = [] if (self.first, self.n_tokens) == (0, there) else [self.first, self.n_tokens]
        if len(hashes) == 1 and not part and not self.whole_rows:
            return hashes[0]
        return hashlib.sha256(json.dumps([hashes, part, self.whole_rows]).encode()).hexdigest()

    def verify(self) -> None:
        """Compare the tokens with the manifest: all of them up to `READ_WHOLE` bytes, samples of a larger store.

        Raises:
          DataError: they are not the ones that were written.
        """
        if not self.manifest:
            return
        whole = sum(s.entry["bytes"] for s in self.shards) <= READ_WHOLE
        for shard in self.shards:
            found = file_hash(paths(shard.prefix)[0]) if whole else sampled_hash(shard.prefix)
            # The samples take the index in.
            if found != shard.entry["sha256" if whole else "sampled_sha256"] or (whole and not _same_index(shard)):
                raise DataError(
                    f"{paths(shard.prefix)[0]}: not the tokens that its manifest says (changed or damaged since it was "
                    f"written); {remedy(self.folder, self.manifest)}"
                )


def _same_index(shard: Shard) -> bool:
    return file_hash(paths(shard.prefix)[1]) == shard.entry["index_sha256"]


def _check_size(shard: Shard, manifest: Mapping[str, Any]) -> None:
    folder = shard.prefix.parent
    for path in paths(shard.prefix):
        if not path.is_file():
            raise DataError(f"{path}: listed in {MANIFEST}, but missing; {remedy(folder, manifest)}")
    bin_path = paths(shard.prefix)[0]
    if difference := bin_path.stat().st_size - shard.entry["bytes"]:
        how = f"{abs(difference):,} bytes {'shorter' if difference < 0 else 'longer'}"
        raise DataError(f"{bin_path}: {how} than its manifest says; {remedy(folder, manifest)}")
