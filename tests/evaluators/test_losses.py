"""Losses of fixed sets: rows from all over the split, the model as it was trained, sums that others can add."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
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


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    rng = np.random.default_rng(0)
    documents = [[*rng.integers(1, 20, rng.integers(1, 9)), END] for _ in range(60)]
    return source(tmp_path_factory.mktemp("corpus"), documents)


BYTES = np.arange(20)


@settings(max_examples=10)
@given(st.lists(st.integers(1, 17), min_size=1, max_size=3), st.integers(1, 40), st.booleans())
def test_the_numbers_do_not_depend_on_passes_padding_or_company(params, corpus, sizes, per_pass, masked):
    """A set alone, a row at a time, against sets together, padded to passes of any size."""
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "fsdp"))
    one_device, end = NamedSharding(mesh, PartitionSpec(("data", "fsdp"))), END if masked else None
    sets = [take_set(f"s{i}", corpus, n, LENGTH, BYTES) for i, n in enumerate(sizes)]
    together = SetLosses(MODEL, sets, per_pass, one_device, end)
    for s, (row, sequences) in zip(sets, together.rows(np.asarray(together(params))), strict=True):
        by_itself = SetLosses(MODEL, [s], 1, one_device, end)
        ((wanted, each),) = by_itself.rows(np.asarray(by_itself(params)))
        counts = ("set", "tokens_scored", "bytes")
        assert {k: row[k] for k in counts} == {k: wanted[k] for k in counts}
        assert row["tokens_scored"] == len(s.windows_RxM) * LENGTH and row["bytes"] == s.windows_RxM[:, 1:].sum()
        assert row["nats"] == pytest.approx(wanted["nats"], rel=2e-7)
        assert sequences["nats"] == pytest.approx(each["nats"], rel=1e-6)


def test_bits_per_byte_are_those_of_the_definition(corpus, sharding):
    """Golden: 2.5 nats per token, 1,000 tokens, 4,200 bytes."""
    s = take_set("s", corpus, 20, LENGTH, BYTES)
    made = SetLosses(MODEL, [s], 20, sharding)
    windows = np.zeros((125, LENGTH + 1), np.int32)
    made.sets = [SimpleNamespace(name="s", windows_RxM=windows, bytes_R=np.full(125, 4200 / 125))]
    ((row, _),) = made.rows(np.full((1, 125), 2.5 * LENGTH))
    assert row["tokens_scored"] == 1000 and row["loss"] == 2.5
    assert row["bits_per_byte"] == pytest.approx(0.858747, abs=1e-6)


ON_DEVICES = """
import sys; sys.path[:0] = [{here!r}]
import jax, json, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from pathlib import Path
import test_losses as t
corpus = t.source(Path({tmp!r}), [[*np.random.default_rng(i).integers(1, 20, 7), t.END] for i in range(40)])
sets = [t.take_set(f"s{{n}}", corpus, n, t.LENGTH, t.BYTES) for n in (3, 10, 21)]
params = t.MODEL.init(jax.random.key(0))
for data, fsdp in ((1, 1), (2, 1), (1, 3), (2, 4)):
    mesh = Mesh(np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp), ("data", "fsdp"))
    losses = t.SetLosses(t.MODEL, sets, 6, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
    placed = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    print(json.dumps([row for row, _ in losses.rows(np.asarray(losses(placed)))]))
"""


@pytest.mark.slow
def test_the_numbers_do_not_depend_on_the_devices(tmp_path):
    code = ON_DEVICES.format(here=str(Path(__file__).parent), tmp=str(tmp_path))
    env = {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    first, *others = (json.loads(line) for line in done.stdout.splitlines())
    assert len(others) == 3
    for rows in others:
        for row, wanted in zip(rows, first, strict=True):
            assert row["nats"] == pytest.approx(wanted["nats"], rel=2e-7)
            assert {**row, **dict.fromkeys(("nats", "loss", "bits_per_byte"))} == {
                **wanted,
                **dict.fromkeys(("nats", "loss", "bits_per_byte")),
            }


ON_HOSTS = """
import sys; sys.path[:0] = [{here!r}]
import jax
hosts, host, port = map(int, sys.argv[1:])
if hosts > 1:
    jax.distributed.initialize(f"127.0.0.1:{{port}}", hosts, host)
import json, numpy as np, test_losses as t
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from pathlib import Path
place = Path({tmp!r}) / f"{{hosts}}-{{host}}"
place.mkdir()
corpus = t.source(place, [[*np.random.default_rng(i).integers(1, 20, 7), t.END] for i in range(40)])
sets = [t.take_set(f"s{{n}}", corpus, n, t.LENGTH, t.BYTES) for n in (3, 10, 21)]
mesh = Mesh(np.array(jax.devices()).reshape(-1, 1), ("data", "fsdp"))
losses = t.SetLosses(t.MODEL, sets, 6, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
params = jax.jit(t.MODEL.init, out_shardings=NamedSharding(mesh, PartitionSpec()))(jax.random.key(0))
print(json.dumps([row for row, _ in losses.rows(np.asarray(losses(params)))]))
"""


@pytest.mark.slow
def test_the_numbers_do_not_depend_on_the_hosts(tmp_path):
    """1 and 3 real processes: the same digits, on every one of them."""
    code, told = ON_HOSTS.format(here=str(Path(__file__).parent), tmp=str(tmp_path)), []
    for hosts in (1, 3):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        commands = [[sys.executable, "-c", code, *map(str, (hosts, host, port))] for host in range(hosts)]
        started = [subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for c in commands]
        for process in started:
            out, err = process.communicate(timeout=300)
            assert process.returncode == 0, err
            told.append(out.splitlines()[-1])
    assert len(told) == 4 and len(set(told)) == 1
