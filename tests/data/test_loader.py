"""The loader: rows of hosts add up to the batch, a start anywhere gives the rest of the same stream, targets follow."""

import itertools
import shutil
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt.config import load
from cpt.data import loader
from cpt.data.loader import Batches, read_ahead, start_at
from cpt.data.mix import MixPlan
from cpt.data.preparing import SourceSpec, open_sources
from cpt.data.tokenizers._base import TokenizerSpec
from cpt.errors import DataError
from cpt.plan import resolve
from cpt.training.feed import Data, check_data, host_batches

END = 256


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """The toy recipe with six-step phases, which replay half, and its opened stores."""
    return recipe_of(tmp_path_factory.mktemp("loader"), 8)


def recipe_of(root, sequences: int) -> SimpleNamespace:
    import toy

    config = toy.get_config(str(root))
    config.batch.sequences = sequences
    config.phases.first.steps = config.phases.second.steps = 6
    config.phases.second.replay.share, config.phases.second.replay.max_repeats = 0.5, 2.0
    plan = resolve(load(config))
    sources, _ = open_sources(plan.spec.sources, plan.spec.tokenizer, root / "stores", lambda _: None)
    stores = {name: source.train for name, source in sources.items()}
    mix = MixPlan(plan, {name: store.rows(32) for name, store in stores.items()})
    return SimpleNamespace(mix=mix, stores=stores)


def batches(recipe, host: int = 0, hosts: int = 1) -> Batches:
    per_host = recipe.mix.batch // hosts
    rows = slice(host * per_host, (host + 1) * per_host)
    return Batches(recipe.mix, recipe.stores, rows, end_of_document=END)


def assert_same(a: dict, b: dict) -> None:
    assert set(a) == set(b)
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)
        assert a[key].dtype == b[key].dtype


def test_shapes_and_types(recipe):
    batch = batches(recipe)[0]
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
        "tokens_BxL": ((8, 32), "int32"),
        "targets_BxL": ((8, 32), "int32"),
        "weights_BxL": ((8, 32), "float32"),
        "source_B": ((8,), "int32"),
        "segments_BxL": ((8, 32), "int32"),
    }
    assert (batch["weights_BxL"] == 1).all()
    assert len(batches(recipe)) == 12


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_the_rows_of_all_hosts_are_the_batch_of_one(recipe, hosts):
    for step in range(12):
        parts = [batches(recipe, h, hosts)[step] for h in range(hosts)]
        together = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
        assert_same(together, batches(recipe)[step])


def test_1_2_3_and_8_hosts_together_read_one_stream(tmp_path):
    whole = recipe_of(tmp_path, 24)
    for step in range(12):
        one = batches(whole)[step]
        for hosts in (1, 2, 3, 8):
            parts = [batches(whole, h, hosts)[step] for h in range(hosts)]
            assert {len(p["source_B"]) for p in parts} == {24 // hosts}
            assert_same({k: np.concatenate([p[k] for p in parts]) for k in one}, one)


def test_rows_are_those_that_the_mix_names(recipe):
    """Read from the store by hand: row r of a source begins at token r * L."""
    for step in range(12):
        column_B, names, row_B = recipe.mix.batch_at(step)
        batch = batches(recipe)[step]
        np.testing.assert_array_equal(batch["source_B"], column_B)
        for b in range(8):
            tokens = recipe.stores[names[b]].read(row_B[b] * 32, 33)
            np.testing.assert_array_equal(batch["tokens_BxL"][b], tokens[:-1])
            np.testing.assert_array_equal(batch["targets_BxL"][b], tokens[1:])


def test_targets_are_tokens_shifted_by_one(recipe):
    for step in range(12):
        batch = batches(recipe)[step]
        np.testing.assert_array_equal(batch["targets_BxL"][:, :-1], batch["tokens_BxL"][:, 1:])


def test_segments_number_the_documents(recipe):
    """A document ends with its end-of-document token, which still belongs to it."""
    ends = 0
    for step in range(12):
        batch = batches(recipe)[step]
        for tokens_L, segments_L in zip(batch["tokens_BxL"], batch["segments_BxL"], strict=True):
            expected, document = [], 0
            for token in tokens_L:
                expected.append(document)
                document += token == END
            assert segments_L.tolist() == expected
            ends += document
    assert ends > 0
    assert "segments_BxL" not in Batches(recipe.mix, recipe.stores)[0]


@pytest.mark.parametrize("prefetch", [1, 2, 4, 16, 40])
def test_a_start_at_any_step_is_the_rest_of_the_stream(recipe, prefetch):
    stream = [batches(recipe)[step] for step in range(12)]
    for step in range(13):
        rest = list(start_at(batches(recipe), step, prefetch=prefetch))
        assert len(rest) == 12 - step
        for got, expected in zip(rest, stream[step:], strict=True):
            assert_same(got, expected)


@pytest.mark.parametrize("bad", [0, 1, 6, 7, 11])
def test_what_cannot_be_read_is_an_error_at_its_turn(recipe, monkeypatch, bad):
    """Whatever is read along with it, the batches before it can be trained on."""
    expected, read = [batches(recipe)[step] for step in range(12)], Batches.read

    def torn(self, steps):
        if bad in steps:
            raise DataError("torn")
        return read(self, steps)

    monkeypatch.setattr(Batches, "read", torn)
    stream = start_at(batches(recipe), 0, prefetch=40)
    for step in range(bad):
        assert_same(next(stream), expected[step])
    with pytest.raises(DataError, match="torn"):
        next(stream)


@pytest.mark.parametrize("hosts", [1, 4])
def test_batches_read_together_are_those_read_alone(recipe, hosts):
    """Over the edge of the phases too, where the mix changes and replay begins."""
    for host in range(hosts):
        mine = batches(recipe, host, hosts)
        alone = [mine[step] for step in range(12)]
        for first, last in itertools.combinations(range(13), 2):
            together = mine.read(range(first, last))
            assert len(together) == last - first
            for got, expected in zip(together, alone[first:last], strict=True):
                assert_same(got, expected)


def test_what_is_read_ahead_is_seconds_of_updates_within_limits(recipe, monkeypatch):
    mine = batches(recipe)
    held = ("tokens_BxL", "segments_BxL")  # targets are the same ids, and weights the same ones in every batch
    assert mine.bytes == 2 * 4 * 8 * 32 == sum(mine[0][name].nbytes for name in held)
    assert mine[0]["weights_BxL"] is mine[1]["weights_BxL"] and not mine[0]["weights_BxL"].flags.writeable
    assert batches(recipe, 0, 4).bytes == mine.bytes / 4  # a host counts its own rows
    assert read_ahead(mine, None) == 4
    assert [read_ahead(mine, s) for s in (1e-4, 0.3, 1.0, 2.4, 60.0)] == [64, 34, 10, 5, 4]
    monkeypatch.setattr(loader, "READ_AHEAD_BYTES", 20 * mine.bytes)
    assert [read_ahead(mine, s) for s in (1e-4, 0.3, 1.0)] == [20, 20, 10]
    monkeypatch.setattr(loader, "READ_AHEAD_BYTES", mine.bytes)
    assert read_ahead(mine, 1.0) == 4


def test_more_is_read_ahead_where_updates_are_short(recipe, monkeypatch):
    """The stream stays what it is when it is seen how soon batches are used."""
    opened, reading = [], loader._reading

    def noted(batches, step, end, ahead):
        opened.append((step, ahead))
        return reading(batches, step, end, ahead)

    monkeypatch.setattr(loader, "_reading", noted)
    monkeypatch.setattr(loader, "PACE", 3)
    for got, expected in zip(start_at(batches(recipe), 1), [batches(recipe)[s] for s in range(1, 12)], strict=True):
        assert_same(got, expected)
    assert opened == [(1, 4), (6, 64)]  # three updates seen at step 4, and looked at when a third step begins
    opened.clear()
    used_s = deque([100.0] * 9 + [1.0] * 3)  # what is known of before is gone on with
    assert len(list(start_at(batches(recipe), 1, stop=3, used_s=used_s))) == 2 and opened == [(1, 10)]
    assert len(used_s) <= 5 and max(used_s) == 1.0
    opened.clear()
    assert len(list(start_at(batches(recipe), 1, prefetch=2))) == 11 and opened == [(1, 2)]


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(0, 12), min_size=1, max_size=3).map(sorted), hosts=st.sampled_from([1, 2, 4]))
def test_cut_anywhere_and_resumed_the_stream_is_whole(recipe, cuts, hosts):
    edges = [0, *cuts, 12]
    parts = []
    for i, (first, last) in enumerate(itertools.pairwise(edges)):
        host = i % hosts  # another host reads on; only its own rows are compared
        stream = start_at(batches(recipe, host, hosts), first)
        parts += [(host, batch) for batch in itertools.islice(stream, last - first)]
    assert len(parts) == 12
    for step, (host, batch) in enumerate(parts):
        assert_same(batch, batches(recipe, host, hosts)[step])


def test_documents_cannot_be_masked_if_nobody_knows_where_they_end(recipe, tmp_path):
    """Bare Megatron pairs bring no tokenizer: an error before anything runs, never attention that is not masked."""
    import toy

    for name, store in recipe.stores.items():
        for suffix in (".bin", ".idx"):
            shutil.copy(store.folder / f"train-00000{suffix}", tmp_path / f"{name}{suffix}")
    bare = {name: SourceSpec(store=str(tmp_path / name), epochs=9.0) for name in recipe.stores}
    config = toy.get_config(str(tmp_path))
    config.batch.mask_documents = True
    plan = resolve(load(config))
    sources, nobody = open_sources(bare, TokenizerSpec(), tmp_path, print)
    with pytest.raises(DataError, match=r"batch\.mask_documents: no tokenizer says .*tokenizer\.path"):
        check_data(plan, Data(sources, nobody))
    sources, somebody = open_sources(bare, TokenizerSpec(kind="byte"), tmp_path, print)
    data = Data(sources, somebody)
    batch = host_batches(plan, data, check_data(plan, data))[0]
    ends_BxL = batch["tokens_BxL"] == END
    assert (batch["segments_BxL"][:, -1] == ends_BxL[:, :-1].sum(1)).all() and ends_BxL.any()


def test_an_id_beyond_the_vocabulary_stops_at_its_batch(recipe):
    largest = max(store.max_id() for store in recipe.stores.values())
    assert Batches(recipe.mix, recipe.stores, vocab_size=largest + 1)[0]
    with pytest.raises(DataError, match=r"sources\.\w+: row [\d,]+ holds the token id 256, model\.vocab_size=256"):
        for step in range(12):
            Batches(recipe.mix, recipe.stores, vocab_size=largest)[step]
