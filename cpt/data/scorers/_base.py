"""What a scorer is made of and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cpt.data.store import TokenStore
from cpt.data.tokenizers._base import Tokenizer

# Mean nats per token of each document (its ids, end-of-document id included); lower is better.
Scorer = Callable[[Sequence[np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class ScorerSpec:
    """What scorers may need; each takes its own part.

    Attributes:
      kind: a file of `cpt/data/scorers` (`ngram`, `kenlm`, `checkpoint`), or `package.module:name`.
      tokenizer: of the store that is scored.
      reference: store of what documents should be like (`ngram`).
      reference_tokens: how much of it is read (`ngram`).
      order: of the n-gram model (`ngram`).
      model: file of a model (`kenlm`).
      workdir, step: run directory, and which of its checkpoints, the newest by default (`checkpoint`).
    """

    kind: str
    tokenizer: Tokenizer
    reference: TokenStore | None = None
    reference_tokens: int = 100_000_000
    order: int = 3
    model: Path | None = None
    workdir: Path | None = None
    step: int | None = None

    def identity(self) -> dict[str, Any]:
        """What decides the scores, as JSON data."""
        named = {"kind": self.kind, "order": self.order, "reference_tokens": self.reference_tokens, "step": self.step}
        named["reference"] = None if self.reference is None else self.reference.fingerprint
        paths = {"model": self.model, "workdir": self.workdir}
        return named | {k: None if v is None else str(v) for k, v in paths.items()}
