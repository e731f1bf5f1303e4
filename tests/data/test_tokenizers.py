"""Tokenizers: exact round trips and byte counts, determinism, and what a foreign tokenizer.json may be."""

import builtins
import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece as library
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from cpt.data.tokenizers._base import TokenizerSpec, load
from cpt.data.tokenizers.bpe import bpe, limited
from cpt.data.tokenizers.byte import _byte_characters, byte
from cpt.data.tokenizers.file import file
from cpt.data.tokenizers.sentencepiece import BLANK, SentencePieceTokenizer, sentencepiece
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
    assert list(available("cpt.data.tokenizers")) == ["bpe", "byte", "continued_bpe", "file", "sentencepiece"]


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


# ---- SentencePiece


def model(model_type="bpe", vocab_size=340, text=TEXT, **options) -> bytes:
    """A `.model` of Llama's kind, trained on `text`: bytes for what it has no piece for, nothing normalised."""
    defaults = dict(byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False)
    out = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=out, model_type=model_type, vocab_size=vocab_size,
        hard_vocab_limit=False, minloglevel=2, **(defaults | options),
    )  # fmt: skip
    return out.getvalue()


LLAMA = model(user_defined_symbols=["<x>", f"{BLANK}{BLANK}"])
SP = SentencePieceTokenizer(LLAMA, "m")
UNIGRAM = SentencePieceTokenizer(model("unigram", add_dummy_prefix=False), "u")
spelled = texts | st.sampled_from(["</s>", "<s>a", "<unk>", "<0x41>", "a<x>  b", "  two  ", "\n\n", "Grüße"])


@pytest.mark.parametrize("tokenizer", [SP, UNIGRAM], ids=["bpe", "unigram"])
@given(batch=st.lists(spelled, max_size=4))
def test_sentencepiece_round_trip_and_exact_byte_counts(tokenizer, batch):
    encoded = tokenizer.encode_batch(batch)
    lengths = tokenizer.token_bytes()
    assert lengths.dtype == np.int32 and lengths.shape == (tokenizer.vocab_size,) and lengths[tokenizer.eod_id] == 0
    for text, ids in zip(batch, encoded, strict=True):
        assert ids.dtype == np.int32 and ids.ndim == 1
        assert not set(ids.tolist()) & {0, 1, 2}  # unknown, begin and end, also where the text spells them
        seen = text.replace(BLANK, " ")  # which the format cannot tell from a blank
        assert tokenizer.decode(ids) == seen
        put_in_front = bool(text) and tokenizer is SP
        assert lengths[ids].sum() == len(seen.encode()) + put_in_front


def test_sentencepiece_ids_are_the_librarys(tmp_path):
    (tmp_path / "m.model").write_bytes(LLAMA)
    own = library.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    assert (SP.kind, SP.vocab_size, SP.eod_id, SP.eod_token) == ("sentencepiece", own.vocab_size(), 2, "</s>")
    for text, ids in zip(TEXT, SP.encode_batch(TEXT), strict=True):
        assert ids.tolist() == own.encode(text) and SP.decode([1, *ids, 2, 10_000]) == text
    assert SP.token_bytes()[[0, 1, 2, own.piece_to_id("<0xC3>"), own.piece_to_id("<x>")]].tolist() == [0, 0, 0, 1, 3]
    assert SP.decode([]) == "" and SP.decode([own.piece_to_id("<0xC3>")]) == "\ufffd"


def test_sentencepiece_saves_and_loads_by_every_way(tmp_path):
    (tmp_path / "m.model").write_bytes(LLAMA)
    SP.save(tmp_path / "tokenizer.json")
    (tmp_path / "llama").mkdir()
    shutil.copy(tmp_path / "m.model", tmp_path / "llama" / "tokenizer.model")
    paths = [tmp_path / "m.model", tmp_path / "tokenizer.json", tmp_path, tmp_path / "llama"]
    given = [file(TokenizerSpec("file", path=str(p))) for p in paths]
    given += [sentencepiece(TokenizerSpec("sentencepiece", path=str(p))) for p in (paths[0], paths[3])]
    for again in given:
        assert isinstance(again, SentencePieceTokenizer)
        assert (again.hash, again.eod_id, again.vocab_size) == (SP.hash, SP.eod_id, SP.vocab_size)
        assert again.encode_batch(TEXT)[2].tolist() == SP.encode_batch(TEXT)[2].tolist()
    assert UNIGRAM.hash != SP.hash != load(tmp_path, "<s>").hash
    BPE.save(tmp_path / "llama" / "tokenizer.json")  # many folders have both
    assert load(tmp_path / "llama").hash == BPE.hash


def test_sentencepiece_counts_no_bytes_where_an_id_has_no_fixed_number():
    assert SentencePieceTokenizer(model(vocab_size=60, byte_fallback=False), "m").token_bytes() is None
    # Without a piece for the blank, its three bytes are spelled one by one.
    unspaced = SentencePieceTokenizer(model("unigram", 270, add_dummy_prefix=False, text=["abcabc", "cab"] * 9), "m")
    assert len(unspaced.encode_batch([" "])[0]) == 3 and unspaced.token_bytes() is None


def test_the_end_of_document_symbol_of_a_sentencepiece_model(tmp_path):
    assert SentencePieceTokenizer(LLAMA, "m", "<s>").eod_id == 1
    assert SentencePieceTokenizer(model(eos_piece="<stop>"), "m").eod_token == "<stop>"
    named = model(eos_id=-1, control_symbols=["<|endoftext|>"])
    assert SentencePieceTokenizer(named, "m").eod_token == "<|endoftext|>"
    for content, given_name, message in [
        (LLAMA, "<s/>", r"m: has no piece '<s/>'; did you mean '</?s>'\?; set eod_token"),
        (LLAMA, "<x>", r"m: '<x>' may stand in a text, it is no control symbol; set eod_token to one of <s>, </s>"),
        (model(eos_id=-1), None, "m: has no end of sentence; set eod_token"),
    ]:
        with pytest.raises(DataError, match=message):
            SentencePieceTokenizer(content, "m", given_name)


def test_errors_of_sentencepiece_files(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"tokenizer\.path: give the SentencePiece model"):
        sentencepiece(TokenizerSpec("sentencepiece"))
    with pytest.raises(DataError, match=r"none\.model: the tokenizer cannot be read"):
        load(tmp_path / "none.model")
    for content in (b"", b"no model", LLAMA[:-50]):
        (tmp_path / "m.model").write_bytes(content)
        with pytest.raises(DataError, match=r"m\.model: not a SentencePiece model \(.*\); copy it again") as e:
            load(tmp_path / "m.model")
        assert "\n" not in str(e.value)
    (tmp_path / "tokenizer.json").write_text('{"sentencepiece": "%%%"}')
    with pytest.raises(DataError, match=r"tokenizer\.json: its SentencePiece model is damaged"):
        load(tmp_path)
    plain = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "sentencepiece":
            raise ImportError(name)
        return plain(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match="m: a SentencePiece model needs `pip install sentencepiece`"):
        SentencePieceTokenizer(LLAMA, "m")


def test_no_fork_warning():
    program = (
        "import os; from cpt.data.tokenizers.bpe import bpe; from cpt.data.tokenizers._base import TokenizerSpec;"
        "t = bpe(TokenizerSpec(vocab_size=257), lambda: iter(['ab'])); t.encode_batch(['ab'] * 100);"
        "pid = os.fork(); t.encode_batch(['ab'] * 2) if pid else os._exit(0); os.waitpid(pid, 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "fork" not in done.stderr
