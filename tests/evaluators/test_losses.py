"""Losses of fixed sets: rows from all over the split, the model as it was trained, sums that others can add."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cpt.data.megatron import Writer, token_dtype
from cpt.data.store import TokenStore
from cpt.errors import DataError
from cpt.evaluators.losses import SetLosses, segments, spread, take_set
from cpt.models.base import build
from cpt.models.spec import ModelSpec

END, LENGTH = 0, 8
MODEL = build(ModelSpec(layers=2, width=16, heads=2, vocab_size=20, context=LENGTH))


@pytest.fixture(scope="module")
def params():
    return MODEL.init(jax.random.key(0))


@pytest.fixture
def sharding():
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "fsdp"))
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def source(tmp_path, documents):
    with Writer(tmp_path / "v", token_dtype(20)) as writer:
        for ids in documents:
            writer.add(np.asarray(ids, np.int64))
    return SimpleNamespace(name="s", validation=TokenStore.open(tmp_path / "v"))


@given(st.integers(1, 500), st.integers(1, 500))
def test_rows_are_distinct_and_evenly_spaced(n, available):
    n = min(n, available)
    rows = spread(n, available)
    gaps = np.diff([-rows[0] - 1, *rows, 2 * available - rows[-1] - 1])  # mirrored at both ends
    assert len(rows) == n and rows[0] >= 0 and rows[-1] < available
    assert np.all(np.diff(rows) > 0) and gaps.max() - gaps.min() <= 2


def test_a_set_says_where_its_rows_come_from(tmp_path):
    documents = [np.full(30, i + 1) for i in range(10)]  # 300 tokens, 37 rows of 8
    taken = take_set("x", source(tmp_path, documents), 5, LENGTH, np.ones(20, int))
    assert taken.rows_R.tolist() == [3, 11, 18, 25, 33]
    assert taken.documents_R.tolist() == [r * LENGTH // 30 for r in taken.rows_R]
    assert taken.windows_RxM.shape == (5, LENGTH + 1) and taken.bytes_R.tolist() == [LENGTH] * 5
    assert len(take_set("x", source(tmp_path, documents), 1000, LENGTH, None).rows_R) == 37


def test_a_split_without_a_row_is_named(tmp_path):
    with pytest.raises(DataError, match=r"evaluation\.sets\.x: the validation split of source 's' holds no row of 9"):
        take_set("x", source(tmp_path, [[1, 2, 3]]), 5, LENGTH, None)


def test_the_end_belongs_to_its_document():
    assert segments(np.array([[5, END, 6, 7, END, END, 8, 9]]), END).tolist() == [[0, 0, 1, 1, 1, 2, 3, 3]]


def test_with_masking_a_packed_row_is_its_documents_one_by_one(tmp_path, params, sharding):
    first, second = [3, 4, 5, END], [6, 7, 8, 9, END]
    row = np.array([[*first, *second]], np.int32)
    packed = take_set("x", source(tmp_path, row), 1, LENGTH, None)

    def nats(window, end):
        made = SetLosses(MODEL, [SimpleNamespace(**{**vars(packed), "windows_RxM": window})], 1, sharding, end)
        return float(np.asarray(made(params)).sum())

    def alone(ids):  # predictions inside a document do not see what lies beside it
        ids = np.asarray(ids)
        hidden = MODEL.apply(params, ids[None, :-1])
        logits = np.asarray(hidden @ MODEL.head(params), np.float64)[0]
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        return -logits[np.arange(len(ids) - 1), ids[1:]].sum()

    # The end of a document predicts the first token of the next from nothing but itself and its document.
    assert nats(row, END) == pytest.approx(alone([*first, second[0]]) + alone(second), rel=1e-5)
    assert abs(nats(row, None) - nats(row, END)) > 1e-4
