"""The section of a config that gives a model another vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cpt import registry
from cpt.errors import ConfigError

ROOM = "cpt.models.vocabulary"


@dataclass(frozen=True)
class VocabularySpec:
    """How the rows of the embedding and of the output head are made for the tokens of another tokenizer.

    Attributes:
      method: a file of `cpt/models/vocabulary` (`gaussian`, `mean`, `univariate_gaussian`, `focus`, `wechsel`,
        `convex_hull`), or `package.module:name`; None leaves the vocabulary as it is.
      tokenizer_of: file or folder of the tokenizer that the model was trained with; None looks where the model is.
      copy: tokens that keep their row: all that both tokenizers have (`overlap`, which every method here then leaves
        alone), or the special ones only, as in WECHSEL's paper.
      auxiliary: word vectors of the new tokens or words (`focus`, `wechsel`): a text file as word2vec and fastText
        write it, or an `.npz` with `words`, `vectors` and perhaps `counts`.
      auxiliary_of_old: those of the old tokens' language (`wechsel`); None is the same file.
      dictionary: pairs of words, old and new language, a tab between them: `auxiliary_of_old` is rotated by it
        (`wechsel`).
      text: UTF-8 text of the new kind, or a folder of `.txt` files (`convex_hull`).
      seed: of all draws.
      options: of the method.
    """

    method: str | None = None
    tokenizer_of: str | None = None
    copy: Literal["overlap", "special"] = "overlap"
    auxiliary: str | None = None
    auxiliary_of_old: str | None = None
    dictionary: str | None = None
    text: str | None = None
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.method is not None:
            registry.check(ROOM, self.method, "init.vocabulary.method")
        if self.seed < 0:
            raise ConfigError(f"init.vocabulary.seed: {self.seed} is not at least 0")
