import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt.evaluators.bootstrap import by_document, gap_intervals, interval, resampled_losses


def population(sequences=200, spread=0.5, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(50, 150, (sequences, 1)).repeat(3, 1).astype(float)
    per_token = 3 + rng.normal(0, spread, (sequences, 1)) + np.array([0, 0.4, 0.1])
    return per_token * lengths, lengths


@settings(deadline=None, max_examples=20)
@given(st.floats(-2, 2), st.integers(2, 40))
def test_a_constant_difference_has_an_interval_of_no_width(shift, sequences):
    nats, tokens = population(sequences)
    nats = np.stack([nats[:, 0], nats[:, 0] + shift * tokens[:, 0]], 1)
    ci = gap_intervals(np.array([0, 10]), resampled_losses(nats, tokens[:, :2], 50))
    assert ci["forgetting"] == pytest.approx([shift, shift], abs=1e-9)
    assert ci["depth"] == pytest.approx([max(shift, 0)] * 2, abs=1e-9)
    assert ci["area"] == pytest.approx([max(5 * shift, 0)] * 2, abs=1e-9)


def test_losses_are_sums_over_sums_not_means_of_means():
    nats, tokens = np.array([[10.0], [1.0]]), np.array([[1.0], [10.0]])
    assert set(np.round(resampled_losses(nats, tokens, 200)[:, 0], 9)) == {10.0, 1.0, 0.1}


def test_interval_has_the_width_of_the_standard_error():
    rng = np.random.default_rng(1)
    nats = 3 + rng.normal(0, 1, (400, 1))
    lo, hi = interval(resampled_losses(nats, np.ones_like(nats))[:, 0])
    assert (hi - lo) / 2 == pytest.approx(1.96 * nats.std() / 20, rel=0.08)
    assert lo < nats.mean() < hi


def test_pairing_removes_how_hard_the_sequences_are():
    nats, tokens = population(spread=2.0)
    losses = resampled_losses(nats, tokens)
    alone, change = interval(losses[:, 0]), interval(losses[:, 1] - losses[:, 0])
    assert alone[1] - alone[0] > 0.3
    assert change[1] - change[0] < 1e-9


def test_same_seed_same_replicates_also_in_chunks(monkeypatch):
    nats, tokens = population(20)
    whole = resampled_losses(nats, tokens, 100)
    monkeypatch.setattr("cpt.evaluators.bootstrap._CELLS", 7 * 20)
    np.testing.assert_array_equal(resampled_losses(nats, tokens, 100), whole)
    assert not np.array_equal(resampled_losses(nats, tokens, 100, seed=1), whole)


def test_sums_of_a_document_are_added():
    sums = np.array([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])
    np.testing.assert_array_equal(by_document(sums, [7, 3, 7]), [[2.0, 20.0], [5.0, 50.0]])
    assert by_document(sums, None) is sums


def test_sequences_of_one_document_are_one_observation():
    """20 documents of 10 equal sequences each: 200 numbers, but the interval is that of 20."""
    rng = np.random.default_rng(0)
    level = rng.normal(0, 1, (20, 1))
    nats, tokens = np.repeat(3 + level, 10, axis=0), np.ones((200, 1))
    documents = np.repeat(np.arange(20), 10).tolist()
    naive, honest = (
        interval(resampled_losses(by_document(nats, d), by_document(tokens, d))[:, 0]) for d in (None, documents)
    )
    assert (honest[1] - honest[0]) / (naive[1] - naive[0]) == pytest.approx(np.sqrt(10), rel=0.1)
