"""Tokenizers: exact round trips and byte counts, determinism, and what a foreign tokenizer.json may be."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from cpt.data.tokenizers._base import TokenizerSpec, load
from cpt.data.tokenizers.bpe import bpe, limited
from cpt.data.tokenizers.byte import _byte_characters, byte
from cpt.data.tokenizers.file import file
from cpt.errors import ConfigError, DataError
from cpt.registry import available

TEXT = ["the cat sat on the mat, the cat that the man had", "def f(x):\n    return x + 1\n", "Grüße, 世界! " * 3] * 3


def trained(size: int = 300, **kwargs):
    return bpe(TokenizerSpec(vocab_size=size, **kwargs), lambda: iter(TEXT))


BPE = trained()
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.sampled_from(
    ["<|endoftext|>", "a<|endoftext|>b", *TEXT, "\0", " ", "the the  the"]
)


def test_the_room():
    assert list(available("cpt.data.tokenizers")) == ["bpe", "byte", "file"]


@pytest.mark.parametrize("tokenizer", [byte(), BPE], ids=["byte", "bpe"])
@given(batch=st.lists(texts, max_size=4))
def test_round_trip_and_exact_byte_counts(tokenizer, batch):
    encoded = tokenizer.encode_batch(batch)
    lengths = tokenizer.token_bytes()
    assert lengths.dtype == np.int32 and lengths.shape == (tokenizer.vocab_size,) and lengths[tokenizer.eod_id] == 0
    assert len(encoded) == len(batch)
    for text, ids in zip(batch, encoded, strict=True):
        assert ids.dtype == np.int32 and ids.ndim == 1
        assert tokenizer.eod_id not in ids  # also where the text spells its name
        assert tokenizer.decode(ids) == text
        assert lengths[ids].sum() == len(text.encode())


def test_byte_ids_are_the_bytes():
    tokenizer = byte()
    assert (tokenizer.vocab_size, tokenizer.eod_id, tokenizer.kind) == (257, 256, "byte")
    assert tokenizer.encode_batch(["é\n"])[0].tolist() == [0xC3, 0xA9, 10]
    assert tokenizer.decode([0xC3, 256, 65]) == "\ufffdA"


def test_the_byte_tokenizer_is_a_hugging_face_file_with_the_same_ids(tmp_path):
    byte().save(tmp_path / "tokenizer.json")
    other = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert other.get_vocab_size() == 257 and other.token_to_id("<|endoftext|>") == 256
    for text in TEXT:
        assert other.encode(text).ids == byte().encode_batch([text])[0].tolist()
        assert other.decode(other.encode(text).ids) == text


def test_byte_characters_are_those_of_gpt2():
    characters = _byte_characters()
    assert sorted(characters) == sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    assert (characters[ord("A")], characters[ord(" ")], characters[ord("\n")], characters[0xAD]) == ("A", "Ġ", "Ċ", "Ń")


def test_bpe_learns_exactly_the_ids_asked_for_and_is_deterministic():
    assert (BPE.vocab_size, BPE.eod_id, BPE.eod_token, BPE.kind) == (300, 0, "<|endoftext|>", "bpe")
    assert trained().hash == BPE.hash != trained(301).hash
    assert len(BPE.encode_batch(["the cat"])[0]) < len("the cat")
    assert np.sum(BPE.token_bytes() == 1) == 256 and np.sum(BPE.token_bytes() == 0) == 1


def test_bpe_says_what_to_do_when_it_cannot():
    with pytest.raises(DataError, match=r"yields \d+ ids, not 5,000; lower tokenizer.vocab_size"):
        trained(5000)
    with pytest.raises(ConfigError, match=r"tokenizer\.vocab_size: 256; .* at least 257"):
        trained(256)
    with pytest.raises(ConfigError, match=r"tokenizer\.vocab_size: None"):
        bpe(TokenizerSpec(), lambda: iter(TEXT))
    with pytest.raises(ConfigError, match=r"tokenizer\.train_on"):
        bpe(TokenizerSpec(vocab_size=300), None)


@given(documents=st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5), limit=st.integers(1, 40))
def test_training_text_is_a_prefix_of_at_most_max_bytes(documents, limit):
    everything = "".join(documents)
    cut = "".join(limited(iter(documents), limit))
    assert everything.startswith(cut)
    size, total = len(cut.encode()), len(everything.encode())
    assert size == total if total <= limit else limit - 4 < size <= limit  # a character has at most 4 bytes
    assert list(limited(iter(documents), None)) == documents


def test_max_bytes_limits_what_the_bpe_sees():
    one = bpe(TokenizerSpec(vocab_size=260), lambda: iter(TEXT[:1]))
    many = bpe(TokenizerSpec(vocab_size=260, max_bytes=len(TEXT[0])), lambda: iter([TEXT[0], "zzzzzzzz" * 100]))
    assert one.hash == many.hash


@pytest.mark.parametrize("tokenizer", [byte(), BPE], ids=["byte", "bpe"])
def test_save_and_load_give_the_same_tokenizer(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    for again in (load(tmp_path), load(tmp_path / "tokenizer.json"), file(TokenizerSpec(path=str(tmp_path)), None)):
        assert type(again) is type(tokenizer)
        assert (again.hash, again.eod_id, again.vocab_size) == (tokenizer.hash, tokenizer.eod_id, tokenizer.vocab_size)
        assert again.encode_batch(TEXT)[2].tolist() == tokenizer.encode_batch(TEXT)[2].tolist()


def foreign(tmp_path, change, name="tokenizer.json"):
    """A copy of `BPE`'s file, changed."""
    BPE.save(tmp_path / name)
    content = json.loads((tmp_path / name).read_text())
    change(content)
    (tmp_path / name).write_text(json.dumps(content))
    return tmp_path / name


def rename_eod(to):
    def change(content):
        content["added_tokens"][0]["content"] = to
        content["model"]["vocab"] = {
            (to if t == "<|endoftext|>" else t): i for t, i in content["model"]["vocab"].items()
        }

    return change


def test_the_end_of_document_token_is_found_by_name_or_given(tmp_path):
    assert load(foreign(tmp_path, rename_eod("</s>"))).eod_token == "</s>"
    path = foreign(tmp_path, rename_eod("<stop>"))
    with pytest.raises(DataError, match=r"has none of <\|endoftext\|>, </s>, <\|end_of_text\|>; set eod_token"):
        load(path)
    given_one = file(TokenizerSpec(kind="file", path=str(path), eod_token="<stop>"))
    assert (given_one.eod_id, given_one.token_bytes()[0]) == (0, 0)
    other = load(path, "the")  # an ordinary token, which stands for no text once it ends documents
    assert other.token_bytes()[other.eod_id] == 0 and other.eod_id > 256
    assert other.hash != given_one.hash  # it makes other stores
    with pytest.raises(DataError, match=r"no token '<stpo>'; did you mean '<stop>'"):
        load(path, "<stpo>")


def test_stored_truncation_padding_and_templates_are_not_applied(tmp_path):
    def change(content):
        content["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
        content["padding"] = {"strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None}
        content["padding"] |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"}

    assert load(foreign(tmp_path, change)).encode_batch(TEXT)[0].tolist() == BPE.encode_batch(TEXT)[0].tolist()


def test_added_tokens_are_counted(tmp_path):
    def change(content):
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        content["added_tokens"].append({"id": 305, "content": "  ü  ", "special": False, **flags})
        content["added_tokens"].append({"id": 306, "content": "<pad>", "special": True, **flags})

    tokenizer = load(foreign(tmp_path, change))
    lengths = tokenizer.token_bytes()
    assert tokenizer.vocab_size == len(lengths) == 302  # the library gives them the next free ids
    assert lengths[300:].tolist() == [len("  ü  ".encode()), 0]
    for text in ("a  ü  b", "<pad>", "ü"):
        assert lengths[tokenizer.encode_batch([text])[0]].sum() == len(text.encode())


def test_a_tokenizer_that_is_not_byte_level_has_no_byte_counts(tmp_path):
    def whitespace(content):
        content["pre_tokenizer"] = {"type": "Whitespace"}

    def nested(content):
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [content["pre_tokenizer"]]}

    def swallows_blanks(content):
        content["added_tokens"].append({**content["added_tokens"][0], "id": 300, "content": "<x>", "special": False})
        content["added_tokens"][-1]["lstrip"] = True

    assert load(foreign(tmp_path, whitespace)).token_bytes() is None
    assert load(foreign(tmp_path, swallows_blanks)).token_bytes() is None
    assert load(foreign(tmp_path, nested)).token_bytes().tolist() == BPE.token_bytes().tolist()


def test_errors_of_files(tmp_path):
    with pytest.raises(ConfigError, match=r"tokenizer\.path"):
        file(TokenizerSpec(kind="file"))
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path / "none.json")
    for content in ("{", "[]", "{}"):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(DataError, match=r"tokenizer\.json: "):
            load(tmp_path)


def test_no_fork_warning():
    program = (
        "import os; from cpt.data.tokenizers.bpe import bpe; from cpt.data.tokenizers._base import TokenizerSpec;"
        "t = bpe(TokenizerSpec(vocab_size=257), lambda: iter(['ab'])); t.encode_batch(['ab'] * 100);"
        "pid = os.fork(); t.encode_batch(['ab'] * 2) if pid else os._exit(0); os.waitpid(pid, 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "fork" not in done.stderr
