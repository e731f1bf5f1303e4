"""Token stores: the Megatron layout byte by byte, rows that predict each token once, and damage that is found."""

import itertools
import json
import pickle
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cpt.data import store as stores
from cpt.data.corpora._base import Document, Part
from cpt.data.manifest import sampled_hash, write_manifest
from cpt.data.megatron import Writer, open_pair, token_dtype
from cpt.data.store import TokenStore
from cpt.data.tokenizers.byte import byte
from cpt.data.tokenizing import Options, prepare
from cpt.errors import ConfigError, DataError


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
    assert files.tokens[:].tolist() == [7, 8, 9, 10, 2**40]
    assert (files.sizes.tolist(), files.pointers.tolist()) == ([2, 2, 1], [0, 16, 32])
    assert files.documents.tolist() == [0, 2, 3]


@given(documents=st.lists(hnp.arrays(np.int64, st.integers(0, 9), elements=st.integers(0, 69_999)), max_size=6))
def test_writer_and_reader_round_trip(tmp_path_factory, documents):
    prefix = write(tmp_path_factory.mktemp("pair") / "a.b", documents, vocab_size=70_000)
    files = open_pair(prefix)
    assert files.tokens[:].tolist() == [i for d in documents for i in d.tolist()]
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
        assert TokenStore.open(str(tmp_path / name)).read(0, 3).tolist() == [4, 5, 6]
    large = TokenStore.open(write(tmp_path / "large", [np.zeros(5000)]))
    pickled = pickle.dumps(large)
    assert len(pickled) < 1000 and pickle.loads(pickled).n_tokens == 5000


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


def make(folder, documents=50, **given):
    parts = [Part("p", lambda: (f"text number {i}" for i in range(documents)))]
    return prepare(parts, byte(), folder, Options(**given), {"command": "python -m cpt.prepare --out=stores/new"})


def forge(folder, **change):
    """Another manifest, with a digest that fits."""
    content = json.loads((folder / "manifest.json").read_text()) | change
    write_manifest(folder, content)
    return content


def test_the_manifest_is_believed_for_what_is_costly_to_find(tmp_path):
    splits = make(tmp_path)["splits"]
    splits["train"]["max_id"] = 300
    splits["train"]["shards"][0]["sha256"] = "ab" * 32
    forge(tmp_path, splits=splits)
    store = TokenStore.open(tmp_path)
    assert (store.max_id(), store.fingerprint) == (300, "ab" * 32)
    # One of its pairs by its prefix is a bare one.
    assert TokenStore.open(tmp_path / "train-00000").max_id() == 256


def test_a_size_that_is_not_the_manifests_is_an_error_with_the_remedy(tmp_path):
    make(tmp_path)
    file = tmp_path / "train-00000.bin"
    whole = file.read_bytes()
    for content, how in ((whole[:-8], "8 bytes shorter"), (whole + bytes(4), "4 bytes longer")):
        file.write_bytes(content)
        expected = rf"train-00000\.bin: {how} than its manifest says; run `python -m cpt\.prepare --out=stores/new`"
        with pytest.raises(DataError, match=expected):
            TokenStore.open(tmp_path)
    file.unlink()
    with pytest.raises(DataError, match=r"train-00000\.bin: listed in manifest\.json, but missing"):
        TokenStore.open(tmp_path)


def test_manifests_that_are_unfinished_damaged_or_of_something_else(tmp_path):
    whole = make(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(whole | {"complete": False}))
    with pytest.raises(DataError, match=r"not the manifest of a finished store; remove"):
        TokenStore.open(tmp_path)
    whole["splits"]["train"]["tokens"] += 1  # a digit that no file contradicts
    path.write_text(json.dumps(whole))
    with pytest.raises(DataError, match=r"changed or damaged since it was written"):
        TokenStore.open(tmp_path)
    path.write_text("{")
    with pytest.raises(DataError, match=r"manifest\.json: cannot be read"):
        TokenStore.open(tmp_path)
    path.write_text('{"name": "a web app"}')
    with pytest.raises(DataError, match="holds no finished store"):
        TokenStore.open(tmp_path)


@pytest.mark.parametrize("whole", [True, False])
def test_tokens_that_were_changed_in_place_are_noticed(tmp_path, monkeypatch, whole):
    make(tmp_path)
    if not whole:
        monkeypatch.setattr(stores, "READ_WHOLE", 10)
    TokenStore.open(tmp_path).verify()
    for name, at in (("train-00000.bin", 100), ("train-00000.idx", -3)):
        good = (tmp_path / name).read_bytes()
        data = bytearray(good)
        data[at] ^= 1
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=r"train-00000\.bin: not the tokens that its manifest says .*; run `"):
            TokenStore.open(tmp_path).verify()
        (tmp_path / name).write_bytes(good)


def test_every_token_knows_its_document(tmp_path):
    documents = [[1, 2, 3], [], [4], [5, 6]]
    store = TokenStore.open(write(tmp_path / "d", documents))
    assert store.document_at(np.arange(6)).tolist() == [0, 0, 0, 2, 3, 3]
    assert [(n, ids.tolist()) for n, _, ids in store.documents()] == list(enumerate(documents))
    assert [n for n, *_ in store.documents(1, 3)] == [1, 2] and store.domain_of(np.arange(4)) == [""] * 4


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    cuts=st.lists(st.integers(0, 200), max_size=4),
    length=st.integers(1, 7),
)
def test_a_file_cut_by_bytes_reads_like_the_whole_one(tmp_path_factory, sizes, cuts, length):
    """Pythia's `.bin` lies in pieces; a cut may go through an id."""
    folder = tmp_path_factory.mktemp("cut")
    ends = np.cumsum(sizes)
    whole = TokenStore.open(write(folder / "w", np.split(np.arange(ends[-1]) + 300, ends[:-1])))
    content = (folder / "w.bin").read_bytes()
    at = sorted({min(c, len(content)) for c in cuts})
    pieces = [content[a:b] for a, b in itertools.pairwise([0, *at, len(content)])]
    for i, piece in enumerate(pieces):
        (folder / f"p-{i:05d}-of-{len(pieces) - 1:05d}.bin").write_bytes(piece)
    (folder / "p.idx").write_bytes((folder / "w.idx").read_bytes())
    store = TokenStore.open(folder / "p")
    assert store.read(0, store.n_tokens).tolist() == whole.read(0, whole.n_tokens).tolist()
    rows = np.arange(whole.rows(length))
    assert np.array_equal(store.read_rows(rows, length), whole.read_rows(rows, length))
    assert store.fingerprint == whole.fingerprint


def test_a_missing_piece_is_named(tmp_path):
    write(tmp_path / "p", [np.arange(30)])
    content = (tmp_path / "p.bin").read_bytes()
    (tmp_path / "p.bin").unlink()
    for i in (0, 1, 3):
        (tmp_path / f"p-{i:05d}-of-00003.bin").write_bytes(content[i * 15 : (i + 1) * 15])
    with pytest.raises(DataError, match=r"p\.bin: its piece 2 of 3 is missing"):
        TokenStore.open(tmp_path / "p")
    (tmp_path / "p-00003-of-00003.bin").unlink()
    (tmp_path / "p-00002-of-00003.bin").write_bytes(content[30:45])
    with pytest.raises(DataError, match=r"15 bytes shorter than p\.idx says"):
        TokenStore.open(tmp_path / "p")


# ---- shards, domains, parts
@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """1,000 documents of three domains and of none, in many small shards."""
    folder = tmp_path_factory.mktemp("sharded")
    documents = [
        Document(f"document {i} {'x' * (i % 9)}", ("", "Pile-CC", "PubMed Central")[i % 3]) for i in range(999)
    ]
    prepare([Part("p", lambda: iter(documents))], byte(), folder, Options(validation=0.1, shard_tokens=1500), {})
    return folder


def test_shards_read_as_one_row_of_tokens(sharded):
    store = TokenStore.open(sharded)
    assert len(store.shards) > 6 and store.domains == ("Pile-CC", "PubMed Central")
    joined = np.concatenate([ids for _, _, ids in store.documents()])
    assert store.read(0, store.n_tokens).tolist() == joined.tolist()
    rows = store.read_rows(np.arange(store.rows(100)), 100)
    assert rows[:, 1:].ravel().tolist() == joined[1 : 1 + rows[:, 1:].size].tolist()
    numbers = store.document_at(np.arange(store.n_tokens))
    assert np.bincount(numbers).tolist() == [len(ids) for _, _, ids in store.documents()]
    domains = store.domain_of(np.arange(store.n_documents))
    assert domains == [d for _, d, _ in store.documents()]
    store.verify()


def test_a_domain_is_a_store_of_its_own(sharded):
    store = TokenStore.open(sharded)
    parts = {d: store.view(d) for d in ("", *store.domains)}
    assert sum(p.n_tokens for p in parts.values()) == store.n_tokens
    for name, part in parts.items():
        assert {d for _, d, _ in part.documents()} == {name}
        assert part.n_tokens == store.manifest["splits"]["train"]["domains"][name]["tokens"]
    assert len({p.fingerprint for p in (store, *parts.values())}) == 4
    with pytest.raises(DataError, match="no domain 'Pile-C'; did you mean 'Pile-CC'"):
        store.view("Pile-C")


@given(st.integers(0, 900), st.integers(1, 900), st.integers(1, 50))
def test_a_part_of_a_store_is_that_part(sharded, skip, take, length):
    store = TokenStore.open(sharded).view("Pile-CC")
    part = store.view(skip_tokens=skip, take_tokens=take)
    assert part.read(0, take).tolist() == store.read(skip, take).tolist()
    assert part.document_at(np.arange(take)).tolist() == store.document_at(skip + np.arange(take)).tolist()
    rows = part.read_rows(np.arange(part.rows(length)), length)
    assert rows[:, :-1].ravel().tolist() == store.read(skip, rows[:, :-1].size).tolist()
    deeper = part.view(skip_tokens=take - 1)
    assert deeper.read(0, 1).tolist() == store.read(skip + take - 1, 1).tolist()


def test_a_part_that_is_not_there_is_refused(sharded):
    store = TokenStore.open(sharded)
    for skip, take in ((store.n_tokens, None), (0, store.n_tokens + 1), (-1, None), (5, 0)):
        with pytest.raises(DataError, match=r"holds .* tokens; skip_tokens="):
            store.view(skip_tokens=skip, take_tokens=take)


def test_stored_rows_are_the_stored_sequences(tmp_path):
    """Pythia's files hold rows of 2,049 tokens that share none."""
    write(tmp_path / "r", np.arange(44).reshape(4, 11))
    store = TokenStore.open(tmp_path / "r").view(whole_rows=True)
    assert store.rows(10) == 4
    assert store.read_rows(np.array([2, 0]), 10).tolist() == [list(range(22, 33)), list(range(11))]
    with pytest.raises(ConfigError, match=r"batch\.length: 11; .* hold 11 tokens, which is batch\.length=10"):
        store.rows(11)
    write(tmp_path / "u", [[1, 2], [3]])
    with pytest.raises(DataError, match="needs sequences of one length, these have 1 to 2"):
        TokenStore.open(tmp_path / "u").view(whole_rows=True).rows(1)


def test_a_shard_that_shrinks_while_it_is_read_is_an_error_and_no_crash(tmp_path):
    store = TokenStore.open(write(tmp_path / "t", [np.arange(1000)]))
    assert store.read(990, 1).tolist() == [990]
    (tmp_path / "t.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"t\.bin: ends before byte 1,980; it was cut off since it was opened"):
        store.read(990, 1)
