"""Exact allocation: full batches, within one row of the target at every step, nothing where the share is 0."""

import time
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt.data.allocation import SNAP, Allocation
from cpt.errors import ConfigError

EDGE = 2 * SNAP


def cumulative(allocation):
    return np.stack([allocation.counts_before(s) for s in range(allocation.steps + 1)])


def assert_exact(shares, batch, steps=None):
    """The law, against targets summed in extended precision here."""
    allocation = Allocation(shares, batch, steps)
    counts = cumulative(allocation)
    shares = np.broadcast_to(shares, (allocation.steps, allocation.sources)).astype(np.longdouble)
    targets = np.vstack([np.zeros_like(shares[:1]), np.cumsum(shares * batch, axis=0)])
    rows = np.diff(counts, axis=0)
    assert (counts[0] == 0).all() and (rows >= 0).all()
    assert (rows.sum(axis=1) == batch).all()
    assert (rows[shares == 0] == 0).all()
    assert (counts >= np.floor(targets + EDGE / 2) - EDGE).all()
    assert (counts <= np.ceil(targets - EDGE / 2) + EDGE).all()
    return allocation


@st.composite
def tables(draw):
    """Small whole weights: many zeros, many targets that are exactly whole, blocks and single steps."""
    sources = draw(st.integers(1, 8))
    row = st.lists(st.integers(0, 3), min_size=sources, max_size=sources).filter(any)
    blocks = draw(st.lists(st.tuples(row, st.integers(1, 6)), min_size=1, max_size=25))
    weights = np.array([r for r, n in blocks for _ in range(n)], float)
    return weights / weights.sum(axis=1, keepdims=True)


@settings(max_examples=300, deadline=None)
@given(tables(), st.integers(1, 7))
def test_any_table_of_shares(shares, batch):
    assert_exact(shares, batch)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 8), st.sampled_from([0.05, 0.2, 1.0]), st.integers(1, 40))
def test_random_simplex_and_sparse_dirichlet(seed, sources, concentration, batch):
    shares = np.random.default_rng(seed).dirichlet([concentration] * sources, 150)
    shares[shares < 0.01] = 0
    assert_exact(shares / shares.sum(axis=1, keepdims=True), batch)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 8), st.integers(1, 1104))
def test_random_constant_shares(seed, sources, batch):
    assert_exact(np.random.default_rng(seed).dirichlet([1.0] * sources), batch, 300)


@pytest.mark.parametrize("batch", [1, 7, 64])
@pytest.mark.parametrize(
    "shares", [(0.95, 0.05), (0.995, 0.005), (0.5, 0.3, 0.2), (1 / 3, 1 / 3, 1 / 3), (1.0,), (0.0, 1.0)]
)
def test_constant_mixes_over_thousands_of_steps(shares, batch):
    assert_exact(np.array(shares), batch, 3000)


@pytest.mark.parametrize("batch", [1, 16])
def test_smooth_ramps_and_hard_switches(batch):
    rng = np.random.default_rng(0)
    u = np.linspace(0, 1, 3000)[:, None]
    old, new = rng.dirichlet([1.0] * 6), rng.dirichlet([1.0] * 6)
    assert_exact((1 - u) * old + u * new, batch)
    gone = np.where(np.arange(6) < 3, 0, new)
    assert_exact((1 - u) * old + u * gone / gone.sum(), batch)
    stages = np.repeat(rng.dirichlet([0.3] * 6, 30), 100, axis=0)
    stages[stages < 0.02] = 0
    assert_exact(stages / stages.sum(axis=1, keepdims=True), batch)


def test_sources_that_end_where_deadlines_alone_go_wrong():
    # a and d are due in batch 3 and b, e can only be served before: taking a, then d, would leave nobody for batch 3.
    a, b, d, e = [0.5, 0.25, 0.25], [0.5, 0, 0], [0, 0.25, 0.75], [0, 0.5, 0]
    counts = cumulative(assert_exact(np.array([a, b, d, e]).T, 1))
    assert counts[-1].tolist() in ([1, 1, 1, 0], [1, 0, 1, 1])


def test_sources_that_pause_where_deadlines_alone_go_wrong():
    # a and x pause and come back in the last batch, which has room for one of them only.
    a, x = [0.5, 0, 0, 0, 0.5], [0, 0, 0.5, 0, 0.5]
    b, y = [0.5, 0.5, 0, 0, 0], [0, 0, 0.5, 0.5, 0]
    p, q = [0, 0.5, 0, 0, 0], [0, 0, 0, 0.5, 0]
    counts = cumulative(assert_exact(np.array([a, b, x, y, p, q]).T, 1))
    assert counts[-1, :4].tolist() == [1, 1, 1, 1]


def test_whole_targets_are_met_exactly():
    allocation = Allocation(np.array([0.95, 0.05]), 20, 1000)
    assert all(allocation.counts_at(s).tolist() == [19, 1] for s in range(1000))
    tenths = Allocation(np.full((1000, 10), 0.1), 10)
    assert all((tenths.counts_at(s) == 1).all() for s in range(1000))


def test_golden_sequence():
    shares = Allocation(np.array([0.5, 0.3, 0.2]), 1, 10)
    assert [int(shares.counts_at(s).argmax()) for s in range(10)] == [0, 1, 0, 2, 0, 1, 0, 1, 0, 2]


def test_replay_of_the_papers_scale_is_exact_to_the_row():
    # 5 % replay on 132,685 steps of 1,104 rows (Ibrahim et al. 2024).
    total = Allocation(np.array([0.95, 0.05]), 1104, 132_685).counts_before(132_685)
    assert total.tolist() == [int(Fraction(95, 100) * 132_685 * 1104), int(Fraction(5, 100) * 132_685 * 1104)]


def test_any_order_of_queries_gives_the_same():
    rng = np.random.default_rng(0)
    for shares, steps in ((rng.dirichlet([0.2] * 5, 400), None), (np.array([0.62, 0.25, 0.13]), 400)):
        whole = cumulative(Allocation(shares, 9, steps))
        asked = Allocation(shares, 9, steps)
        for s in rng.permutation(400):
            assert np.array_equal(asked.counts_before(s), whole[s])
            assert np.array_equal(asked.counts_at(s), whole[s + 1] - whole[s])
        several = rng.permutation(400)
        assert np.array_equal(asked.counts_before(several), whole[several])
        assert np.array_equal(asked.counts_at(several), whole[several + 1] - whole[several])
        for wrong in ([-1, 3], [3, 401]):
            with pytest.raises(IndexError, match=r"^step (-1|401): the allocation has the steps 0\.\.400"):
                asked.counts_before(np.array(wrong))


def test_answers_are_copies():
    for step in (1, 2, 3, 10):
        allocation = Allocation(np.array([0.5, 0.5]), 3, 10)
        allocation.counts_before(step)[:] = 99
        assert [allocation.counts_before(s).sum() for s in range(11)] == [3 * s for s in range(11)]


@pytest.mark.parametrize("sources", [2, 3, 7])
def test_constant_shares_do_not_depend_on_the_number_of_steps(sources):
    rng = np.random.default_rng(sources)
    for shares in rng.dirichlet([1.0] * sources, 30):
        long = cumulative(Allocation(shares, 3, 60))
        for n in (1, 2, 5, 17, 40):
            assert np.array_equal(cumulative(Allocation(shares, 3, n)), long[: n + 1])


@pytest.mark.parametrize("batch", [1, 10])
def test_constant_vector_and_constant_table_agree(batch):
    shares = np.array([0.62, 0.25, 0.13])
    assert np.array_equal(
        cumulative(Allocation(shares, batch, 700)), cumulative(Allocation(np.tile(shares, (700, 1)), batch))
    )


def test_a_long_plan_takes_seconds_and_little_memory():
    u = np.linspace(0, 1, 132_685)[:, None]
    rng = np.random.default_rng(0)
    shares = (1 - u) * rng.dirichlet([1.0] * 4) + u * rng.dirichlet([1.0] * 4)
    tracemalloc.start()
    begin = time.perf_counter()
    total = Allocation(shares, 1104).counts_before(132_685)
    seconds, peak = time.perf_counter() - begin, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 20 and peak < 50e6
    assert (np.abs(total - 1104 * shares.sum(axis=0)) < 1).all()


@pytest.mark.parametrize(
    ("shares", "steps", "words"),
    [
        ([[0.5, 0.5], [0.5, 0.4]], None, "step 1 .* sum 0.9"),
        ([[0.5, 0.5], [1.5, -0.5]], None, "step 1"),
        ([np.nan, 1.0], 5, "sum nan"),
        ([0.5, 0.5], None, "number of steps"),
        ([[0.5, 0.5]], 2, "1 steps, but the phase has 2"),
    ],
)
def test_wrong_shares_are_one_clear_line(shares, steps, words):
    with pytest.raises(ConfigError, match=f"phases.a.mix: .*{words}"):
        Allocation(np.array(shares), 4, steps, where="phases.a.mix")


def test_wrong_steps_and_batches():
    with pytest.raises(ConfigError, match="at least 1 row"):
        Allocation(np.array([1.0]), 0, 5)
    allocation = Allocation(np.array([1.0]), 4, 5)
    assert allocation.counts_before(5).tolist() == [20]
    for query, step in ((allocation.counts_before, 6), (allocation.counts_before, -1), (allocation.counts_at, 5)):
        with pytest.raises(IndexError):
            query(step)
