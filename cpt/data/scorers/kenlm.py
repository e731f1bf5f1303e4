"""Perplexity under a KenLM model of one's own (`.arpa` or `.binary`), over words; needs the extra `kenlm`."""

from __future__ import annotations

import math

import numpy as np

from cpt.data.manifest import file_hash
from cpt.data.scorers._base import Score, Scorer, ScorerSpec
from cpt.errors import ConfigError, DataError


def kenlm(spec: ScorerSpec) -> Scorer:
    """Score the text of documents, line by line, words parted by blanks: as the stability-gap paper does (2406.14833).

    KenLM counts words, so the score is divided by them and the ends of lines: nats per word.

    Raises:
      ConfigError: no model, or KenLM is not installed.
      DataError: no such file, or KenLM cannot read it.
    """
    if spec.model is None:
        raise ConfigError("--model: the kenlm scorer needs a .arpa or .binary file")
    try:
        import kenlm as library
    except ImportError as e:
        raise ConfigError("--scorer=kenlm: KenLM is not installed; `pip install 'cpt[kenlm]'`, or take ngram") from e
    try:
        identity = {"model": file_hash(spec.model)}
    except OSError as e:
        raise DataError(f"{spec.model}: cannot be read ({e.strerror})") from e

    def load() -> Score:
        try:
            model = library.Model(str(spec.model))
        except OSError as e:
            raise DataError(f"{spec.model}: KenLM cannot read it ({e})") from e
        return lambda documents: np.array([_nats_per_word(model, spec.tokenizer.decode(ids)) for ids in documents])

    return Scorer(identity, load)


def _nats_per_word(model: object, text: str) -> float:
    lines = [line.split() for line in text.splitlines() if line.strip()]
    words = sum(len(line) + 1 for line in lines)  # and the end of each line
    log10 = sum(model.score(" ".join(line), bos=True, eos=True) for line in lines)
    return -log10 * math.log(10) / words if words else math.nan
