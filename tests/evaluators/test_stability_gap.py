from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt.evaluators.stability_gap import area_above, first_at_or_below, stability_gap

TOKENS = np.array([0, 10, 20, 40, 80, 160, 320.0])
LOSS = np.array([2.00, 2.30, 2.45, 2.30, 2.15, 2.05, 2.04])


def measure(tokens, loss, eps=0.1):
    return stability_gap(np.arange(len(tokens)), np.asarray(tokens, float), np.asarray(loss, float), eps)


def test_golden_curve():
    g = measure(TOKENS, LOSS)
    assert (g.depth, g.transient, g.area) == pytest.approx((0.45, 0.41, 36.95))
    assert (g.peak_tokens, g.peak_step, g.recovery_tokens) == (20, 2, pytest.approx(120))
    assert (g.worst, g.recovery_to_end_tokens) == pytest.approx((2.45, 88))


def test_the_turning_length_is_where_the_loss_falls_below_its_start():
    assert measure(TOKENS, LOSS).turning_tokens is None
    assert measure([0, 1, 2], [2.0, 2.4, 1.8]).turning_tokens == pytest.approx(1 + 0.4 / 0.6)


def test_area_over_the_end_in_both_conventions():
    assert area_above(TOKENS, LOSS, 2.04, "evaluation") == pytest.approx(24.35)
    # The first segment runs from -.04 to .26: only 10 * .26 / .30 of it lies above.
    assert area_above(TOKENS, LOSS, 2.04) == pytest.approx(24.35 - 0.26 / 2 * (10 - 10 * 0.26 / 0.30))
    assert measure(TOKENS, LOSS).area_over_end == pytest.approx(24.176667, abs=1e-6)


def test_a_rise_that_stays_is_depth_without_a_transient_part():
    g = measure([0, 1, 2], [2.0, 2.2, 2.5])
    assert (g.depth, g.transient, g.recovery_tokens) == (0.5, 0.0, None)


def test_a_loss_that_only_falls_has_no_gap():
    g = measure([5, 6, 9], [2.0, 1.5, 1.0])
    assert (g.depth, g.area, g.peak_tokens, g.recovery_tokens) == (0, 0, 0, 0)


def test_recovery_is_looked_for_after_the_peak_only():
    assert measure([0, 1, 2, 3], [2.0, 2.05, 3.0, 2.9]).recovery_tokens is None
    assert first_at_or_below(TOKENS, LOSS, 2.15, 2) == 80


CURVES = st.lists(st.tuples(st.floats(0.1, 50), st.integers(-40, 40)), min_size=2, max_size=12)


def curve(points):
    gaps, losses = zip(*points, strict=True)
    return np.cumsum(gaps), 3 + np.array(losses) / 20


@given(CURVES, st.floats(-2, 5), st.floats(0, 1e6))
def test_shifting_losses_and_tokens_changes_nothing_but_the_worst(points, shift, later):
    tokens, loss = curve(points)
    a, b = asdict(measure(tokens, loss)), asdict(measure(tokens + later, loss + shift))
    assert b.pop("worst") == pytest.approx(a.pop("worst") + shift)
    # Recovery can flip between two points of one level when the shift rounds; the area cannot.
    for key in ("depth", "peak_tokens", "area", "area_over_end", "transient"):
        assert b[key] == pytest.approx(a[key], rel=1e-5, abs=1e-5)


@given(CURVES, st.integers(2, 5))
def test_points_added_on_the_line_change_nothing(points, parts):
    tokens, loss = curve(points)
    share = np.concatenate([np.arange(0, len(tokens) - 1, 1 / parts), [len(tokens) - 1]])
    fine_tokens, fine_loss = (np.interp(share, np.arange(len(tokens)), v) for v in (tokens, loss))
    # eps off the grid of losses: no recovery level touches a point, where rounding would decide
    a, b = (measure(t, v, eps=0.0313) for t, v in ((tokens, loss), (fine_tokens, fine_loss)))
    a, b = ({k: v for k, v in asdict(g).items() if k != "peak_step" and v is not None} for g in (a, b))
    assert b == pytest.approx(a, rel=1e-9, abs=1e-9)


@given(CURVES, st.floats(1, 5))
def test_area_agrees_with_a_fine_riemann_sum_and_many_curves_at_once(points, level):
    tokens, loss = curve(points)
    t = np.linspace(tokens[0], tokens[-1], 20001)
    mid = (t[1:] + t[:-1]) / 2
    fine = np.sum(np.maximum(np.interp(mid, tokens, loss) - level, 0) * np.diff(t))
    both = area_above(tokens, np.stack([loss, loss + 1]), np.array([level, level + 1]))
    assert both == pytest.approx([fine, fine], rel=1e-3, abs=1e-2)
