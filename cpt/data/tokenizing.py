"""From a corpus to a token store on disk: tokenise once, split by content, drop duplicates, account for every record.

A document goes to validation, or to the tokens held out for replay, when the hash of its text says so. The splits are
therefore disjoint by content (copies of a document land on the same side), do not depend on the order of the documents
and stay as they are when more are added.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpt.data.corpora._base import METER, Bad, Document, Item, Part
from cpt.data.encoding import Encoded, Settings, encoded
from cpt.data.store import SPLITS
from cpt.data.tokenizers._base import Tokenizer
from cpt.data.writing import SHARD_TOKENS, StoreWriter, finished, whole_identity
from cpt.errors import ConfigError, DataError

BATCH_CHARACTERS = 1 << 20  # tokenised at a time
COMMIT_TOKENS = 1 << 24  # held in memory at most
EXAMPLES = 20  # of skipped records that the manifest shows


@dataclass(frozen=True)
class Options:
    """How a store is made; everything here decides its content, except `max_bad`.

    Attributes:
      validation: share of the documents that is held out for evaluation, in [0, 1).
      replay_holdout: share that is kept out of training to be replayed later, in [0, 1).
      dedup: whether a document with the very text of an earlier one is dropped.
      max_chars: cut longer documents at line ends.
      max_bad: share of the records, and of the files, that may be unusable.
      shard_tokens: size of a shard.
    """

    validation: float = 0.0
    replay_holdout: float = 0.0
    dedup: bool = False
    max_chars: int | None = None
    max_bad: float = 0.001
    shard_tokens: int = SHARD_TOKENS

    def __post_init__(self):
        for name in ("validation", "replay_holdout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is out of range (0 <= share < 1)")
        if self.validation + self.replay_holdout >= 1:
            raise ConfigError(f"replay_holdout: {self.replay_holdout} and validation={self.validation} leave nothing")
        if not 0 <= self.max_bad <= 1:
            raise ConfigError(f"max_bad: {self.max_bad} is out of range (0 <= share <= 1, or 0.1%)")
        if self.shard_tokens < 1:
            raise ConfigError(f"shard_tokens: {self.shard_tokens} is out of range (>= 1)")
        Settings(self.max_chars)

    @property
    def splits(self) -> tuple[str, ...]:
        shares = (1.0, self.validation, self.replay_holdout)
        return tuple(name for name, share in zip(SPLITS, shares, strict=True) if share)

    def split_of(self, key: bytes) -> str:
        """The split of the document with this hash: validation first, so that its share alone decides what is in it."""
        at = int.from_bytes(key[:6], "big") / 2**48
        if at < self.validation:
            return "validation"
        return "replay_holdout" if at < self.validation + self.replay_holdout else "train"


@dataclass
class Progress:
    """How far the work is: parts (files) of all, records, what was written and read."""

    part: int
    parts: int
    records: int
    documents: int
    tokens: int
    bytes_read: int


def prepare(
    parts: Sequence[Part],
    tokenizer: Tokenizer,
    out: Path,
    options: Options,
    describe: Mapping[str, Any],
    *,
    workers: int = 0,
    progress: Callable[[Progress], None] | None = None,
    commit_seconds: float = 10.0,
) -> dict[str, Any]:
    """Make the token store `out` of a corpus; the same input gives the same bytes, however often it was stopped.

    Each document is followed by the end-of-document id; blank ones are left out. If `out` already holds the finished
    store of the same tokenizer, options and description, nothing is done; a damaged one is made again, one that was
    stopped is gone on with.

    Args:
      parts: the corpus.
      tokenizer: what makes ids of it.
      out: folder of the store; made if need be.
      options: how.
      describe: JSON data that decides the documents (corpus, path, file versions, ...). A `command` in it says how to
        make the store again; it is kept for error messages and may change.
      workers: processes that tokenise; 0 does it here.
      progress: called after every batch.
      commit_seconds: between two commits; a kill costs no more than this.

    Returns:
      The manifest: per split `documents`, `tokens`, `bytes` (of the `.bin`s), `text_bytes`, `max_id`, the same by
      domain and by shard; `records`, `empty`, `duplicates` and what was `skipped`, with examples.

    Raises:
      DataError: no documents, or none for one of the splits; too many unusable records; `out` holds another finished
        store; disk full.
    """
    content = {"validation": options.validation, "replay_holdout": options.replay_holdout, "dedup": options.dedup}
    identity = {**content, "description": {k: v for k, v in describe.items() if k != "command"}}
    # Asked first without the lock, which a folder that one may only read would not give.
    if (manifest := finished(out, whole_identity(identity, tokenizer, options.shard_tokens))) is not None:
        return manifest
    with StoreWriter(out, tokenizer, identity, options.splits, options.shard_tokens, describe.get("command")) as writer:
        if writer.done is not None:
            return writer.done
        counts = Counts(writer.counters, options.max_bad, len(parts))
        start = tuple(writer.position or (0, 0))
        settings, saved = Settings(options.max_chars), out / "tokenizer.tmp"
        before, meter = sum(p.size or 0 for p in parts[: start[0]]), METER.read
        last = time.monotonic()
        for position, batch in encoded(batches(parts, start), tokenizer, settings, workers, saved):
            _add(writer, batch, options, counts)
            if time.monotonic() - last >= commit_seconds or writer.waiting_tokens >= COMMIT_TOKENS:
                writer.commit(position)
                counts.check(final=False)
                last = time.monotonic()
            if progress is not None:
                read = before + METER.read - meter
                written = writer.n_documents, writer.n_tokens
                progress(Progress(position[0], len(parts), counts["records"], *written, read))
        counts.check(final=True)
        _check_splits(
            {s: _documents(writer, s) for s in options.splits}, parts[0].name if len(parts) == 1 else out, options
        )
        return writer.finish(**counts.to_json())


def batches(parts: Sequence[Part], start: tuple[int, int] = (0, 0)) -> Iterator[tuple[tuple[int, int], list[Item]]]:
    """The items of a corpus in lists of about a megabyte, each with the (part, items of it) where the next begins."""
    items, characters, position = [], 0, start
    for i in range(start[0], len(parts)):
        skip = start[1] if i == start[0] else 0
        for n, item in enumerate(itertools.islice(parts[i].open(), skip, None), skip + 1):
            items.append(item)
            characters += _size(item)
            position = (i, n)
            if characters >= BATCH_CHARACTERS:
                yield position, items
                items, characters = [], 0
        position = (i + 1, 0)
    if items:
        yield position, items


def _size(item: Item) -> int:
    """About how many characters it holds; a record costs something however short it is."""
    if isinstance(item, str):
        return 64 + len(item)
    if isinstance(item, Document):
        return 64 + (len(item.text) if item.ids is None else 4 * len(item.ids))
    return 64 if isinstance(item, Bad) else 64 + item.characters


def _add(writer: StoreWriter, batch: Encoded, options: Options, counts: Counts) -> None:
    for ids, domain, key, text_bytes in batch.documents():
        if options.dedup and not writer.is_new(key):
            counts["duplicates"] += 1
            continue
        writer.add(options.split_of(key), domain, ids, text_bytes)
    counts["records"] += batch.records
    counts["empty"] += batch.empty
    for bad in batch.bad:
        counts.skip(bad)


class Counts:
    """What became of the records; kept in the journal of a store."""

    def __init__(self, kept: dict[str, Any], max_bad: float, parts: int):
        self.kept, self.max_bad, self.parts = kept, max_bad, parts
        for name in ("records", "empty", "duplicates", "damaged"):
            kept.setdefault(name, 0)
        kept.setdefault("skipped", {})
        kept.setdefault("examples", [])

    def __getitem__(self, name: str) -> int:
        return self.kept[name]

    def __setitem__(self, name: str, value: int) -> None:
        self.kept[name] = value

    @property
    def bad(self) -> int:
        return sum(self.kept["skipped"].values())

    def skip(self, bad: Bad) -> None:
        """Count a record that is left out.

        Raises:
          DataError: it is a damaged file, and one too many.
        """
        self.kept["skipped"][bad.kind] = self.kept["skipped"].get(bad.kind, 0) + 1
        if len(self.kept["examples"]) < EXAMPLES:
            self.kept["examples"].append(str(bad))
        if bad.ends_part:
            self.kept["damaged"] += 1
            if self.kept["damaged"] > self.max_bad * self.parts:
                of = f" ({self.kept['damaged']} of {self.parts} files)" if self.parts > 1 else ""
                raise DataError(f"{bad}{of}; or skip it with max_bad={_enough(self.kept['damaged'] / self.parts)}")

    def check(self, final: bool) -> None:
        """Raises DataError if too many records are unusable; before the end only where that is beyond doubt."""
        if self.bad <= self.max_bad * self["records"] or not (final or self["records"] >= 10_000):
            return
        kinds = ", ".join(f"{kind} {n:,}" for kind, n in self.kept["skipped"].items())
        if self.bad == 1:
            raise DataError(f"{self.kept['examples'][0]}, or skip it with max_bad={_enough(1 / self['records'])}")
        raise DataError(
            f"{self.kept['examples'][0]} (and {self.bad - 1:,} more of {self['records']:,} records: {kinds}; "
            f"a share of {_enough(self.bad / self['records'])}, max_bad allows {self.max_bad:.3g})"
        )

    def to_json(self) -> dict[str, Any]:
        """What the manifest says of them."""
        return {k: v for k, v in self.kept.items() if k != "damaged"}


def left_out(manifest: Mapping[str, Any]) -> list[str]:
    """What became of the records that are not in a store, in a line or two."""
    of = f"of {manifest['records']:,} records"
    named = (("empty", "without text"), ("duplicates", "duplicates"))
    lines = [f"{manifest[key]:,} {what} {of}" for key, what in named if manifest[key]]
    if skipped := manifest["skipped"]:
        kinds = ", ".join(f"{kind} {n:,}" for kind, n in skipped.items())
        lines.append(f"skipped {sum(skipped.values()):,} {of} ({kinds}), the first: {manifest['examples'][0]}")
    return lines


def _enough(share: float) -> str:
    """A share with two digits, rounded up, so that it allows what it was computed from."""
    digits = 1 - math.floor(math.log10(share))
    return f"{math.ceil(share * 10**digits - 1e-9) / 10**digits:.{digits}f}"


def _documents(writer: StoreWriter, split: str) -> int:
    return sum(s.documents for k, shards in writer.shards.items() for s in shards if s.name.split("-")[0] == split)


def _check_splits(documents: Mapping[str, int], out: Path | str, options: Options) -> None:
    total = sum(documents.values())
    if not total:
        raise DataError(f"{out}: no documents with text in them; check its path and text_field")
    for name, n in documents.items():
        if not n:
            share = options.replay_holdout if name == "replay_holdout" else options.validation
            raise DataError(
                f"{out}: with {'validation' if name == 'train' else name}={share:g} none of the {total:,} documents "
                f"went to {name}; change the share, set it to 0, or cut documents with max_chars"
            )
