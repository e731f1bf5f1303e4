"""What a tokenizer is: text to ids and back, how many bytes an id stands for, and a hash that says which one it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from cpt.errors import DataError

END_OF_DOCUMENT = "<|endoftext|>"
EOD_NAMES = (END_OF_DOCUMENT, "</s>", "<|end_of_text|>")  # where none is given, the first that there is
Documents = Callable[[], Iterator[str]]


@dataclass(frozen=True)
class TokenizerSpec:
    """Which tokenizer a run uses.

    Attributes:
      kind: a file of `cpt/data/tokenizers` (`byte`, `bpe`, `continued_bpe`, `file`, `sentencepiece`), or
        `package.module:name`.
      vocab_size: ids to learn, the end-of-document id included (`bpe`); with those that are there (`continued_bpe`).
      train_on: name of the source whose corpus trains it (`bpe`, `continued_bpe`).
      path: a Hugging Face `tokenizer.json` or a SentencePiece `.model`, or the folder that holds it (`file`,
        `sentencepiece`); the one that is trained on (`continued_bpe`).
      max_bytes: train on the first so many UTF-8 bytes of text only (`bpe`, `continued_bpe`).
      eod_token: name of the end-of-document token, where it cannot be told from the usual names (`file`,
        `sentencepiece`).
    """

    kind: str = "bpe"
    vocab_size: int | None = None
    train_on: str | None = None
    path: str | None = None
    max_bytes: int | None = None
    eod_token: str | None = None


class Piece(NamedTuple):
    """What an id stands for, in a form that tokenizers of all kinds share.

    Attributes:
      name: as its tokenizer spells it: `"Ġthe"`, `"▁the"`, `"<0x0A>"`, `"</s>"`.
      text: its UTF-8 bytes in a text, `b" the"`, which may be a part of a character; of a special token empty.
      role: `"byte"` is a byte that stands in where there is no piece for a character.
    """

    name: str
    text: bytes
    role: Literal["text", "byte", "special"] = "text"


class Tokenizer(Protocol):
    """Text to token ids and back.

    Attributes:
      kind: `"byte"`, `"sentencepiece"`, or the model of the Hugging Face tokenizer (`"bpe"`, `"unigram"`, ...).
      vocab_size: ids are in `[0, vocab_size)`.
      eod_id: the id that ends a document.
      eod_token: its name.
      hash: sha256 of the canonical serialisation; equal hashes mean equal ids for every text.
    """

    kind: str
    vocab_size: int
    eod_id: int
    eod_token: str
    hash: str

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """One 1-D int32 array per text, without special tokens, also where a text spells the name of one."""
        ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of `ids`; special tokens are left out, bytes that are not UTF-8 become U+FFFD."""
        ...

    def token_bytes(self) -> np.ndarray | None:
        """UTF-8 bytes that each id stands for, int32 `[vocab_size]`; 0 for special tokens and unused ids.

        Summed over an encoded text they give its length in bytes, which is what bits per byte divide by. (A tokenizer
        that changes text first, as Pythia's does with NFC or one that puts a blank in front, is counted after that.)
        `None` if it is not byte-level, because an id then has no fixed number of bytes.
        """
        ...

    def pieces(self) -> list[Piece | None]:
        """What each id stands for, `[vocab_size]`; None for an unused id."""
        ...

    def save(self, path: str | Path) -> None:
        """Write it as a Hugging Face `tokenizer.json`; `load` gives back a tokenizer with the same hash.

        A SentencePiece model, which Hugging Face's format does not hold, is kept whole in a file of that name.
        """
        ...


def load(path: str | Path, eod_token: str | None = None) -> Tokenizer:
    """The tokenizer that `save` wrote, or that Hugging Face did.

    Args:
      path: a `tokenizer.json` or a SentencePiece `.model`, or a folder that holds a `tokenizer.json` or, without one,
        a `tokenizer.model`.
      eod_token: name of the end-of-document token; by default the first of the usual names it has.

    Raises:
      ConfigError: a SentencePiece model, and the package `sentencepiece` is not installed.
      DataError: no such file, not a tokenizer, no end-of-document token.
    """
    # Each of them is a file of its own that needs this one, so they are imported here.
    from cpt.data.tokenizers._hugging_face import HuggingFaceTokenizer
    from cpt.data.tokenizers.byte import ByteTokenizer, is_byte
    from cpt.data.tokenizers.sentencepiece import from_content, from_file, is_sentencepiece

    file = Path(path).expanduser()
    if file.is_dir():
        only_model = not (file / "tokenizer.json").exists() and (file / "tokenizer.model").exists()
        file = file / ("tokenizer.model" if only_model else "tokenizer.json")
    if file.suffix == ".model":
        return from_file(file, eod_token)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as e:
        raise DataError(f"{file}: the tokenizer cannot be read ({e.strerror})") from e
    except ValueError as e:
        raise DataError(f"{file}: not a tokenizer.json ({e})") from e
    if is_byte(content) and eod_token in (None, END_OF_DOCUMENT):
        return ByteTokenizer()
    if is_sentencepiece(content):
        return from_content(content, str(file), eod_token)
    return HuggingFaceTokenizer(content, where=str(file), eod_token=eod_token)


def content_hash(content: Any, eod_token: str) -> str:
    """sha256 of the canonical JSON of a `tokenizer.json` and of the token that ends its documents."""
    canonical = json.dumps([content, eod_token], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
