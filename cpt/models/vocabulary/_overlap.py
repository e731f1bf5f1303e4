"""Which tokens of one tokenizer are tokens of another, however each of them spells blanks and bytes."""

from __future__ import annotations

import numpy as np

from cpt.data.tokenizers._base import Piece, Tokenizer
from cpt.errors import ConfigError

OTHER = {"text": "byte", "byte": "text"}


def pieces_of(tokenizer: Tokenizer) -> list[Piece | None]:
    """What its ids stand for. Raises ConfigError for a tokenizer of one's own that does not tell."""
    if not hasattr(tokenizer, "pieces"):
        raise ConfigError(
            f"init.vocabulary: the tokenizer '{tokenizer.kind}' has no method `pieces`, which says what its ids stand "
            "for; add it (see cpt/data/tokenizers/_base.py)"
        )
    return tokenizer.pieces()


def origins(old: Tokenizer, new: Tokenizer) -> np.ndarray:
    """For each id of `new` the id of `old` that is the same token, or -1: int64 `[new.vocab_size]`.

    Texts are compared by their bytes, so `Ġthe` of a byte-level BPE is `▁the` of SentencePiece, and a byte is one
    whether it is written `Ċ` or `<0x0A>`; special tokens by their names, and what ends a document in one does so in the
    other. Of several the one with the same id is taken, else the first.
    """
    theirs, ours = pieces_of(old), pieces_of(new)
    first: dict[tuple[str, bytes | str], int] = {}
    for i, piece in enumerate(theirs):
        if piece is not None:
            first.setdefault(_key(piece, piece.role), i)
    out_V = np.full(new.vocab_size, -1, np.int64)
    for i, piece in enumerate(ours):
        if piece is None:
            continue
        key = _key(piece, piece.role)
        if i < len(theirs) and theirs[i] is not None and _key(theirs[i], theirs[i].role) == key:
            out_V[i] = i
        elif key in first or piece.role in OTHER:
            out_V[i] = first.get(key, first.get(_key(piece, OTHER.get(piece.role, "")), -1))
    if out_V[new.eod_id] < 0:
        out_V[new.eod_id] = old.eod_id
    return out_V


def _key(piece: Piece, role: str) -> tuple[str, bytes | str]:
    return (role, piece.name if piece.role == "special" else piece.text)
