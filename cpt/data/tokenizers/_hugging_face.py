"""A tokenizer of the Hugging Face `tokenizers` library, read from or kept as the content of its `tokenizer.json`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# Unset, the library warns and goes single-threaded in every process that was forked after its first use.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import numpy as np
import tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from cpt.data.tokenizers._base import EOD_NAMES, Piece, content_hash
from cpt.errors import DataError, nearest


class HuggingFaceTokenizer:
    """See `Tokenizer`, which it is one of."""

    def __init__(self, content: dict[str, Any], where: str, eod_token: str | None = None):
        """Build it from the content of a `tokenizer.json`.

        Raises:
          DataError: the library cannot read it, or it has no (such) end-of-document token.
        """
        self._content = content
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content, ensure_ascii=False))
        except Exception as e:  # the library raises nothing narrower
            raise DataError(f"{where}: tokenizers {tokenizers.__version__} cannot read this file ({e})") from e
        # A stored file may ask for cut and padded texts, and a document may spell the name of a special token.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        self.kind: str = content["model"].get("type", "BPE").lower()
        self.vocab_size: int = max(ids.values()) + 1  # ids may have gaps
        self.eod_token = _eod_token(ids, eod_token, where)
        self.eod_id: int = ids[self.eod_token]
        self.hash = content_hash(content, self.eod_token)

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.asarray(e.ids, np.int32) for e in encoded]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def token_bytes(self) -> np.ndarray | None:
        added = self._tokenizer.get_added_tokens_decoder()  # their ids need not be those of the file
        # A token that swallows the blanks beside it stands for a varying number of bytes.
        swallowing = any(t.lstrip or t.rstrip for t in added.values() if not t.special)
        if swallowing or not _is_byte_level(self._content):
            return None
        alphabet = set(ByteLevel.alphabet())  # one character per byte
        lengths = np.zeros(self.vocab_size, np.int32)
        for token, i in self._tokenizer.get_vocab(with_added_tokens=False).items():
            if alphabet.issuperset(token):  # what is not spelled in it can only be an added token
                lengths[i] = len(token)
        for i, token in added.items():
            lengths[i] = 0 if token.special else len(token.content.encode())
        lengths[self.eod_id] = 0
        return lengths

    def pieces(self) -> list[Piece | None]:
        piece_of, out = _reader(self._content), [None] * self.vocab_size
        for name, i in self._tokenizer.get_vocab(with_added_tokens=False).items():
            out[i] = piece_of(name)
        for i, token in self._tokenizer.get_added_tokens_decoder().items():
            special = token.special or i == self.eod_id
            out[i] = Piece(token.content, b"", "special") if special else Piece(token.content, token.content.encode())
        return out

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(self._content, ensure_ascii=False), encoding="utf-8")


def _eod_token(ids: dict[str, int], given: str | None, where: str) -> str:
    if given is not None:
        if given not in ids:
            raise DataError(f"{where}: has no token '{given}'{nearest(given, ids)}; set eod_token to one that it has")
        return given
    for name in EOD_NAMES:
        if name in ids:
            return name
    raise DataError(f"{where}: has none of {', '.join(EOD_NAMES)}; set eod_token to the token that ends a document")


def _is_byte_level(content: dict[str, Any]) -> bool:
    """Whether the text is cut into bytes before the model, so that each vocabulary entry spells some of them."""
    return any(step.get("type") == "ByteLevel" for step in _steps(content.get("pre_tokenizer")))


def _steps(pre_tokenizer: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if pre_tokenizer is not None:
        yield pre_tokenizer
        for step in pre_tokenizer.get("pretokenizers", []):
            yield from _steps(step)


def _reader(content: dict[str, Any]) -> Callable[[str], Piece]:
    """How the entries of a vocabulary spell text: in characters for bytes, after `##`, or with U+2581 for a blank."""
    if _is_byte_level(content):
        alphabet = ByteLevel.alphabet()
        # Bytes that print stand for themselves; the others follow each other from U+0100.
        moved = sorted(c for c in alphabet if ord(c) > 0xFF), (b for b in range(256) if chr(b) not in alphabet)
        byte_of = {c: ord(c) for c in alphabet if ord(c) <= 0xFF} | dict(zip(*moved, strict=True))
        return lambda name: Piece(
            name, bytes(byte_of[c] for c in name) if byte_of.keys() >= set(name) else name.encode()
        )
    if content["model"].get("type") == "WordPiece":
        inside = content["model"].get("continuing_subword_prefix") or "##"
        return lambda name: Piece(
            name, name.removeprefix(inside).encode() if name.startswith(inside) else f" {name}".encode()
        )
    falls_back = bool(content["model"].get("byte_fallback"))

    def read(name: str) -> Piece:
        if falls_back and re.fullmatch("<0x[0-9A-F]{2}>", name):
            return Piece(name, bytes([int(name[1:-1], 16)]), "byte")
        return Piece(name, name.replace("\u2581", " ").encode())

    return read
