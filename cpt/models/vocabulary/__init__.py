"""Another vocabulary for a model: rows of the embedding and of the output head for the tokens of another tokenizer.

Tokens that both tokenizers have keep their row, so a tokenizer that extends the old one leaves all of it as it was; how
the rows of the others are made is one file of this folder each. Embedding and head are treated separately, each from
its own rows; a tied model has one matrix and gets one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cpt.data.tokenizers._base import Tokenizer
from cpt.errors import ConfigError, DataError, RunError
from cpt.models.vocabulary._base import Fill, Matrices, Request
from cpt.models.vocabulary._overlap import origins, pieces_of
from cpt.models.vocabulary.spec import ROOM, VocabularySpec
from cpt.registry import find

PATHS = {"input": ("embed", "embedding"), "output": ("head", "kernel")}
"""Where the matrices are among the parameters; the head `[d, V]` has a column for each token."""


@dataclass(frozen=True)
class Vocabulary:
    """A prepared change from one vocabulary to another.

    Attributes:
      request: what the method was asked for.
      fill: what it answered.
      old_size, new_size: rows of the matrices, padding included.
    """

    request: Request
    fill: Fill
    old_size: int
    new_size: int

    def rows(self, matrices: Matrices) -> Matrices:
        """The new matrices `[new_size, d]`, float32, of the old ones `[old_size, d]`.

        Rows of tokens that are kept are the old ones bit for bit; rows without a token are the mean of the old tokens.

        Raises:
          RunError: an old matrix has another number of rows; a new row is not finite.
        """
        for name, old_VxD in matrices.items():
            if len(old_VxD) != self.old_size:
                raise RunError(f"vocabulary: the {name} matrix has {len(old_VxD):,} rows, not {self.old_size:,}")
        made, request = self.fill(matrices), self.request
        kept_S = np.flatnonzero(request.origin_V >= 0)
        out: Matrices = {}
        for name, old_VxD in matrices.items():
            mean_D = old_VxD[request.known_K].mean(0, dtype=np.float64)
            new_VxD = np.tile(mean_D.astype(np.float32), (self.new_size, 1))
            new_VxD[kept_S] = old_VxD[request.origin_V[kept_S]]
            new_VxD[request.wanted_M] = made[name]
            if not np.isfinite(new_VxD).all():
                raise RunError(f"vocabulary: rows of the {name} matrix that are not finite; is the model sound?")
            out[name] = new_VxD
        return out

    def parameters(self, params: dict[str, Any], whole: Callable[[Any], np.ndarray] = np.asarray) -> dict[str, Any]:
        """`params` with new matrices, as numpy float32; the rest of the tree is taken over.

        Args:
          params: of the model with the old vocabulary.
          whole: fetches a parameter into host memory.
        """
        paths = {name: path for name, path in PATHS.items() if path[0] in params}
        turned = {"input": lambda x: x, "output": np.transpose}
        found = {name: turned[name](whole(params[a][b])) for name, (a, b) in paths.items()}
        out = dict(params)
        for name, new_VxD in self.rows(found).items():
            a, b = paths[name]
            out[a] = {**params[a], b: np.ascontiguousarray(turned[name](new_VxD))}
        return out


def prepare(
    spec: VocabularySpec,
    old: Tokenizer,
    new: Tokenizer,
    sizes: tuple[int, int],
    say: Callable[[str], None],
    where: str = "init.vocabulary.",
) -> Vocabulary:
    """Compare two tokenizers and read what the method needs, before any parameter is read.

    Args:
      sizes: rows of the matrices, old and new, padding included.
      say: receives lines on what is done.
      where: what stands in front of a field of `spec` in an error.

    Raises:
      ConfigError: no such method, a file or an option that it needs is missing or wrong.
      DataError: a tokenizer has more ids than the model has rows; a file does not fit.
    """
    if spec.method is None:
        raise ConfigError(f"{where}method: none is given; `gaussian` is the default of the literature")
    for which, tokenizer, size in zip(("old", "new"), (old, new), sizes, strict=True):
        if tokenizer.vocab_size > size:
            raise DataError(
                f"vocabulary: the {which} tokenizer has {tokenizer.vocab_size:,} ids and the model {size:,} rows for "
                "them; give the tokenizer that it was trained with"
                if which == "old"
                else f"vocabulary: the new tokenizer has {tokenizer.vocab_size:,} ids, and model.vocab_size is {size:,}"
            )
    origin_V, pieces = origins(old, new), pieces_of(new)
    if spec.copy == "special":
        texts = [i for i, piece in enumerate(pieces) if piece is not None and piece.role != "special"]
        origin_V[texts] = -1
    known_K = np.array([i for i, piece in enumerate(pieces_of(old)) if piece is not None], np.int64)
    wanted_M = np.array([i for i, p in enumerate(pieces) if p is not None and origin_V[i] < 0], np.int64)
    request = Request(spec, where, old, new, known_K, origin_V, wanted_M, say)
    padding = sizes[0] - len(known_K), sizes[1] - sum(p is not None for p in pieces)
    say(
        f"vocabulary: {len(known_K):,} tokens become {sizes[1] - padding[1]:,}; {(origin_V >= 0).sum():,} keep their "
        f"row, {len(wanted_M):,} get one by {spec.method}; rows that stand for no token: {padding[0]:,} of "
        f"{sizes[0]:,} before, {padding[1]:,} of {sizes[1]:,} now"
    )
    return Vocabulary(request, find(ROOM, spec.method, f"{where}method")(request), *sizes)
