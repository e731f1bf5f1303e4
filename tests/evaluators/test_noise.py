import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cpt.evaluators.noise import (
    difference,
    kendall_tau,
    mean_interval,
    paired_difference,
    signal_to_noise,
    step_to_step_noise,
)

NAN = float("nan")


def test_monotonicity_counts_pairs_in_and_out_of_order():
    assert kendall_tau([5, 4, 3, 2]) == pytest.approx(-1)
    # Of the six pairs of 1 3 2 4 one is out of order: (5 - 1) / 6.
    assert kendall_tau([1, 3, 2, 4]) == pytest.approx(4 / 6)
    # A tie leaves 5 pairs in order; tau-b divides by sqrt(6 * 5).
    assert kendall_tau([1, 2, 2, 3]) == pytest.approx(5 / math.sqrt(30))
    assert kendall_tau([1, NAN, 2, 3]) == pytest.approx(1)
    assert math.isnan(kendall_tau([1])) and math.isnan(kendall_tau([2, 2, 2]))


def test_signal_to_noise_by_hand():
    assert signal_to_noise([2, 4]) == pytest.approx(3 / math.sqrt(2))
    assert signal_to_noise([3, 3]) == math.inf and signal_to_noise([-3, -3]) == -math.inf
    assert math.isnan(signal_to_noise([3])) and math.isnan(signal_to_noise([0, 0]))


def test_step_to_step_noise_by_hand():
    # The last three are 3, 1, 2: std 1; the change is 2 - 6.
    assert step_to_step_noise([6, 5, 3, 1, 2], last=3) == pytest.approx(1 / 4)
    assert step_to_step_noise([2, 1, 2], last=3) == math.inf
    assert math.isnan(step_to_step_noise([6, 5], last=3)) and math.isnan(step_to_step_noise([1, 1, 1], last=3))
    with pytest.raises(ValueError, match="at least 2"):
        step_to_step_noise([1, 2, 3], last=1)


def test_interval_over_seeds_by_hand():
    # std 1, t of 2 degrees of freedom 4.302653: 2 ± 4.302653 / sqrt(3).
    assert mean_interval([1, 2, 3]) == pytest.approx((2, -0.484138, 4.484138), abs=1e-6)
    mean, lo, hi = mean_interval([7.5])
    assert mean == 7.5 and math.isnan(lo) and math.isnan(hi)
    assert all(math.isnan(v) for v in mean_interval([]))


VALUES = st.lists(st.floats(-5, 5).map(lambda v: round(v, 3)), min_size=2, max_size=8)


@pytest.mark.filterwarnings("ignore:Precision loss")
@given(VALUES, VALUES, st.sampled_from([0.8, 0.95, 0.99]))
def test_welch_is_that_of_scipy(a, b, level):
    d = difference(a, b, level=level)
    if np.ptp(a) + np.ptp(b) < 1e-9:
        assert (d.lo, d.hi) == (d.value, d.value)
        return
    ci = stats.ttest_ind(a, b, equal_var=False).confidence_interval(level)
    assert (d.lo, d.hi) == pytest.approx((ci.low, ci.high), abs=1e-9, rel=1e-9)
    assert d.value == pytest.approx(np.mean(a) - np.mean(b)) and not d.paired


@pytest.mark.filterwarnings("ignore:Precision loss")
@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=2, max_size=8))
def test_paired_is_that_of_scipy(pairs):
    a, b = np.round(np.array(pairs), 3).T
    d, ci = difference(a, b, paired=True), stats.ttest_rel(a, b).confidence_interval()
    if np.ptp(a - b) > 1e-9:
        assert (d.lo, d.hi) == pytest.approx((ci.low, ci.high), abs=1e-9, rel=1e-9)
    assert d.value == pytest.approx(np.mean(a - b)) and d.paired


def test_pairing_seeds_finds_what_their_spread_hides():
    a = np.array([3.10, 3.55, 2.80])
    b = a - np.array([0.05, 0.06, 0.055])
    assert difference(a, b).within_noise is True
    assert difference(a, b, paired=True).within_noise is False
    assert difference(b, a, paired=True).value == pytest.approx(-0.055)


def test_one_seed_leaves_the_question_open():
    for d in (difference([1.0], [2.0]), difference([1.0, 1.1], [2.0]), difference([1.0], [2.0], paired=True)):
        assert d.value < -0.9 and d.within_noise is None
    assert math.isnan(difference([], [1.0]).value)


def test_a_diverged_seed_is_not_left_out_unseen():
    with pytest.raises(ValueError, match="not finite"):
        mean_interval([1.0, NAN])
    with pytest.raises(ValueError, match="not finite"):
        difference([1.0, math.inf], [1.0, 2.0])
    with pytest.raises(ValueError, match="2 and 1"):
        difference([1.0, 2.0], [1.0], paired=True)


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_interval_holds_the_truth_in_95_of_100_cases(seeds, paired):
    rng = np.random.default_rng(seeds)
    shared = rng.normal(0, 0.5, (2000, seeds)) * paired
    a, b = (
        shared + rng.normal(0.3, 0.1, (2000, seeds)),
        shared + rng.normal(0, 0.02 if not paired else 0.1, (2000, seeds)),
    )
    found = [difference(x, y, paired) for x, y in zip(a, b, strict=True)]
    share = np.mean([d.lo <= 0.3 <= d.hi for d in found])
    # Welch's is approximate for so few and such unlike spreads; a normal interval holds it in 70 (two seeds) to 88.
    assert share == pytest.approx(0.95, abs=0.015 if paired else 0.03)


def test_the_interval_of_a_mean_holds_it_in_95_of_100_cases():
    values = np.random.default_rng(0).normal(2, 1, (3000, 3))
    assert np.mean([i.lo <= 2 <= i.hi for i in map(mean_interval, values)]) == pytest.approx(0.95, abs=0.012)


def two_runs(rows=120, apart=0.02, own=0.01, seed=0):
    """Nats [S, 3] of two runs on the same rows: how hard a row is differs by far more than the runs do."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(50, 200, rows)
    hard = 3 + rng.normal(0, 0.5, rows)
    a = np.stack([hard, hard + 0.4, hard + 0.10 + apart + rng.normal(0, own, rows)], axis=1)
    b = np.stack([hard, hard + 0.2, hard + 0.10 + rng.normal(0, own, rows)], axis=1)
    return a * tokens[:, None], b * tokens[:, None], tokens


def test_pairing_documents_finds_what_their_hardness_hides():
    a, b, tokens = two_runs()
    paired = paired_difference(a, b, tokens)
    # The same runs, each on documents of its own: the second half of a against the first half of b.
    apart = paired_difference(a, np.roll(b, 60, axis=0), np.full(120, tokens.mean()))
    widths = [d["final"].hi - d["final"].lo for d in (paired, apart)]
    assert widths[0] < widths[1] / 10
    assert paired["final"].within_noise is False and apart["final"].within_noise is True
    assert paired["final"].lo < 0.02 < paired["final"].hi and paired["final"].over == "documents"


def test_the_bootstrap_has_the_width_of_the_standard_error():
    rng = np.random.default_rng(3)
    apart = rng.normal(0.1, 0.2, 300)
    b = rng.normal(3, 1, (300, 1)).repeat(2, axis=1)
    for level, z in ((0.95, 1.96), (0.68, 0.9945)):
        d = paired_difference(b + apart[:, None], b, np.ones(300), level=level)["final"]
        assert (d.hi - d.lo) / 2 == pytest.approx(z * 0.2 / np.sqrt(300), rel=0.1)


def test_final_and_forgetting_are_sums_over_sums():
    a, b, tokens = np.array([[1.0, 9, 4], [30, 9, 60]]), np.array([[2.0, 2], [20, 20]]), np.array([1, 10])
    d = paired_difference(a, b, tokens, replicates=50)
    assert d["final"].value == pytest.approx((64 - 22) / 11)
    assert d["forgetting"].value == pytest.approx((64 - 31) / 11)
    swapped = paired_difference(b, a, tokens, replicates=50)
    assert swapped["forgetting"].lo == pytest.approx(-d["forgetting"].hi)
    assert {k: v.value for k, v in paired_difference(a, a, tokens).items()} == {"final": 0, "forgetting": 0}


def test_documents_are_drawn_whole():
    a, b, tokens = two_runs(rows=40)
    # Four rows of a document are four copies: as many rows, a quarter of the evidence.
    a, b, tokens = (np.repeat(v, 4, axis=0) for v in (a, b, tokens))
    rows = paired_difference(a, b, tokens)["final"]
    documents = paired_difference(a, b, tokens, np.repeat(np.arange(40), 4))["final"]
    assert (documents.hi - documents.lo) / (rows.hi - rows.lo) == pytest.approx(2, rel=0.2)
    one = paired_difference(a, b, tokens, [0] * 160)["final"]
    assert one.within_noise is None and one.value == pytest.approx(rows.value)


def test_runs_on_other_rows_are_refused():
    a, b, tokens = two_runs()
    with pytest.raises(ValueError, match="120, 119 and 120"):
        paired_difference(a, b[1:], tokens)
