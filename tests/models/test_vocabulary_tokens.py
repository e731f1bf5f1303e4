"""Which tokens two tokenizers share, tokenizers that are extended, and what is wrong with what is given."""

import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from vocabularies import NEW_TEXT, OLD_TEXT, Words, byte_level, matrices, sentence_piece, vectors

from cpt.data.tokenizers._base import load
from cpt.data.tokenizers._hugging_face import HuggingFaceTokenizer
from cpt.data.tokenizers.byte import ByteTokenizer
from cpt.data.tokenizers.extending import extended
from cpt.errors import ConfigError, DataError, RunError, UserError
from cpt.models.vocabulary import VocabularySpec, prepare
from cpt.models.vocabulary._overlap import origins

BPE, OTHER, BYTE = byte_level(OLD_TEXT, 272), byte_level(NEW_TEXT, 285), ByteTokenizer()
SP = sentence_piece(OLD_TEXT)


def hugging_face(model: dict, added=(), **content) -> HuggingFaceTokenizer:
    tokens = [dict(id=i, content=name, special=special, normalized=False, single_word=False, lstrip=False, rstrip=False)
              for i, name, special in added]  # fmt: skip
    return HuggingFaceTokenizer({"version": "1.0", "model": model, "added_tokens": tokens, **content}, "t")


def ids(tokenizer, *names):
    by_name = {piece.name: i for i, piece in enumerate(tokenizer.pieces()) if piece}
    return [by_name[name] for name in names]


# ---- what ids stand for ----
@pytest.mark.parametrize("tokenizer", [BYTE, BPE, SP], ids=["byte", "bpe", "sentencepiece"])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from([*OLD_TEXT, "世界 \n"]))
def test_the_pieces_of_a_text_spell_it(tokenizer, text):
    pieces = tokenizer.pieces()
    spelled = b"".join(pieces[i].text for i in tokenizer.encode_batch([text])[0])
    # SentencePiece puts a blank in front, and takes its own sign for a blank.
    wanted = text.replace("\u2581", " ") if tokenizer is SP else text
    assert spelled.removeprefix(b" " if tokenizer is SP else b"") == wanted.encode()
    assert len(pieces) == tokenizer.vocab_size and pieces[tokenizer.eod_id].role == "special"


def test_pieces_of_other_kinds():
    llama = hugging_face(
        {"type": "BPE", "byte_fallback": True, "unk_token": "<unk>", "merges": [],
         "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "<0x0A>": 3, "\u2581the": 4, "a": 7}},
        [(0, "<unk>", True), (1, "<s>", True), (2, "</s>", True), (6, "  ", False)],
    )  # fmt: skip
    assert [p and (p.text, p.role) for p in llama.pieces()] == [
        (b"", "special"), (b"", "special"), (b"", "special"), (b"\n", "byte"), (b" the", "text"), None, (b"  ", "text"),
        (b"a", "text"),
    ]  # fmt: skip
    bert = hugging_face({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                         "max_input_chars_per_word": 9, "vocab": {"[UNK]": 0, "the": 1, "##ing": 2, "</s>": 3}},
                        [(0, "[UNK]", True), (3, "</s>", True)])  # fmt: skip
    assert [p.text for p in bert.pieces()] == [b"", b" the", b"ing", b""]


# ---- overlap ----
def test_the_same_token_is_found_however_it_is_spelled():
    """`Ġthe` is `▁the`, `Ċ` is `<0x0A>`, and what ends a document in one ends it in the other."""
    names = ["Ġthe", "Ġcat", "t", "Ċ", "<|endoftext|>", "ÿ"]
    theirs = ["▁the", "▁cat", "t", "<0x0A>", "</s>", "<0xFF>"]
    to_bpe, to_sp = origins(SP, BPE), origins(BPE, SP)
    assert to_bpe[ids(BPE, *names)].tolist() == ids(SP, *theirs)
    assert to_sp[ids(SP, *theirs)].tolist() == ids(BPE, *names)
    assert to_sp[ids(SP, "<unk>", "<s>")].tolist() == [-1, -1]
    # A byte of the fallback that has a character of its own: both are the byte-level token.
    assert to_sp[ids(SP, "<0x74>")] == to_sp[ids(SP, "t")] == ids(BPE, "t")
    assert (origins(BYTE, BPE) >= 0).sum() == 257 and (origins(BPE, BYTE) >= 0).all()


def test_a_tokenizer_is_itself_also_where_two_ids_are_one_token():
    for tokenizer in (BPE, SP, BYTE):
        assert origins(tokenizer, tokenizer).tolist() == list(range(tokenizer.vocab_size))
    old = Words("a", "b", "a")
    assert origins(old, Words("a", "b", "a")).tolist() == [0, 1, 2, 3]
    assert origins(old, Words("c", "a", "d")).tolist() == [0, -1, 1, -1]


# ---- extending ----
@pytest.mark.parametrize("old", [BPE, BYTE], ids=["bpe", "byte"])
def test_an_extended_tokenizer_keeps_every_id_and_writes_new_text_shorter(old, tmp_path):
    """Of the byte tokenizer the token that ends a document has an id behind those of its vocabulary."""
    old.save(tmp_path / "old.json")
    OTHER.save(tmp_path / "new.json")
    (tmp_path / "tokenizer.json").write_text(json.dumps(extended(tmp_path / "old.json", tmp_path / "new.json")))
    joined = load(tmp_path)
    assert joined.pieces()[: old.vocab_size] == old.pieces() and joined.eod_id == old.eod_id
    texts = {p.text for p in joined.pieces() if p.role == "text"}
    assert texts == {p.text for t in (old, OTHER) for p in t.pieces() if p.role == "text"}
    assert len(texts) == joined.vocab_size - 1  # and no token twice
    for text in [*OLD_TEXT, *NEW_TEXT, "the Hund", "世界"]:
        assert joined.decode(joined.encode_batch([text])[0]) == text
    for text in OLD_TEXT if old is BPE else ["123 45", "世"]:
        assert joined.encode_batch([text])[0].tolist() == old.encode_batch([text])[0].tolist()
    lengths = [len(t.encode_batch(NEW_TEXT[:1])[0]) for t in (old, joined)]
    assert lengths[1] < 0.6 * lengths[0]


def test_what_cannot_be_extended_says_so(tmp_path):
    BPE.save(tmp_path / "old.json")
    SP.save(tmp_path / "sp.json")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"</s>": 0, "a": 1}, unk_token="</s>"))
    words.save(str(tmp_path / "words.json"))
    plain = tokenizers.Tokenizer(tokenizers.models.BPE({"</s>": 0, "a": 1}, []))
    plain.save(str(tmp_path / "plain.json"))
    for name, line in (
        ("sp", "a sentencepiece tokenizer; only a BPE"),
        ("words", "a wordlevel tokenizer; only a BPE"),
        ("plain", r"plain.json: spells plain text, .*old.json bytes as characters; train"),
    ):
        with pytest.raises(ConfigError, match=line):
            extended(tmp_path / "old.json", tmp_path / f"{name}.json")


# ---- bad input ----
OLD, NEW = Words("the", "cat"), Words("the", "cat", "Hund")
GOOD = {"the": [1, 0], "cat": [0, 1], "Hund": [1, 1]}
CASES = {
    "misspelt method": (dict(method="focs"), r"init.vocabulary.method: no 'focs' .*did you mean 'focus'\?"),
    "negative seed": (dict(method="mean", seed=-1), r"init.vocabulary.seed: -1"),
    "no method": (dict(), r"init.vocabulary.method: none is given"),
    "no auxiliary": (dict(method="focus"), r"init.vocabulary.auxiliary: 'focus' needs it; give a file"),
    "no such auxiliary": (
        dict(method="wechsel", auxiliary="none.vec"),
        r"auxiliary=none.vec: no such file; give a t",
    ),
    "no overlap": (
        dict(method="focus", auxiliary={"uno": [1, 0], "Hund": [0, 1]}),
        r"of its 2 words is one of the ov",
    ),
    "no new word": (dict(method="focus", auxiliary={"the": [1, 0]}), r"none of its 1 words is one of the new tokens"),
    "no token": (dict(method="wechsel", auxiliary={"uno": [1, 0]}), r"no word of it has one of the old tokens"),
    "ragged": (
        dict(method="focus", auxiliary={"the": [1, 0], "a": [1, 2, 3]}),
        r":2: 3 numbers, 2 in the lines",
    ),
    "short": (dict(method="focus", auxiliary={"the": [1, 0, 1], "a": [1]}), r":2: 1 numbers, 3 in the lines before"),
    "no number": (dict(method="focus", auxiliary={"the": [1, "x"]}), r":1: not a word and its numbers"),
    "not finite": (dict(method="focus", auxiliary={"the": [1, "nan"]}), r"the vector of 'the' is not finite"),
    "empty": (dict(method="focus", auxiliary={}), r"holds no vectors; give a text file"),
    "two lengths": (
        dict(method="wechsel", auxiliary=GOOD, auxiliary_of_old={"the": [1, 2, 3]}),
        r"vectors of 3 numbers, of 2 in ",
    ),
    "no dictionary": (
        dict(method="wechsel", auxiliary=GOOD, auxiliary_of_old=GOOD, dictionary="none"),
        r"dictionary=none: no such file; give one with two words",
    ),
    "dictionary of others": (
        dict(method="wechsel", auxiliary=GOOD, auxiliary_of_old=GOOD, dictionary={"uno\tdue": []}),
        r"none of its 1 pairs is in the two files",
    ),
    "option": (
        dict(method="wechsel", options={"neighbors": 3}),
        r"options.neighbors: no such option of 'wechsel'; did",
    ),
    "option of none": (dict(method="mean", options={"scale": 3}), r"options.scale: no such option of 'mean'.*none\)"),
    "half a neighbour": (dict(method="wechsel", options={"neighbours": 0.5}), r"neighbours: 0.5 is not a whole number"),
    "no neighbour": (dict(method="wechsel", options={"neighbours": 0}), r"options.neighbours: 0 is not positive"),
    "word for a number": (
        dict(method="gaussian", options={"scale": "big"}),
        r"options.scale: 'big' is not a number",
    ),
    "no text": (dict(method="convex_hull"), r"init.vocabulary.text: 'convex_hull' needs it"),
    "no such text": (dict(method="convex_hull", text="none.txt"), r"text=none.txt: no such file"),
    "text of one word": (dict(method="convex_hull", text={"Hund": []}), r"no two tokens are next to each other in it"),
    "no rank": (dict(method="convex_hull", options={"rank": 0}), r"options.rank: 0 is not at least 1"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_is_one_line(name, tmp_path):
    fields, line = CASES[name]
    for field, value in fields.items():
        if isinstance(value, dict) and field != "options":
            fields = {**fields, field: vectors(tmp_path / f"{field}.txt", value)}
    with pytest.raises(UserError, match=line) as error:
        prepare(VocabularySpec(**fields), OLD, NEW, (3, 4), lambda _: None)
    assert "\n" not in str(error.value)


def test_an_npz_that_is_none_says_so(tmp_path):
    file = tmp_path / "v.npz"
    for content, line in (
        (None, "no arrays `words` and `vectors` can be read"),
        (dict(words=["the"]), "no arrays `words` and `vectors` can be read"),
        (dict(words=["the"], vectors=np.zeros((2, 3))), r"1 words, vectors of shape \[2, 3\]"),
        (dict(words=["the"], vectors=np.ones((1, 3)), counts=[0]), "a count is not a positive number"),
    ):
        if content is None:
            file.write_bytes(b"PK nothing")
        else:
            np.savez(file, **content)
        with pytest.raises(DataError, match=line):
            prepare(VocabularySpec(method="focus", auxiliary=str(file)), OLD, NEW, (3, 4), lambda _: None)


def test_models_and_tokenizers_that_do_not_fit_say_so():
    mean = VocabularySpec(method="mean")
    with pytest.raises(DataError, match=r"the old tokenizer has 3 ids and the model 2 rows"):
        prepare(mean, OLD, NEW, (2, 4), print)
    with pytest.raises(DataError, match=r"the new tokenizer has 4 ids, and model.vocab_size is 3"):
        prepare(mean, OLD, NEW, (3, 3), print)
    with pytest.raises(RunError, match=r"the input matrix has 5 rows, not 3"):
        prepare(mean, OLD, NEW, (3, 4), print).rows(matrices(5))
    broken = matrices(3)
    broken["output"][0] = np.inf
    with pytest.raises(RunError, match=r"rows of the output matrix that are not finite"), np.errstate(invalid="ignore"):
        prepare(mean, OLD, NEW, (3, 4), print).rows(broken)

    class Own:
        kind, vocab_size, eod_id = "own", 2, 0

    with pytest.raises(ConfigError, match=r"the tokenizer 'own' has no method `pieces`"):
        prepare(mean, OLD, Own(), (3, 4), print)
