"""Word vectors from a file, and what they say about tokens."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

from cpt.data.tokenizers._base import Piece, Tokenizer
from cpt.errors import ConfigError, DataError
from cpt.models.vocabulary._base import tracked

WORDS_AT_ONCE = 10_000
HOW = "give a text file as word2vec and fastText write it (.vec), or an .npz with words and vectors"


@dataclass(frozen=True)
class Vectors:
    """Vectors of words, or of tokens as a tokenizer spells them.

    Attributes:
      words: N different ones.
      vectors_NxA: float32.
      counts_N: how often each occurs, or in proportion to it.
    """

    words: list[str]
    vectors_NxA: np.ndarray
    counts_N: np.ndarray

    @cached_property
    def row(self) -> dict[str, int]:
        """Of each word."""
        return {word: i for i, word in enumerate(self.words)}

    def of_pieces(self, pieces: Sequence[Piece | None]) -> np.ndarray:
        """The row of each token, or -1, int64: under its own spelling, with U+2581 for its blanks, or as bare word."""
        return np.array([self._of_piece(p) for p in pieces], np.int64).reshape(len(pieces))

    def _of_piece(self, piece: Piece | None) -> int:
        if piece is None or piece.role == "special":
            return -1
        text = piece.text.decode(errors="ignore")
        for spelling in (piece.name, text.replace(" ", "\u2581"), text.strip()):
            if spelling in self.row:
                return self.row[spelling]
        return -1

    def of_tokens(self, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
        """A vector for each id: the mean of the words that are written with it, weighted by their counts.

        Each word is tokenised with and without a blank in front (Minixhofer et al. 2022, arXiv 2112.06598).

        Returns:
          vectors_VxA float64, and has_V: whether there is such a word.
        """
        rows, words = [], []
        starts = range(0, len(self.words), WORDS_AT_ONCE)
        for start in tracked(list(starts), "words"):
            batch = self.words[start : start + WORDS_AT_ONCE]
            for texts in (batch, [f" {word}" for word in batch]):
                for i, ids in enumerate(tokenizer.encode_batch(texts), start):
                    unique = np.unique(ids)
                    rows.append(unique)
                    words.append(np.full(len(unique), i))
        shape = (tokenizer.vocab_size, len(self.words))
        at = np.concatenate(rows), np.concatenate(words)
        counts_VxN = csr_array((self.counts_N[at[1]], at), shape)
        total_V = counts_VxN.sum(1)
        vectors_VxA = counts_VxN @ self.vectors_NxA.astype(np.float64)
        return vectors_VxA / np.where(total_V > 0, total_V, 1)[:, None], total_V > 0


def read_vectors(path: str, field: str) -> Vectors:
    """The vectors in a file; a word that is there twice has the first one.

    A text file has a word and its numbers in each line, and may have the two sizes in its first; words are taken to
    come in the order of their frequency, which then falls as 1 / rank (Zipf).

    Args:
      field: that named it, for errors.

    Raises:
      ConfigError: no such file.
      DataError: it is no such file; lines differ in length; numbers are not finite.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(f"{field}={path}: no such file; {HOW}")
    words, vectors_NxA, counts_N = _read_npz(file) if file.suffix == ".npz" else _read_text(file)
    if not len(words):
        raise DataError(f"{file}: holds no vectors; {HOW}")
    if not np.isfinite(vectors_NxA).all():
        bad = words[int(np.argmin(np.isfinite(vectors_NxA).all(1)))]
        raise DataError(f"{file}: the vector of '{bad}' is not finite; remove it")
    first = np.fromiter({word: i for i, word in reversed(list(enumerate(words)))}.values(), np.int64)[::-1]
    first.sort()
    return Vectors([words[i] for i in first], vectors_NxA[first], counts_N[first])


def _read_text(file: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    words, rows, size = [], [], None
    try:
        with file.open(encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                line = line.rstrip("\r\n ")
                if not line.strip() or (number == 1 and len(line.split()) == 2):  # the two sizes
                    continue
                size = len(line.split(" ")) - 1 if size is None else size
                word, *numbers = line.rsplit(" ", size)
                row = np.array(numbers, np.float32) if size and len(numbers) == size else None
                if row is None or (word.rsplit(" ", 1)[-1] != word and _is_number(word.rsplit(" ", 1)[-1])):
                    raise DataError(
                        f"{file}:{number}: {len(line.split(' ')) - 1} numbers, {size} in the lines before; a line is "
                        f"one word and its vector, and all vectors are of one length; {HOW}"
                    )
                words.append(word)
                rows.append(row)
    except OSError as e:
        raise DataError(f"{file}: cannot be read ({e.strerror})") from e
    except ValueError as e:
        raise DataError(f"{file}:{number}: not a word and its numbers ({e}); {HOW}") from e
    counts_N = 1 / np.arange(1, len(words) + 1)
    return words, np.array(rows, np.float32).reshape(len(words), size or 0), counts_N


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_npz(file: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            words = [str(word) for word in arrays["words"]]
            vectors_NxA = np.asarray(arrays["vectors"], np.float32)
            zipf_N = 1 / np.arange(1, len(words) + 1)
            counts_N = np.asarray(arrays["counts"], np.float64) if "counts" in arrays else zipf_N
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as e:
        raise DataError(f"{file}: no arrays `words` and `vectors` can be read from it ({e}); {HOW}") from e
    if vectors_NxA.ndim != 2 or len(vectors_NxA) != len(words) or counts_N.shape != (len(words),):
        raise DataError(
            f"{file}: {len(words):,} words, vectors of shape {list(vectors_NxA.shape)}, counts of shape "
            f"{list(counts_N.shape)}; there must be one row and one count for each word"
        )
    if not (np.isfinite(counts_N).all() and (counts_N > 0).all()):
        raise DataError(f"{file}: a count is not a positive number; leave counts out, or correct it")
    return words, vectors_NxA, counts_N
