"""The tokenizer of an exported directory, and the token that ends a text."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpt.data.tokenizers._base import load
from cpt.errors import ConfigError
from cpt.models.spec import DecoderSpec

KEPT = ("tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class TokenizerFiles:
    """What a tokenizer adds to a directory.

    Attributes:
      files: names and contents.
      ids: fields of `config.json` and `generation_config.json`.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    ids: dict[str, Any] = field(default_factory=dict)


def tokenizer_files(file: str | Path | None, spec: DecoderSpec) -> TokenizerFiles:
    """The files of the tokenizer at `file`: those that are beside it, or the least that `AutoTokenizer` needs.

    Raises:
      ConfigError: it has more ids than the model, or is not of the `tokenizers` library.
      DataError: it cannot be read.
    """
    if file is None:
        # Left out, readers would take the architecture's defaults, which are ids of another tokenizer.
        return TokenizerFiles(ids={"bos_token_id": None, "eos_token_id": None})
    file = Path(file).expanduser()
    file = file / "tokenizer.json" if file.is_dir() else file
    tokenizer = load(file)
    if tokenizer.kind == "sentencepiece":
        raise ConfigError(f"{file}: a SentencePiece model is no tokenizer.json; export without a tokenizer")
    if tokenizer.vocab_size > spec.vocab_size:
        raise ConfigError(
            f"{file}: has {tokenizer.vocab_size:,} ids, the model {spec.vocab_size:,}; give the tokenizer that the "
            "model was trained with"
        )
    files = {"tokenizer.json": file.read_bytes()}
    files |= {name: (file.parent / name).read_bytes() for name in KEPT if (file.parent / name).is_file()}
    files.setdefault(
        "tokenizer_config.json",
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": tokenizer.eod_token,
                "eos_token": tokenizer.eod_token,
                "model_max_length": spec.context,
                "clean_up_tokenization_spaces": False,
            },
            indent=2,
        ).encode(),
    )
    return TokenizerFiles(files, {"bos_token_id": tokenizer.eod_id, "eos_token_id": tokenizer.eod_id})
