"""A SentencePiece model (`.model`; Kudo & Richardson 2018), for example the one of the model that is trained on."""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cpt.data.tokenizers._base import EOD_NAMES, Documents, Piece, TokenizerSpec, content_hash
from cpt.errors import ConfigError, DataError, nearest

KEY = "sentencepiece"  # in a tokenizer.json, of the base64 of the model
BLANK = "\u2581"  # how a piece spells a blank


class SentencePieceTokenizer:
    """See `Tokenizer`, which it is one of."""

    kind = "sentencepiece"

    def __init__(self, model: bytes, where: str, eod_token: str | None = None):
        """Build it from the content of a `.model` file.

        Args:
          model: the content.
          where: what error messages call it.
          eod_token: the piece that ends a document, a control symbol; by default the model's own end of sentence, or
            the first of the usual names that it has.

        Raises:
          ConfigError: the package `sentencepiece` is not installed.
          DataError: not a model, or it has no (such) end-of-document symbol.
        """
        try:
            import sentencepiece as library
        except ImportError as e:
            raise ConfigError(f"{where}: a SentencePiece model needs `pip install sentencepiece`") from e
        try:
            self._model = library.SentencePieceProcessor(model_proto=model) if model else None
        except RuntimeError as e:
            raise DataError(f"{where}: not a SentencePiece model ({str(e).splitlines()[0]}); copy it again") from e
        if self._model is None:  # which the library takes for a model without pieces
            raise DataError(f"{where}: not a SentencePiece model (it is empty); copy it again")
        self.vocab_size: int = self._model.vocab_size()
        self.eod_id = _eod_id(self._model, eod_token, where)
        self.eod_token: str = self._model.id_to_piece(self.eod_id)
        self._content = {"version": "1.0", KEY: base64.b64encode(model).decode()}
        self.hash = content_hash(self._content, self.eod_token)

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        # As for the Hugging Face library, workers are told by this variable that each of them has one thread.
        threads = 1 if os.environ.get("TOKENIZERS_PARALLELISM") == "false" else -1
        options: dict[str, Any] = dict(add_bos=False, add_eos=False, enable_sampling=False, num_threads=threads)
        return [np.asarray(ids, np.int32) for ids in self._model.encode(texts, out_type=int, **options)]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        ids = np.asarray(ids, np.int64)
        ids = ids[(ids >= 0) & (ids < self.vocab_size)]  # a model may have more rows than there are pieces
        return self._model.decode(ids.tolist())

    def token_bytes(self) -> np.ndarray | None:
        """See `Tokenizer`; counted after the model's own normalisation and the blank that it puts in front.

        `None` where an id may stand for a varying number of bytes: without byte fallback the unknown one stands for
        any character, and without a piece for the blank alone its bytes are those of U+2581, which are three.
        """
        model, ids = self._model, range(self.vocab_size)
        falls_back = sum(map(model.is_byte, ids)) == 256
        if not falls_back or model.is_unknown(model.piece_to_id(BLANK)) or " " in model.normalize("a b"):
            return None
        lengths = [1 if model.is_byte(i) else len(model.id_to_piece(i).replace(BLANK, " ").encode()) for i in ids]
        for_no_text = [model.is_control(i) or model.is_unknown(i) or model.is_unused(i) for i in ids]
        return np.where(for_no_text, 0, lengths).astype(np.int32)

    def pieces(self) -> list[Piece | None]:
        return [self._piece(i) for i in range(self.vocab_size)]

    def _piece(self, i: int) -> Piece | None:
        model, name = self._model, self._model.id_to_piece(i)
        if model.is_unused(i):
            return None
        if model.is_control(i) or model.is_unknown(i):
            return Piece(name, b"", "special")
        if model.is_byte(i):
            return Piece(name, bytes([int(name[1:-1], 16)]), "byte")
        return Piece(name, name.replace(BLANK, " ").encode())

    def save(self, path: str | Path) -> None:
        """Write the model into a `tokenizer.json`, which `load` knows (other tools do not)."""
        Path(path).write_text(json.dumps(self._content), encoding="utf-8")


def sentencepiece(spec: TokenizerSpec, documents: Documents | None = None) -> SentencePieceTokenizer:
    """The tokenizer at `spec.path`, a `.model` file or the folder that holds `tokenizer.model`.

    Its end-of-document token is `spec.eod_token`, or the model's end of sentence.

    Raises:
      ConfigError: no path, or the package `sentencepiece` is not installed.
      DataError: no such file, not a model, no end-of-document token.
    """
    if not spec.path:
        raise ConfigError("tokenizer.path: give the SentencePiece model, or the folder that holds tokenizer.model")
    file = Path(spec.path).expanduser()
    return from_file(file / "tokenizer.model" if file.is_dir() else file, spec.eod_token)


def from_file(file: Path, eod_token: str | None = None) -> SentencePieceTokenizer:
    """The tokenizer of a `.model` file; raises as `sentencepiece` does."""
    try:
        model = file.read_bytes()
    except OSError as e:
        raise DataError(f"{file}: the tokenizer cannot be read ({e.strerror})") from e
    return SentencePieceTokenizer(model, str(file), eod_token)


def is_sentencepiece(content: Any) -> bool:
    """Whether the content of a `tokenizer.json` is what `SentencePieceTokenizer.save` writes."""
    return isinstance(content, dict) and KEY in content


def from_content(content: dict[str, Any], where: str, eod_token: str | None = None) -> SentencePieceTokenizer:
    """The tokenizer whose `save` wrote this content.

    Raises:
      ConfigError: the package `sentencepiece` is not installed.
      DataError: damaged, or no (such) end-of-document token.
    """
    try:
        model = base64.b64decode(content[KEY], validate=True)
    except (TypeError, ValueError, binascii.Error) as e:
        raise DataError(f"{where}: its SentencePiece model is damaged ({e}); copy it again") from e
    return SentencePieceTokenizer(model, where, eod_token)


def _eod_id(model: Any, given: str | None, where: str) -> int:
    pieces = {model.id_to_piece(i): i for i in range(model.vocab_size())}
    if given is None:
        own = model.eos_id()
        found = own if own >= 0 else next((pieces[n] for n in EOD_NAMES if n in pieces), None)
        if found is None:
            raise DataError(f"{where}: has no end of sentence; set eod_token to the symbol that ends a document")
    elif given in pieces:
        found = pieces[given]
    else:
        raise DataError(f"{where}: has no piece '{given}'{nearest(given, pieces)}; set eod_token to one that it has")
    if not model.is_control(found):
        controls = [p for p, i in pieces.items() if model.is_control(i)]
        has = f"set eod_token to one of {', '.join(controls)}" if controls else "train a model that has one"
        raise DataError(f"{where}: '{model.id_to_piece(found)}' may stand in a text, it is no control symbol; {has}")
    return found
