"""Writes a token store in pieces that survive: what is committed is kept, whatever stops the process.

Documents gather in memory. A commit appends them to the shards, brings those to the disk and then, in one transaction
of a small SQLite file beside them, notes how long each shard is, how far the input was read and which documents were
seen. After a kill the shards are cut back to what the journal says, so the rest of the work gives the same bytes as if
nothing had happened. The manifest comes last; until it is there the folder holds no store.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import re
import sqlite3
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from cpt.data.disk import disk_errors, locked
from cpt.data.manifest import MANIFEST, domain_entries, file_hash, read_manifest, sampled_hash, write_manifest
from cpt.data.megatron import checked, paths, sync, token_dtype, write_index
from cpt.data.shard import ShardState, stem
from cpt.data.store import TokenStore
from cpt.data.tokenizers._base import Tokenizer
from cpt.errors import DataError

FORMAT = 2
JOURNAL = "journal.sqlite"
SHARD_TOKENS = 1 << 28  # half a gigabyte of uint16
MOST_DOMAINS = 1000
NOTHING_SEEN = "0"
COUNTS = ("documents", "tokens", "bytes", "text_bytes")
_OURS = re.compile(r"(train|validation|replay_holdout)(-.+)?-\d{5}\.(bin|idx|sizes)$")


class StoreWriter:
    """`with StoreWriter(...) as w: w.add("train", domain, ids, text_bytes); ...; w.finish()`.

    Entering takes the folder's lock and goes on from the last commit if there is one of the same `identity`; `position`
    is then what was given to that commit, else None. Leaving without `finish` keeps what is committed. Where the folder
    holds the finished store already, `done` is its manifest, and there is nothing to write.

    Args:
      out: folder of the store; made if need be.
      tokenizer: which made the ids; it is kept beside them.
      identity: JSON data that decides the content, `tokenizer` and `format` added to it; stored in the manifest.
      splits: names of the splits.
      shard_tokens: a shard is closed before the document that would take it beyond this.
      command: makes the store again; for error messages.

    Raises:
      DataError: `out` holds a finished store of something else, or cannot be written.
    """

    def __init__(
        self,
        out: Path,
        tokenizer: Tokenizer,
        identity: Mapping[str, Any],
        splits: tuple[str, ...],
        shard_tokens: int = SHARD_TOKENS,
        command: str | None = None,
    ):
        self.out, self.tokenizer, self.splits, self.command = out, tokenizer, splits, command
        self.shard_tokens = shard_tokens
        self.identity = whole_identity(identity, tokenizer, shard_tokens)
        self.dtype = token_dtype(tokenizer.vocab_size).newbyteorder("<")
        self.done: dict[str, Any] | None = None
        self.position: Any = None
        self.counters: dict[str, Any] = {}
        self.waiting_tokens = 0  # that are not committed
        self._seen = NOTHING_SEEN
        self.shards: dict[str, list[ShardState]] = {}
        self._stack = contextlib.ExitStack()
        self._domains: set[str] = set()

    def __enter__(self) -> StoreWriter:
        with disk_errors(self.out):
            self._stack.enter_context(locked(self.out / ".lock"))
            try:
                self.done = finished(self.out, self.identity)
                if self.done is None:
                    # From here to the new manifest the folder is unfinished, whatever stops us.
                    (self.out / MANIFEST).unlink(missing_ok=True)
                    if not self._resume():
                        self._begin()
            except BaseException:
                self._stack.close()
                raise
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    # ---- writing ----
    @property
    def n_tokens(self) -> int:
        return sum(s.tokens for shards in self.shards.values() for s in shards)

    @property
    def n_documents(self) -> int:
        return sum(s.documents for shards in self.shards.values() for s in shards)

    def is_new(self, key: bytes) -> bool:
        """Whether this key was not asked for before, also before a kill; it is remembered from now on."""
        new = self._journal.execute("INSERT OR IGNORE INTO seen VALUES (?)", (key,)).rowcount == 1
        if new:
            self._seen = mark(self._seen, key)
        return new

    def add(self, split: str, domain: str, ids: np.ndarray, text_bytes: int) -> None:
        """Append one document, its end-of-document id included.

        Raises:
          DataError: an id that the tokenizer does not have, too many domains.
        """
        shards = self.shards.setdefault(stem(split, domain), [])
        if not shards or (shards[-1].tokens and shards[-1].tokens + len(ids) > self.shard_tokens):
            self._check_domain(domain)
            shards.append(ShardState(f"{stem(split, domain)}-{len(shards):05d}", domain))
        shard = shards[-1]
        highest = checked(ids, self.dtype, self.out / f"{shard.name}.bin")
        if highest >= self.tokenizer.vocab_size:
            raise DataError(f"{self.out}: token id {highest} is not one of the tokenizer's {self.tokenizer.vocab_size}")
        shard.waiting.append(np.asarray(ids, self.dtype))
        self.waiting_tokens += len(ids)
        shard.documents, shard.tokens = shard.documents + 1, shard.tokens + len(ids)
        shard.text_bytes, shard.max_id = shard.text_bytes + text_bytes, max(shard.max_id, highest)

    def commit(self, position: Any) -> None:
        """Bring everything so far to the disk; `position` (JSON data) says where the input goes on."""
        with disk_errors(self.out):
            for shards in self.shards.values():
                for shard in shards:
                    self._append(shard)
                for shard in shards[:-1]:
                    shard.closed = shard.closed or self._close(shard)
            self._note(position)

    def finish(self, **more: Any) -> dict[str, Any]:
        """Close the shards, write tokenizer and manifest, and return the manifest; `more` are fields of it."""
        with disk_errors(self.out):
            for shards in self.shards.values():
                for shard in shards:
                    self._append(shard)
                    shard.closed = shard.closed or self._close(shard)
            self._note(self.position)
            self.tokenizer.save(self.out / "tokenizer.json")
            splits = {split: self._split_entry(split) for split in self.splits}
            write_manifest(
                self.out, {**self.identity, "splits": splits, "versions": _versions(), "command": self.command, **more}
            )
            self._journal.close()
            for path in (*self.out.glob("*.sizes"), *self.out.glob(f"{JOURNAL}*")):
                path.unlink(missing_ok=True)
            return read_manifest(self.out)

    def _check_domain(self, domain: str) -> None:
        self._domains.add(domain)
        if len(self._domains) > MOST_DOMAINS:
            raise DataError(
                f"{self.out}: more than {MOST_DOMAINS:,} domains, such as '{domain}'; is the domain field one that "
                "differs in every document?"
            )

    def _append(self, shard: ShardState) -> None:
        if not shard.waiting:
            return
        sizes = np.array([len(ids) for ids in shard.waiting], "<i4")
        for suffix, content in (("bin", np.concatenate(shard.waiting)), ("sizes", sizes)):
            with (self.out / f"{shard.name}.{suffix}").open("ab") as f:
                f.write(content.data)
                sync(f)
            shard.digests[suffix].update(content.data)
        shard.waiting.clear()

    def _close(self, shard: ShardState) -> dict[str, Any]:
        """Write the index of a shard that will not grow any more; what the manifest says of it."""
        prefix = self.out / shard.name
        bin_path, idx_path = paths(prefix)
        sizes = (self.out / f"{shard.name}.sizes").read_bytes()
        if hashlib.sha256(sizes).digest() != shard.digests["sizes"].digest():
            raise DataError(
                f"{prefix}.sizes: changed while the store was written; is the disk sound? Run the same again"
            )
        write_index(idx_path, np.frombuffer(sizes, "<i4"), self.dtype)
        return {
            **{k: getattr(shard, k) for k in ("name", "domain", "documents", "tokens", "text_bytes", "max_id")},
            "bytes": bin_path.stat().st_size,
            "sha256": shard.digests["bin"].hexdigest(),
            "index_sha256": file_hash(idx_path),
            "sampled_sha256": sampled_hash(prefix),
        }

    def _split_entry(self, split: str) -> dict[str, Any]:
        ours = sorted((k, v) for k, v in self.shards.items() if re.fullmatch(rf"{split}(-.*)?", k))
        entries = [shard.closed for _, shards in ours for shard in shards]
        totals = {key: sum(e[key] for e in entries) for key in COUNTS}
        return {
            **totals,
            "max_id": max((e["max_id"] for e in entries), default=-1),
            "domains": domain_entries(entries),
            "shards": entries,
        }

    # ---- the journal ----
    def _begin(self) -> None:
        """An empty store: nothing of an attempt that was another one is left in the folder."""
        self.shards, self._seen = {}, NOTHING_SEEN
        for path in self.out.iterdir():
            if _OURS.fullmatch(path.name) or path.name.startswith(JOURNAL) or path.name.endswith(".tmp"):
                path.unlink()
        self._journal = self._open_journal()
        self._journal.execute("CREATE TABLE state (key TEXT PRIMARY KEY, value TEXT)")
        self._journal.execute("CREATE TABLE seen (key BLOB PRIMARY KEY) WITHOUT ROWID")
        self._journal.execute("INSERT INTO state VALUES ('identity', ?)", (_canonical(self.identity),))
        self._note(None)

    def _open_journal(self) -> sqlite3.Connection:
        journal = sqlite3.connect(self.out / JOURNAL, isolation_level=None)
        self._stack.callback(journal.close)
        journal.execute("PRAGMA synchronous=FULL")
        journal.execute("PRAGMA cache_size=-65536")  # KiB: constant memory, whatever was seen
        journal.execute("BEGIN")
        return journal

    def _note(self, position: Any) -> None:
        shards = {k: [s.to_json() for s in shards] for k, shards in self.shards.items()}
        state = _canonical({"position": position, "counters": self.counters, "shards": shards, "seen": self._seen})
        signed = hashlib.sha256(state.encode()).hexdigest() + state
        self._journal.execute("INSERT OR REPLACE INTO state VALUES ('state', ?)", (signed,))
        self._journal.execute("COMMIT")
        self._journal.execute("BEGIN")
        self.position, self.waiting_tokens = position, 0

    def _resume(self) -> bool:
        """Go on from the journal's last commit, if it is one of this very store and the shards hold what it says."""
        if not (self.out / JOURNAL).is_file():
            return False
        try:
            self._journal = self._open_journal()
            rows = dict(self._journal.execute("SELECT key, value FROM state"))
            if rows.get("identity") != _canonical(self.identity):
                return False
            digest, text = rows["state"][:64], rows["state"][64:]
            state = json.loads(text)
            for (key,) in self._journal.execute("SELECT key FROM seen"):
                self._seen = mark(self._seen, key)
            sound = hashlib.sha256(text.encode()).hexdigest() == digest and self._seen == state["seen"]
            if not (sound and self._take_up(state["shards"])):
                return False
        except (sqlite3.DatabaseError, KeyError, TypeError, ValueError):
            return False
        known = {f"{s.name}.bin" for shards in self.shards.values() for s in shards}
        for path in self.out.glob("*.bin"):  # begun after the last commit
            if _OURS.fullmatch(path.name) and path.name not in known:
                for suffix in (".bin", ".sizes", ".idx"):
                    path.with_suffix(suffix).unlink(missing_ok=True)
        self.position, self.counters = state["position"], state["counters"]
        self._domains = {s.domain for shards in self.shards.values() for s in shards}
        return True

    def _take_up(self, kept: Mapping[str, list[dict[str, Any]]]) -> bool:
        for key, entries in kept.items():
            self.shards[key] = [ShardState(entry["name"], entry["domain"]) for entry in entries]
            for shard, entry in zip(self.shards[key], entries, strict=True):
                if not shard.take_up(self.out, entry, self.dtype.itemsize):
                    return False
        return True


def mark(before: str, key: bytes) -> str:
    """A checksum of a set of keys, with one more in it; in whichever order they come. In hex."""
    return f"{int(before, 16) ^ int.from_bytes(key, 'big'):x}"


def whole_identity(identity: Mapping[str, Any], tokenizer: Tokenizer, shard_tokens: int) -> dict[str, Any]:
    """`identity` with what every store has."""
    names = ("kind", "hash", "vocab_size", "eod_token", "eod_id")
    return {
        **identity,
        "tokenizer": {k: getattr(tokenizer, k) for k in names},
        "shard_tokens": shard_tokens,
        "format": FORMAT,
    }


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
            TokenStore.open(out, split).verify()
    except DataError:
        return None
    return manifest if (out / "tokenizer.json").is_file() else None


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in ("numpy", "tokenizers")}
