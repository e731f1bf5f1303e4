"""An existing Hugging Face `tokenizer.json` (or SentencePiece `.model`), as the model brings it that is trained on."""

from __future__ import annotations

from cpt.data.tokenizers._base import Documents, Tokenizer, TokenizerSpec, load
from cpt.errors import ConfigError


def file(spec: TokenizerSpec, documents: Documents | None = None) -> Tokenizer:
    """The tokenizer at `spec.path`, a file or the folder that holds `tokenizer.json` (or `tokenizer.model`).

    Its end-of-document token is `spec.eod_token`, or the first it has of `<|endoftext|>`, `</s>`, `<|end_of_text|>`.

    Raises:
      ConfigError: no path.
      DataError: no such file, not a tokenizer, no end-of-document token.
    """
    if not spec.path:
        raise ConfigError("tokenizer.path: give the tokenizer.json, or the folder that holds it")
    return load(spec.path, spec.eod_token)
