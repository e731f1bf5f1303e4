"""The keyed permutation is a bijection, well mixed, quick, and never changes."""

import timeit

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt.data.permutation import KeyedPermutation, KeyedPermutations


def test_golden_orders():
    # Data order is part of a run's identity: a change here changes every run that was ever made.
    assert KeyedPermutation(10, "a")(np.arange(10)).tolist() == [1, 6, 4, 9, 2, 7, 0, 5, 3, 8]
    assert KeyedPermutation(10, 1)(np.arange(10)).tolist() == [3, 9, 1, 7, 6, 8, 5, 2, 4, 0]
    million = KeyedPermutation(1_000_003, "pile")(np.arange(6) * 200_000)
    assert million.tolist() == [187584, 288740, 411725, 894395, 655117, 506584]
    largest = KeyedPermutation(2**40, 7)(np.array([0, 1, 2**39, 2**40 - 1]))
    assert largest.tolist() == [667140605336, 291172158661, 448256152359, 1038835069155]


def test_bijection_for_every_small_size():
    for n in range(1, 501):
        assert np.array_equal(np.sort(KeyedPermutation(n, n)(np.arange(n))), np.arange(n)), n


@pytest.mark.parametrize("n", [100_000, 316**2, 316**2 + 1, 2**17 - 1])
def test_bijection_for_larger_sizes(n):
    assert np.array_equal(np.sort(KeyedPermutation(n, "k")(np.arange(n))), np.arange(n))


@given(st.integers(1, 2**40), st.text(max_size=5), st.integers(0, 2**32))
def test_distinct_and_in_range_for_any_size(n, key, first):
    positions = np.unique((first + np.arange(2000, dtype=np.int64) * 7919) % n)
    rows = KeyedPermutation(n, key)(positions)
    assert rows.min() >= 0 and rows.max() < n and len(np.unique(rows)) == len(positions)


def test_random_access_equals_the_whole_order():
    p = KeyedPermutation(12_345, "k")
    whole = p(np.arange(12_345))
    assert [int(p(np.array([i]))[0]) for i in (0, 5, 12_344)] == whole[[0, 5, 12_344]].tolist()
    assert np.array_equal(p(np.arange(12).reshape(3, 4)), whole[:12].reshape(3, 4)) and whole.dtype == np.int64
    assert p(np.array([], dtype=np.int64)).shape == (0,)


@pytest.mark.parametrize("n", [1, 7, 16, 1104, 1_000_003])
def test_several_keys_at_once_are_each_by_itself(n):
    """Also where they are enciphered again, each a different number of times."""
    keys, positions = ["a", "0/batch/1", 5, "5"], np.random.default_rng(0).integers(0, n, (4, 300))
    together = KeyedPermutations(n, keys)(positions)
    for key, of_key, asked in zip(keys, together, positions, strict=True):
        assert np.array_equal(of_key, KeyedPermutation(n, key)(asked))
    assert n < 16 or len({row.tobytes() for row in KeyedPermutations(n, keys)(np.tile(np.arange(16), (4, 1)))}) == 4


def test_every_position_meets_every_row_equally_often():
    n, keys = 12, 6000
    seen = np.zeros((n, n))
    for key in range(keys):
        seen[np.arange(n), KeyedPermutation(n, key)(np.arange(n))] += 1
    chi2 = ((seen - keys / n) ** 2 / (keys / n)).sum()
    # (n - 1)^2 = 121 degrees of freedom, standard deviation sqrt(242) = 15.6; the keys are fixed, so this cannot flake.
    assert 121 - 5 * 15.6 < chi2 < 121 + 5 * 15.6


def test_neighbours_are_scattered():
    n = 1_000_003
    rows = KeyedPermutation(n, "k")(np.arange(200_000))
    assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 0.01
    assert abs(np.corrcoef(np.arange(200_000), rows)[0, 1]) < 0.01
    share = np.histogram(rows, bins=100, range=(0, n))[0] / 2000
    assert share.min() > 0.85 and share.max() < 1.15
    # Of a random order, about 1 / n of the neighbouring pairs are neighbouring rows.
    assert (np.diff(rows) == 1).sum() < 10


def test_keys_and_sizes_give_unrelated_orders():
    orders = [KeyedPermutation(n, k)(np.arange(1000)) for n, k in ((1000, "a"), (1000, "b"), (1001, "a"), (1000, 1))]
    orders.append(KeyedPermutation(1000, "1")(np.arange(1000)))
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert (one == other).sum() < 10


def test_a_batch_takes_less_than_a_millisecond():
    p = KeyedPermutation(10**12 + 1, "k")
    rows = np.arange(1024)
    assert min(timeit.repeat(lambda: p(rows), number=5, repeat=10)) / 5 < 1e-3


def test_bounds():
    for n in (0, -1, 2**40 + 1):
        with pytest.raises(ValueError, match="1 <= n"):
            KeyedPermutation(n, "k")
    for i in (-1, 10):
        with pytest.raises(IndexError, match=r"0\.\.9"):
            KeyedPermutation(10, "k")(np.array([0, i]))
