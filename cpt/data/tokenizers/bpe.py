"""Byte-level BPE (Sennrich et al. 2016; GPT-2), trained on a corpus: encodes any text, id 0 ends a document."""

from __future__ import annotations

import json
from collections.abc import Iterator

from cpt.data.tokenizers._base import END_OF_DOCUMENT, Documents, TokenizerSpec
from cpt.data.tokenizers._hugging_face import HuggingFaceTokenizer
from cpt.errors import ConfigError, DataError

SMALLEST = 257  # the end-of-document token and 256 bytes


def bpe(spec: TokenizerSpec, documents: Documents | None) -> HuggingFaceTokenizer:
    """Train a tokenizer of exactly `spec.vocab_size` ids; the same documents give the same tokenizer.

    Args:
      spec: of which `vocab_size` and `max_bytes` are used.
      documents: starts an iteration over the training text.

    Raises:
      ConfigError: no (or too small a) vocabulary size, or nothing to train on.
      DataError: the text has too few distinct pieces for so many ids.
    """
    if spec.vocab_size is None or spec.vocab_size < SMALLEST:
        raise ConfigError(f"tokenizer.vocab_size: {spec.vocab_size}; a BPE needs a size of at least {SMALLEST}")
    if documents is None:
        raise ConfigError("tokenizer.train_on: name the source whose corpus trains the BPE")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=spec.vocab_size,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # bytes that the text lacks, too
        show_progress=False,
    )
    tokenizer.train_from_iterator(limited(documents(), spec.max_bytes), trainer)
    if tokenizer.get_vocab_size() != spec.vocab_size:
        raise DataError(
            f"tokenizer: the training text yields {tokenizer.get_vocab_size():,} ids, not {spec.vocab_size:,}; "
            "lower tokenizer.vocab_size to that, or train on more text"
        )
    return HuggingFaceTokenizer(json.loads(tokenizer.to_str()), where="tokenizer")


def limited(documents: Iterator[str], max_bytes: int | None) -> Iterator[str]:
    """The first `max_bytes` UTF-8 bytes of the documents; the last one is cut, at a whole character."""
    left = max_bytes
    for document in documents:
        if left is None:
            yield document
            continue
        encoded = document.encode()
        yield encoded[:left].decode(errors="ignore")
        left -= len(encoded)
        if left <= 0:
            return
