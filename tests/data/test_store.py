"""Token stores: the Megatron layout byte by byte, rows that predict each token once, and damage that is found."""

import json
import pickle
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cpt.data.megatron import Writer, open_pair, token_dtype
from cpt.data.store import TokenStore, sampled_hash
from cpt.errors import DataError


def write(prefix, documents, vocab_size=1000):
    with Writer(prefix, token_dtype(vocab_size)) as writer:
        for ids in documents:
            writer.add(np.asarray(ids, np.int64))
    return prefix


def index(sizes, pointers, documents, code=8, version=1, magic=b"MMIDIDX\x00\x00"):
    """An `.idx` by hand."""
    out = magic + struct.pack("<Q", version) + struct.pack("<B", code) + struct.pack("<QQ", len(sizes), len(documents))
    return out + struct.pack(f"<{len(sizes)}i{len(pointers)}q{len(documents)}q", *sizes, *pointers, *documents)


def test_golden_bytes(tmp_path):
    write(tmp_path / "t", [[1, 2, 3], [], [65535, 0]], vocab_size=65536)
    assert (tmp_path / "t.bin").read_bytes() == bytes.fromhex("0100 0200 0300 ffff 0000")
    expected = bytes.fromhex(
        "4d4d494449445800 00"  # MMIDIDX, two zero bytes
        "0100000000000000 08"  # version 1, uint16
        "0300000000000000 0400000000000000"  # sequences, document boundaries
        "03000000 00000000 02000000"  # sizes
        "0000000000000000 0600000000000000 0600000000000000"  # byte offsets
        "0000000000000000 0100000000000000 0200000000000000 0300000000000000"
    )
    assert (tmp_path / "t.idx").read_bytes() == expected == index([3, 0, 2], [0, 6, 6], [0, 1, 2, 3])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.bin", "t.idx"]


def test_reads_what_others_wrote(tmp_path):
    (tmp_path / "x.bin").write_bytes(struct.pack("<5q", 7, 8, 9, 10, 2**40))
    (tmp_path / "x.idx").write_bytes(index([2, 2, 1], [0, 16, 32], [0, 2, 3], code=5))  # a document of two sequences
    files = open_pair(tmp_path / "x")
    assert files.tokens.tolist() == [7, 8, 9, 10, 2**40] and not files.tokens.flags.writeable
    assert (files.sizes.tolist(), files.pointers.tolist()) == ([2, 2, 1], [0, 16, 32])
    assert files.documents.tolist() == [0, 2, 3]


@given(documents=st.lists(hnp.arrays(np.int64, st.integers(0, 9), elements=st.integers(0, 69_999)), max_size=6))
def test_writer_and_reader_round_trip(tmp_path_factory, documents):
    prefix = write(tmp_path_factory.mktemp("pair") / "a.b", documents, vocab_size=70_000)
    files = open_pair(prefix)
    assert files.tokens.tolist() == [i for d in documents for i in d.tolist()]
    assert files.sizes.tolist() == [len(d) for d in documents]
    assert files.documents.tolist() == list(range(len(documents) + 1))
    assert TokenStore.open(prefix).max_id() == max((int(d.max()) for d in documents if len(d)), default=-1)


def test_dtype_by_vocabulary():
    assert token_dtype(65536) == np.uint16 and token_dtype(65537) == np.int32


def test_ids_that_do_not_fit_are_refused_not_wrapped(tmp_path):
    for ids, bad in (([65536], 65536), ([3, -1], -1)):
        with pytest.raises(DataError, match=f"token id {bad} does not fit uint16"):
            write(tmp_path / "t", [ids])
    assert list(tmp_path.iterdir()) == []  # and nothing is left behind


def test_a_pair_appears_whole_or_not_at_all(tmp_path):
    write(tmp_path / "t", [[1, 2]])
    before = (tmp_path / "t.bin").read_bytes(), (tmp_path / "t.idx").read_bytes()
    with pytest.raises(KeyError), Writer(tmp_path / "t", token_dtype(10)) as writer:
        writer.add(np.asarray([5, 6, 7]))
        raise KeyError
    assert before == ((tmp_path / "t.bin").read_bytes(), (tmp_path / "t.idx").read_bytes())
    assert len(list(tmp_path.iterdir())) == 2


GOOD = index([2, 1], [0, 4], [0, 1, 2])


@pytest.mark.parametrize(
    ("idx", "message"),
    [
        (b"TNTIDX\x00\x00" + GOOD[8:], "old TNTIDX format"),
        (b"PK\x03\x04" + GOOD[4:], "not a Megatron index"),
        (b"", "not a Megatron index"),
        (GOOD[:20], "cut off after 20 bytes"),
        (GOOD[:-1], r"\d+ bytes, but its header says"),
        (GOOD + b"\0", r"\d+ bytes, but its header says"),
        (index([2, 1], [0, 4], [0, 1, 2], version=2), "version 2"),
        (index([2, 1], [0, 4], [0, 1, 2], code=6), "dtype code 6"),
        (index([2, 1], [0, 2], [0, 1, 2]), "contradict each other"),
        (index([4, -1], [0, 8], [0, 1, 2]), "contradict each other"),
        (index([2, 1], [0, 4], [0, 1, 3]), "contradict each other"),
        (index([2, 1], [0, 4], [1, 1, 2]), "contradict each other"),
        (index([2, 1], [0, 4], []), "contradict each other"),
        (index([2, 2], [0, 4], [0, 1, 2]), r"t\.bin: 2 bytes shorter than t\.idx says"),
        (index([1, 1], [0, 2], [0, 1, 2]), r"t\.bin: 2 bytes longer than t\.idx says"),
    ],
)
def test_damage_is_one_clear_line(tmp_path, idx, message):
    (tmp_path / "t.bin").write_bytes(bytes(6))
    (tmp_path / "t.idx").write_bytes(idx)
    with pytest.raises(DataError, match=message) as e:
        TokenStore.open(tmp_path / "t")
    assert "\n" not in str(e.value)


def test_missing_files(tmp_path):
    with pytest.raises(DataError, match=r"t\.bin: no such file"):
        TokenStore.open(tmp_path / "t")
    (tmp_path / "t.bin").write_bytes(bytes(6))
    with pytest.raises(DataError, match=r"t\.idx: no such file"):
        TokenStore.open(tmp_path / "t.bin")


@given(n=st.integers(0, 60), length=st.integers(1, 20), cut=st.integers(0, 60))
def test_rows_predict_every_token_but_the_first_exactly_once(tmp_path_factory, n, length, cut):
    tokens = np.arange(n)
    store = TokenStore.open(write(tmp_path_factory.mktemp("s") / "t", [tokens[:cut], tokens[cut:]]))
    count = store.rows(length)
    rows = store.read_rows(np.arange(count), length)
    assert rows.shape == (count, length + 1) and rows.dtype == np.int32
    # Predicted tokens in order are the store's from the second on; each input is the token before its target.
    assert rows[:, 1:].ravel().tolist() == list(range(1, count * length + 1))
    assert (rows[:, :-1] + 1 == rows[:, 1:]).all()
    assert n - 1 - count * length < length  # less than a row is left over


def test_rows_in_any_order(tmp_path):
    store = TokenStore.open(write(tmp_path / "t", [np.arange(10, 21)]))
    assert store.rows(3) == 3
    assert store.read_rows(np.asarray([2, 0, 2]), 3).tolist() == [[16, 17, 18, 19], [10, 11, 12, 13], [16, 17, 18, 19]]
    assert store.read_rows(np.asarray([], np.int64), 3).shape == (0, 4)
    for bad in ([3], [0, -1]):
        with pytest.raises(IndexError, match=rf"rows {min(bad)} to {max(bad)} of 3"):
            store.read_rows(np.asarray(bad), 3)


def test_opens_by_prefix_or_file_and_travels_to_workers_by_name(tmp_path):
    write(tmp_path / "a.b", [[4, 5, 6]])
    for name in ("a.b", "a.b.bin", "a.b.idx"):
        assert TokenStore.open(str(tmp_path / name)).tokens.tolist() == [4, 5, 6]
    store = TokenStore.open(tmp_path / "a.b")
    assert not store.tokens.flags.writeable
    large = TokenStore.open(write(tmp_path / "large", [np.zeros(5000)]))
    pickled = pickle.dumps(large)
    assert len(pickled) < 500 and pickle.loads(pickled).n_tokens == 5000


def test_fingerprint_of_a_bare_pair_depends_on_content_and_documents(tmp_path):
    big = np.arange(300_000) % 1000
    names = {}
    for name, documents in {
        "a": [big], "copy": [big], "last": [np.append(big[:-1], 1)], "cut": [big[:7], big[7:]], "longer": [big, [1]]
    }.items():  # fmt: skip
        names[name] = TokenStore.open(write(tmp_path / name, documents)).fingerprint
    assert names.pop("copy") == names["a"]
    assert len(set(names.values())) == 4
    assert len(sampled_hash(tmp_path / "a")) == 64


def manifest(folder, **change):
    entry = {"bytes": 6, "max_id": 77, "sha256": "ab" * 32}
    content = {"complete": True, "command": "python -m cpt.prepare --out=stores/new", "splits": {"train": entry}}
    (folder / "manifest.json").write_text(json.dumps(content | change))


def test_the_manifest_is_believed_for_what_is_costly_to_find(tmp_path):
    manifest(tmp_path)
    store = TokenStore.open(write(tmp_path / "train", [[1, 2, 3]]))
    assert (store.max_id(), store.fingerprint) == (77, "ab" * 32)
    # A pair that the manifest does not list is read as a bare one.
    assert TokenStore.open(write(tmp_path / "other", [[1, 2, 3]])).max_id() == 3


def test_a_size_that_is_not_the_manifests_is_an_error_with_the_remedy(tmp_path):
    write(tmp_path / "train", [[1, 2, 3]])
    for size, how in ((2054, "2,048 bytes shorter"), (2, "4 bytes longer")):
        manifest(tmp_path, splits={"train": {"bytes": size}})
        expected = rf"train\.bin: {how} than its manifest says; run `python -m cpt\.prepare --out=stores/new`"
        with pytest.raises(DataError, match=expected):
            TokenStore.open(tmp_path / "train")
    (tmp_path / "train.bin").unlink()
    with pytest.raises(DataError, match=r"train\.bin: listed in manifest\.json, but missing"):
        TokenStore.open(tmp_path / "train")


def test_manifests_that_are_unfinished_damaged_or_of_something_else(tmp_path):
    write(tmp_path / "train", [[1, 2, 3]])
    manifest(tmp_path, complete=False)
    with pytest.raises(DataError, match=r"not the manifest of a finished store; remove"):
        TokenStore.open(tmp_path / "train")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest\.json: cannot be read"):
        TokenStore.open(tmp_path / "train")
    (tmp_path / "manifest.json").write_text('{"name": "a web app"}')
    assert TokenStore.open(tmp_path / "train").max_id() == 3


@pytest.mark.parametrize("whole", [True, False])
def test_tokens_that_were_changed_in_place_are_noticed(tmp_path, monkeypatch, whole):
    from cpt.data import store as stores
    from cpt.data.tokenizers._base import TokenizerSpec
    from cpt.data.tokenizers.byte import byte
    from cpt.data.tokenizing import prepare

    prepare([f"text number {i}" for i in range(50)], byte(TokenizerSpec(kind="byte"), None), tmp_path / "s", 0.0, {})
    if not whole:
        monkeypatch.setattr(stores, "READ_WHOLE", 10)
    TokenStore.open(tmp_path / "s" / "train").verify()
    data = bytearray((tmp_path / "s" / "train.bin").read_bytes())
    data[100] ^= 1
    (tmp_path / "s" / "train.bin").write_bytes(data)
    with pytest.raises(DataError, match=r"train\.bin: not the tokens that its manifest says .*make it again"):
        TokenStore.open(tmp_path / "s" / "train").verify()


def test_every_token_knows_its_document(tmp_path):
    documents = [[1, 2, 3], [], [4], [5, 6]]
    store = TokenStore.open(write(tmp_path / "d", documents))
    assert store.document_at(np.arange(6)).tolist() == [0, 0, 0, 2, 3, 3]
