"""What a method is asked for, how it reads its options, and the statistics that several of them draw from."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.progress import track

from cpt.data.tokenizers._base import Piece, Tokenizer
from cpt.errors import ConfigError, nearest
from cpt.models.vocabulary.spec import VocabularySpec

Matrices = dict[str, np.ndarray]
"""`"input"`, the embedding, and `"output"`, the head of a model that is not tied: a row for each token."""

Fill = Callable[[Matrices], Matrices]
"""From the old matrices `[V_old, d]` float32 to the rows that are asked for, `[M, d]` float64."""

MATRICES = ("input", "output")
ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Request:
    """What a method is asked for: rows for the tokens `wanted_M`.

    Attributes:
      spec: the section of the config.
      where: what stands in front of a field of it in an error: `"init.vocabulary."` or `"--"`.
      old, new: tokenizers.
      known_K: old ids that stand for a token; the other rows of the old matrices are padding.
      origin_V: for each id of the new tokenizer the old id whose row it keeps, or -1.
      wanted_M: new ids that get a new row, ascending.
      say: receives lines on what is done.
    """

    spec: VocabularySpec
    where: str
    old: Tokenizer
    new: Tokenizer
    known_K: np.ndarray
    origin_V: np.ndarray
    wanted_M: np.ndarray
    say: Callable[[str], None]

    def rng(self, matrix: str) -> np.random.Generator:
        """The draws for one of the matrices."""
        return np.random.default_rng([self.spec.seed, MATRICES.index(matrix)])

    def options(self, **defaults: float) -> dict[str, float]:
        """The options with the values given; all are numbers of at least 0, whole where the default is.

        Raises:
          ConfigError: one that is not among `defaults`, or no such number.
        """
        out = dict(defaults)
        for name, value in self.spec.options.items():
            here = f"{self.where}options.{name}"
            if name not in defaults:
                offered = f"  (options: {', '.join(defaults) or 'none'})"
                raise ConfigError(f"{here}: no such option of '{self.spec.method}'{nearest(name, defaults)}{offered}")
            whole = isinstance(defaults[name], int)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ConfigError(f"{here}: {value!r} is not a number of at least 0")
            if whole and value != int(value):
                raise ConfigError(f"{here}: {value!r} is not a whole number")
            out[name] = int(value) if whole else float(value)
        return out

    def required(self, field: str) -> str:
        """The file that a field of the spec names. Raises ConfigError where it is not given."""
        if not (given := getattr(self.spec, field)):
            raise ConfigError(f"{self.where}{field}: '{self.spec.method}' needs it; give a file")
        return given


def each(fill: Callable[[np.ndarray, np.random.Generator], np.ndarray], request: Request) -> Fill:
    """A method that treats the matrices one by one: `fill(known rows of the old one [K, d], rng)` is `[M, d]`."""
    return lambda matrices: {
        name: fill(old_VxD[request.known_K], request.rng(name)) for name, old_VxD in matrices.items()
    }


def per_dimension(old_KxD: np.ndarray, rows: int, rng: np.random.Generator) -> np.ndarray:
    """`rows` draws from N(mean, std) of each dimension, `[rows, d]` float64."""
    mean_D, std_D = old_KxD.mean(0, dtype=np.float64), old_KxD.std(0, dtype=np.float64)
    return mean_D + std_D * rng.standard_normal((rows, len(mean_D)))


def chunks(rows: int, what: str) -> Iterable[slice]:
    """Slices over `rows`, with a bar on a terminal."""
    slices = [slice(i, i + ROWS_AT_ONCE) for i in range(0, rows, ROWS_AT_ONCE)]
    return tracked(slices, what)


def tracked(items: list, what: str) -> Iterable:
    """`items`, with a bar on a terminal."""
    console = Console(file=sys.stderr)
    return track(items, what, console=console, transient=True, disable=not console.is_terminal)


def is_text(piece: Piece | None) -> bool:
    """Whether an id stands for something that a text may hold."""
    return piece is not None and piece.role != "special"
