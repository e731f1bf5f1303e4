"""UTF-8 bytes as tokens: ids 0 to 255 are the bytes, 256 ends a document. Nothing to train, nothing to fetch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from cpt.data.tokenizers._base import END_OF_DOCUMENT, Documents, Piece, TokenizerSpec, content_hash


class ByteTokenizer:
    """See `Tokenizer`, which it is one of."""

    kind = "byte"
    vocab_size = 257
    eod_id = 256
    eod_token = END_OF_DOCUMENT

    def __init__(self) -> None:
        self.hash = content_hash(_tokenizer_json(), END_OF_DOCUMENT)

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        ids = np.asarray(ids)
        return ids[ids < 256].astype(np.uint8).tobytes().decode(errors="replace")

    def token_bytes(self) -> np.ndarray:
        return (np.arange(self.vocab_size) < 256).astype(np.int32)

    def pieces(self) -> list[Piece | None]:
        own = [Piece(name, bytes([b])) for b, name in enumerate(_byte_characters())]
        return [*own, Piece(END_OF_DOCUMENT, b"", "special")]

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(_tokenizer_json(), ensure_ascii=False), encoding="utf-8")


def byte(spec: TokenizerSpec | None = None, documents: Documents | None = None) -> ByteTokenizer:
    """The byte tokenizer; there is one only, so neither argument is used."""
    return ByteTokenizer()


def is_byte(content: Any) -> bool:
    """Whether the content of a `tokenizer.json` is that of the byte tokenizer."""
    return content == _tokenizer_json()


@cache
def _tokenizer_json() -> dict[str, Any]:
    """The same tokenizer in Hugging Face's terms (a byte-level BPE without merges), so that other tools can load it."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    end = {"id": 256, "content": END_OF_DOCUMENT, "special": True, "normalized": False}
    return {
        "version": "1.0",
        "added_tokens": [end | {"single_word": False, "lstrip": False, "rstrip": False}],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {c: i for i, c in enumerate(_byte_characters())}, "merges": []},
    }


def _byte_characters() -> list[str]:
    """The printable character that byte-level tokenizers write for each byte (GPT-2's `bytes_to_unicode`)."""
    kept = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = iter(range(0x100, 0x200))
    return [chr(b) if b in kept else chr(next(moved)) for b in range(256)]
