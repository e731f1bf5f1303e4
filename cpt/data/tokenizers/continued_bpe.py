"""A BPE whose training goes on on new text: every old token keeps its id, and each new one is two that were there.

Continued BPE training (Purason et al. 2025, arXiv 2512.03989, section 3). The new text is cut as the old tokenizer cuts
it, and the most frequent pair inside a word becomes the next token, as often as there are ids to give. New merges stand
behind the old ones, so a text is cut as before and then merged further: no new token is out of reach, as those of a
tokenizer that was trained apart and added can be, and what the old ids said can be read from the new ones.
"""

from __future__ import annotations

import heapq
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import tokenizers

from cpt.data.tokenizers._base import Documents, Piece, TokenizerSpec, load
from cpt.data.tokenizers._hugging_face import HuggingFaceTokenizer
from cpt.data.tokenizers.bpe import limited
from cpt.data.tokenizers.extending import bpe_content, with_tokens
from cpt.errors import ConfigError, DataError

Word = tuple[int, ...]
Pair = tuple[int, int]
BATCH = 256  # documents that are cut at a time


def continued_bpe(spec: TokenizerSpec, documents: Documents | None) -> HuggingFaceTokenizer:
    """The tokenizer at `spec.path` with further tokens, `spec.vocab_size` ids in all; the same text gives the same one.

    How a text is cut into words before is that of the old one. Bytes that stand in for characters that it does not
    have, and tokens that were added to it by name, are not merged.

    Args:
      spec: of which `path`, `vocab_size`, `max_bytes` and `eod_token` are used.
      documents: starts an iteration over the new text.

    Raises:
      ConfigError: no path, no size above that of the old one, nothing to train on; the old one is no BPE, or one that
        marks how words go on or end.
      DataError: the old one cannot be read; the text has too few pairs for so many ids.
    """
    if not spec.path:
        raise ConfigError("tokenizer.path: give the tokenizer.json to go on from, or the folder that holds it")
    if documents is None:
        raise ConfigError("tokenizer.train_on: name the source whose corpus the BPE is trained further on")
    path = Path(spec.path).expanduser()
    file, content = bpe_content(path)
    for mark in ("continuing_subword_prefix", "end_of_word_suffix"):
        if content["model"].get(mark):
            raise ConfigError(f"tokenizer.path: {path} has a {mark}, whose training cannot go on here; train a new BPE")
    pieces = load(file, spec.eod_token).pieces()
    if spec.vocab_size is None or spec.vocab_size <= len(pieces):
        raise ConfigError(f"tokenizer.vocab_size: {spec.vocab_size}; {path} has {len(pieces):,} ids, ask for more")
    words = count_words(json.dumps(content), pieces, limited(documents(), spec.max_bytes))
    fresh, merges = learn(words, pieces, spec.vocab_size)
    if (reached := len(pieces) + len(fresh)) < spec.vocab_size:
        raise DataError(
            f"tokenizer: the training text yields {reached:,} ids, not {spec.vocab_size:,}; "
            "lower tokenizer.vocab_size to that, or train on more text"
        )
    return HuggingFaceTokenizer(with_tokens(content, pieces, fresh, merges), "tokenizer", spec.eod_token)


def count_words(content: str, pieces: list[Piece | None], documents: Iterator[str]) -> dict[Word, int]:
    """How often each word of two ids or more is in the text, of the ids that may merge.

    A tokenizer of SentencePiece's kind cuts no words, and merges would swallow whole phrases: a word ends before a
    blank, too.

    Args:
      content: of the `tokenizer.json`.
      pieces: what its ids stand for.
    """
    tokenizer = tokenizers.Tokenizer.from_str(content)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    added = {*tokenizer.get_added_tokens_decoder(), tokenizer.token_to_id(tokenizer.model.unk_token or "")}
    merging_V, blank_V, begins_V = (np.zeros(len(pieces), bool) for _ in range(3))
    for i, piece in enumerate(pieces):
        if piece is not None and piece.role == "text" and piece.text and i not in added:
            merging_V[i] = True
            blank_V[i], begins_V[i] = not piece.text.strip(b" "), piece.text.startswith(b" ")
    words: Counter[bytes] = Counter()
    while batch := list(itertools.islice(documents, BATCH)):
        for encoded in tokenizer.encode_batch(batch, add_special_tokens=False):
            ids_L, word_L = np.array(encoded.ids, np.int32), np.array(encoded.word_ids)
            apart = ~merging_V[ids_L[1:]] | ~merging_V[ids_L[:-1]]
            apart |= (word_L[1:] != word_L[:-1]) | (begins_V[ids_L[1:]] & ~blank_V[ids_L[:-1]])
            edges = [0, *(np.flatnonzero(apart) + 1).tolist(), len(ids_L)]
            stored, width = ids_L.tobytes(), ids_L.itemsize
            words.update(stored[a * width : b * width] for a, b in itertools.pairwise(edges) if b - a > 1)
    return {tuple(np.frombuffer(word, np.int32).tolist()): n for word, n in words.items()}


def learn(words: Mapping[Word, int], pieces: list[Piece | None], size: int) -> tuple[list[str], list[tuple[str, str]]]:
    """The next tokens and merges of a BPE, up to `size` ids, or fewer where no pair is left.

    Of pairs that are equally frequent the one with the smaller ids comes first. A pair that spells a token that is
    there is passed over: the merges before would go on from it, and the text would no longer be cut as it was.
    """
    names = {i: piece.name for i, piece in enumerate(pieces) if piece is not None}
    known = set(names.values())
    spelled, counts = [list(word) for word in words], list(words.values())
    pairs: Counter[Pair] = Counter()
    places: defaultdict[Pair, set[int]] = defaultdict(set)
    for at, (word, n) in enumerate(zip(spelled, counts, strict=True)):
        for pair in itertools.pairwise(word):
            pairs[pair] += n
            places[pair].add(at)
    heap = [(-n, pair) for pair, n in pairs.items()]
    heapq.heapify(heap)
    fresh: list[str] = []
    merges: list[tuple[str, str]] = []
    while heap and len(pieces) + len(fresh) < size:
        n, pair = heapq.heappop(heap)
        name = names[pair[0]] + names[pair[1]]
        if pairs[pair] != -n:
            if pairs[pair] > 0:  # it became rarer since
                heapq.heappush(heap, (-pairs[pair], pair))
            continue
        if name in known:
            continue
        made = len(pieces) + len(fresh)
        names[made] = name
        known.add(name)
        fresh.append(name)
        merges.append((names[pair[0]], names[pair[1]]))
        touched = set()
        for at in places.pop(pair):
            before, after = spelled[at], _merged(spelled[at], pair, made)
            for old in itertools.pairwise(before):
                pairs[old] -= counts[at]
            for new in itertools.pairwise(after):
                pairs[new] += counts[at]
                places[new].add(at)
                touched.add(new)
            spelled[at] = after
        del pairs[pair]
        for new in touched:
            heapq.heappush(heap, (-pairs[new], new))
    return fresh, merges


def _merged(word: list[int], pair: Pair, into: int) -> list[int]:
    """The word with each occurrence of the pair as one id, from the left."""
    out: list[int] = []
    skip = False
    for a, b in itertools.zip_longest(word, word[1:]):
        if skip:
            skip = False
        elif (a, b) == pair:
            out.append(into)
            skip = True
        else:
            out.append(a)
    return out
