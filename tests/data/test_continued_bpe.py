"""A BPE that is trained further: old ids stay, new ones are made of them, and every size that was asked for is met."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt.data.preparing import SourceSpec, open_sources, trained_tokenizer
from cpt.data.tokenizers._base import Piece, TokenizerSpec, load
from cpt.data.tokenizers.bpe import bpe
from cpt.data.tokenizers.byte import ByteTokenizer
from cpt.data.tokenizers.continued_bpe import continued_bpe, learn
from cpt.errors import ConfigError, DataError

OLD_TEXT = ["the cat sat on the mat, the cat that the man had\n"] * 3
NEW_TEXT = ["def f(x):\n        return self.cat[x] + 1  # größer\n", "class A:\n    def g(self):\n        pass\n"] * 3


@pytest.fixture(scope="module")
def old_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("old") / "tokenizer.json"
    bpe(TokenizerSpec(vocab_size=275), lambda: iter(OLD_TEXT)).save(file)
    return file


def further(path, size, text=NEW_TEXT, **fields):
    return continued_bpe(TokenizerSpec(path=str(path), vocab_size=size, **fields), lambda: iter(text))


def test_the_next_tokens_are_those_counted_by_hand(tmp_path):
    """xyz once, " xyz" twice, " xy" once: xy 4 times, then " " + xy and xy + z 3 times each, of which " " is older."""
    bpe(TokenizerSpec(vocab_size=257), lambda: iter([""])).save(tmp_path / "old.json")
    tokenizer = further(tmp_path / "old.json", 261, ["xyz xyz xyz xy"])
    assert [piece.name for piece in tokenizer.pieces()[257:]] == ["xy", "Ġxy", "Ġxyz", "xyz"]
    assert tokenizer.encode_batch(["xyz xyz xy x"])[0].tolist()[:3] == [260, 259, 258]
    with pytest.raises(DataError, match=r"the training text yields 261 ids, not 262; lower tokenizer.vocab_size"):
        further(tmp_path / "old.json", 262, ["xyz xyz xyz xy"])


def test_old_ids_are_read_from_the_new_ones(old_file):
    """Each new token is two that were there before it; taken apart again a text is what it was."""
    old, new = load(old_file), further(old_file, 305)
    assert new.vocab_size == 305 and new.eod_id == old.eod_id and new.pieces()[:275] == old.pieces()
    assert new.hash == further(old_file, 305).hash != further(old_file, 306).hash
    merges = new._content["model"]["merges"]
    id_of = {piece.name: i for i, piece in enumerate(new.pieces())}
    parts = {id_of["".join(m)]: (id_of[m[0]], id_of[m[1]]) for m in merges[-30:]}
    assert sorted(parts) == list(range(275, 305)) and all(max(pair) < made for made, pair in parts.items())

    def apart(i):
        return [i] if i < 275 else [x for part in parts[i] for x in apart(part)]

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.sampled_from([*"def self cat(x):\n[]  return größ世", "self", " self", "<|endoftext|>"])))
    def check(letters):
        text = "".join(letters)
        (before,), (after,) = old.encode_batch([text]), new.encode_batch([text])
        assert [x for i in after.tolist() for x in apart(i)] == before.tolist()
        assert new.decode(after) == text and new.token_bytes()[after].sum() == len(text.encode())

    check()
    before, after = (sum(map(len, t.encode_batch(NEW_TEXT))) for t in (old, new))
    assert after < 0.6 * before


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.lists(st.integers(0, 3), min_size=2, max_size=7).map(tuple), st.integers(1, 9), max_size=9))
def test_counts_that_are_kept_up_are_those_counted_anew(words):
    pieces = [Piece(letter, letter.encode()) for letter in ("a", "b", "c", "aa")]
    names, spelled, fresh = [p.name for p in pieces], {w: list(w) for w in words}, []
    while len(fresh) < 12:
        counts = Counter()
        for word, n in words.items():
            for pair in itertools.pairwise(spelled[word]):
                counts[pair] += n
        left = [(-n, pair) for pair, n in counts.items() if names[pair[0]] + names[pair[1]] not in names]
        if not left:
            break
        _, best = min(left)
        names.append(names[best[0]] + names[best[1]])
        fresh.append(names[-1])
        for ids in spelled.values():
            at = 0
            while at < len(ids) - 1:
                if (ids[at], ids[at + 1]) == best:
                    ids[at : at + 2] = [len(names) - 1]
                at += 1
    assert learn(words, pieces, 4 + 12)[0] == fresh


def test_bytes_as_tokens_learn_words(tmp_path):
    """The byte tokenizer cuts nothing before; merges do not go from one word to the next all the same."""
    ByteTokenizer().save(tmp_path / "tokenizer.json")
    tokenizer = further(tmp_path, 267, ["the cat  the cat  the cat  a mat"])
    fresh = [piece.text for piece in tokenizer.pieces()[257:]]
    assert b" cat" in fresh and b"the" in fresh and b"  " in fresh
    assert not any(b" " in text.lstrip(b" ") for text in fresh)
    ids = tokenizer.encode_batch(["the cat"])[0]
    assert len(ids) < 4 and tokenizer.decode(ids) == "the cat" and tokenizer.eod_id == 256


def sentencepiece_like(path):
    """A BPE of Llama's form: blanks as U+2581, no cutting into words, bytes where there is no letter."""
    vocab = ["<unk>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", *"abcdefgh"]
    token = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    blanks = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    model = dict(
        type="BPE", vocab={t: i for i, t in enumerate(vocab)}, merges=[], byte_fallback=True, unk_token="<unk>"
    )
    content = {
        "version": "1.0", "added_tokens": [{"id": 1, "content": "</s>"} | token],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, blanks]},
        "pre_tokenizer": None, "decoder": None, "model": model,
    }  # fmt: skip
    path.write_text(json.dumps(content))
    return path


def test_a_tokenizer_of_sentencepiece_kind_merges_inside_words(tmp_path):
    file = sentencepiece_like(tmp_path / "tokenizer.json")
    tokenizer = further(file, len(load(file).pieces()) + 6, ["bad cab bad cab zbad bad cab", "éé éé éé éé"])
    fresh = [piece.name for piece in tokenizer.pieces()[267:]]
    assert len(fresh) == 6 and "▁bad" in fresh and "▁cab" in fresh
    assert not any("▁" in name[1:] or "<" in name for name in fresh)  # é is bytes, which are not merged


def test_what_cannot_be_trained_further_says_so(old_file, tmp_path):
    for path, size, line in (
        (None, 300, "tokenizer.path: give the tokenizer.json to go on from"),
        (old_file, 275, r"tokenizer.vocab_size: 275; .* has 275 ids, ask for more"),
        (old_file, None, r"tokenizer.vocab_size: None; .* has 275 ids"),
        (tmp_path / "marked.json", 300, "has a end_of_word_suffix|has a continuing_subword_prefix"),
    ):
        content = json.loads(old_file.read_text())
        content["model"]["end_of_word_suffix"] = "</w>"
        (tmp_path / "marked.json").write_text(json.dumps(content))
        with pytest.raises(ConfigError, match=line):
            continued_bpe(TokenizerSpec(path=path and str(path), vocab_size=size), lambda: iter(NEW_TEXT))
    with pytest.raises(ConfigError, match="train_on: name the source whose corpus the BPE is trained further on"):
        continued_bpe(TokenizerSpec(path=str(old_file), vocab_size=300), None)
    with pytest.raises(DataError, match=r"none.json: the tokenizer cannot be read"):
        further(tmp_path / "none.json", 300)


def test_a_run_trains_it_once_and_anew_where_the_old_one_changes(old_file, tmp_path):
    (tmp_path / "new.txt").write_text(NEW_TEXT[0])
    (tmp_path / "old.json").write_bytes(old_file.read_bytes())
    sources = {"new": SourceSpec(corpus="text", path=str(tmp_path / "new.txt"), validation=0.0)}
    spec = TokenizerSpec(kind="continued_bpe", path=str(tmp_path / "old.json"), vocab_size=280, train_on="new")
    said = []
    _, tokenizer = open_sources(sources, spec, tmp_path / "stores", said.append)
    assert tokenizer.vocab_size == 280 and any("training the continued_bpe tokenizer on new" in s for s in said)
    said.clear()
    opened, again = open_sources(sources, spec, tmp_path / "stores", said.append)
    assert again.hash == tokenizer.hash and not said
    assert np.max(opened["new"].train.read_rows(np.array([0]), 8)) >= 275
    kept = trained_tokenizer(spec, sources["new"], tmp_path / "stores")
    bpe(TokenizerSpec(vocab_size=274), lambda: iter(OLD_TEXT)).save(tmp_path / "old.json")
    assert trained_tokenizer(spec, sources["new"], tmp_path / "stores") != kept
