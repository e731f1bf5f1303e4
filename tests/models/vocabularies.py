"""Tokenizers and models for the tests of another vocabulary."""

import io

import numpy as np
import sentencepiece as library

from cpt.data.tokenizers._base import Piece, TokenizerSpec
from cpt.data.tokenizers.bpe import bpe
from cpt.data.tokenizers.sentencepiece import SentencePieceTokenizer

OLD_TEXT = ["the cat sat on the mat, the cat that the man had\n", "a rat ran to the cat and the hat of the man"] * 3
NEW_TEXT = ["der Hund und die Katze sind unter dem Haus und der Baum\n", "die Maus und der Hund aßen im Haus"] * 3


class Words:
    """A tokenizer of whole words: each a token, written with a blank in front; id 0 ends a document."""

    kind, eod_id, eod_token = "words", 0, "</s>"

    def __init__(self, *words: str | None):
        self.words, self.vocab_size, self.hash = words, len(words) + 1, "-".join(map(str, words))

    def pieces(self):
        return [Piece("</s>", b"", "special"), *(w and Piece(f"▁{w}", f" {w}".encode()) for w in self.words)]

    def encode_batch(self, texts):
        known = {word: i for i, word in enumerate(self.words, 1) if word}
        return [np.array([known[w] for w in text.split() if w in known], np.int32) for text in texts]


def byte_level(text: list[str], size: int):
    """A byte-level BPE."""
    return bpe(TokenizerSpec(vocab_size=size), lambda: iter(text))


def sentence_piece(text: list[str], size: int = 300) -> SentencePieceTokenizer:
    """A SentencePiece BPE of Llama's kind: bytes for what it has no piece for."""
    out = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=out, model_type="bpe", vocab_size=size, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return SentencePieceTokenizer(out.getvalue(), "m")


def vectors(path, rows: dict[str, list[float]]) -> str:
    """A word2vec text file."""
    path.write_text("".join(f"{word} {' '.join(map(str, row))}\n" for word, row in rows.items()), encoding="utf-8")
    return str(path)


def matrices(rows: int, width: int = 6, seed: int = 0, *names: str) -> dict[str, np.ndarray]:
    """Random old matrices."""
    rng = np.random.default_rng(seed)
    return {n: rng.normal(0.3, 1, (rows, width)).astype(np.float32) for n in names or ("input", "output")}
