"""What a scorer is made of and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cpt.data.store import TokenStore
from cpt.data.tokenizers._base import Tokenizer
from cpt.errors import ConfigError
from cpt.registry import find

# Mean nats per token of each document (its ids, end-of-document id included); lower is better.
Score = Callable[[Sequence[np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class Scorer:
    """A way to score documents that says what it is before it does the work of getting ready.

    Attributes:
      identity: everything beside the documents that decides the scores, as JSON data. Contents, not places: a file may
        change and a path may mean another one tomorrow, and then kept scores must not be taken for these.
      make: gets ready (trains, loads) and gives the function that scores; called only where something is left to score.
    """

    identity: Mapping[str, Any]
    make: Callable[[], Score]


@dataclass(frozen=True)
class ScorerSpec:
    """What scorers may need; each takes its own part.

    Attributes:
      kind: a file of `cpt/data/scorers` (`ngram`, `kenlm`, `checkpoint`), or `package.module:name`.
      tokenizer: of the store that is scored.
      reference: store of what documents should be like (`ngram`).
      reference_tokens: how much of it is read, spread over all of it (`ngram`).
      order: of the n-gram model (`ngram`).
      max_ngrams: of one order that are kept, which bounds the memory (`ngram`).
      model: file of a model (`kenlm`).
      workdir, step: run directory, and which of its checkpoints, the newest by default (`checkpoint`).
    """

    kind: str
    tokenizer: Tokenizer
    reference: TokenStore | None = None
    reference_tokens: int = 100_000_000
    order: int = 3
    max_ngrams: int = 1 << 24
    model: Path | None = None
    workdir: Path | None = None
    step: int | None = None


def scorer_of(spec: ScorerSpec) -> Scorer:
    """The scorer that `spec.kind` names, its kind added to its identity.

    Raises:
      ConfigError: there is none of that name, it gives no `Scorer`, or what it needs is not in `spec`.
      DataError, RunError: what it needs is missing, damaged, or made with another tokenizer.
    """
    scorer = find("cpt.data.scorers", spec.kind, "--scorer")(spec)
    if not isinstance(scorer, Scorer):
        given = type(scorer).__name__
        raise ConfigError(f"--scorer={spec.kind}: gives {given}; it must give a cpt.data.scorers._base.Scorer")
    return replace(scorer, identity={"kind": spec.kind, **scorer.identity})
