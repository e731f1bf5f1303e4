"""A tokenizer with the tokens of another one behind its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cpt.data.tokenizers._base import Piece, load
from cpt.errors import ConfigError


def extended(old: Path, new: Path) -> dict[str, Any]:
    """The content of a `tokenizer.json`: the BPE `old` with the tokens and merges of the BPE `new` after its own.

    Every id of `old` stays what it is. Its merges come first, so a text is first cut as `old` cuts it, and what is left
    is merged further where `new` has a merge for it. Special tokens of `new` are left out. How text is cut into words
    before is that of `old`.

    Args:
      old, new: a `tokenizer.json` or the folder that holds it.

    Raises:
      ConfigError: one of them is no BPE, or they spell bytes and blanks differently.
      DataError: one of them cannot be read.
    """
    (a, content), (b, other) = bpe_content(old), bpe_content(new)
    if _spelling(content) != _spelling(other):
        raise ConfigError(
            f"{new}: spells {_spelling(other)}, {old} {_spelling(content)}; train the new tokenizer in the form of the "
            "old one to extend it, or replace the old one"
        )
    model, theirs = content["model"], other["model"]
    special = {token["content"] for token in other.get("added_tokens", [])}
    before = load(a).pieces()
    kept = {piece.name for piece in before if piece is not None}
    fresh = [t for t in sorted(theirs["vocab"], key=theirs["vocab"].get) if t not in kept | special]
    known, vocab = {_pair(merge) for merge in model["merges"]}, kept | {*fresh}
    merges = [merge for merge in map(_pair, theirs["merges"]) if merge not in known]
    usable = [m for m in merges if m[0] in vocab and m[1] in vocab and "".join(m) in vocab]
    load(b)  # one that cannot be read is an error here, not in what becomes of it
    return with_tokens(content, before, fresh, usable)


def with_tokens(
    content: dict[str, Any], pieces: list[Piece | None], fresh: list[str], merges: list[tuple[str, str]]
) -> dict[str, Any]:
    """The content of a BPE's `tokenizer.json` with tokens and merges behind its own; `pieces` are those it has."""
    # With the added ones, which would otherwise get the ids behind the larger vocabulary.
    kept = {piece.name: i for i, piece in enumerate(pieces) if piece is not None}
    vocab = kept | {token: i for i, token in enumerate(fresh, len(pieces))}
    together = [*map(_pair, content["model"]["merges"]), *merges]
    return {**content, "model": {**content["model"], "vocab": vocab, "merges": [list(merge) for merge in together]}}


def bpe_content(path: Path) -> tuple[Path, dict[str, Any]]:
    """The `tokenizer.json` at `path`, a file or its folder, and its content.

    Raises:
      ConfigError: it is no BPE.
      DataError: it cannot be read.
    """
    tokenizer = load(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    content = json.loads(file.read_text(encoding="utf-8")) if file.suffix != ".model" else {}
    if tokenizer.kind not in ("bpe", "byte") or content["model"].get("type", "BPE") != "BPE":
        raise ConfigError(f"{path}: a {tokenizer.kind} tokenizer; only a BPE of a tokenizer.json can be extended")
    return file, content


def _spelling(content: dict[str, Any]) -> str:
    """How the entries of the vocabulary write bytes and blanks, in words."""
    text = json.dumps([content.get("pre_tokenizer"), content.get("decoder")])
    if '"ByteLevel"' in text:
        return "bytes as characters"
    return "blanks as U+2581, and falls back to bytes" if content["model"].get("byte_fallback") else "plain text"


def _pair(merge: str | list[str]) -> tuple[str, str]:
    """A merge, which older files write as one string."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right
