"""Shapes have the values of the literature and are exact at both ends."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt.schedules.segments import Custom, Decay, Hold, Part, Power, Ramp, Rsqrt, Tabulated
from cpt.schedules.shapes import SHAPES, InverseSqrt

rates = st.floats(1e-8, 10.0)


@pytest.mark.parametrize(
    ("shape", "quarter", "half", "three_quarters"),
    [  # Dremov et al. 2025 (arXiv 2508.01483), multipliers on the stable learning rate
        ("linear", 0.75, 0.5, 0.25),
        ("1-sqrt", 0.5, 0.2929, 0.1340),
        ("cosine", 0.8536, 0.5, 0.1464),
        ("square", 0.9375, 0.75, 0.4375),
        ("mirror-cosine", 0.6464, 0.5, 0.3536),
        ("rex", 0.8571, 0.6667, 0.4),  # Chen et al. 2021 (arXiv 2107.04197)
    ],
)
def test_golden_shapes(shape, quarter, half, three_quarters):
    fall = Decay(0.0, 4, shape)
    assert [fall.at(t, 1.0) for t in range(5)] == pytest.approx([1, quarter, half, three_quarters, 0], abs=5e-5)
    # A floor scales the fall: f -> floor + (1 - floor) f.
    raised = Decay(0.1, 4, shape)
    assert raised.at(1, 1.0) == pytest.approx(0.1 + 0.9 * fall.at(1, 1.0), rel=1e-12)


def test_golden_exponential():
    fall = Decay(0.1, 4, "exp")
    assert [fall.at(t, 1.0) for t in range(5)] == pytest.approx([1, 0.5623, 0.3162, 0.1778, 0.1], abs=5e-5)
    assert fall.at(2, 2.0) == pytest.approx(math.sqrt(2.0 * 0.1))


def test_golden_inverse():
    fall = Decay(0.1, 4, "inverse")
    assert [fall.at(t, 1.0) for t in range(5)] == pytest.approx([1, 0.3077, 0.1818, 0.1290, 0.1], abs=5e-5)
    assert 1 / fall.at(1, 1.0) == pytest.approx((3 * 1 + 1 * 10) / 4)  # 1/lr is a straight line


@pytest.mark.parametrize(
    ("shape", "floor", "area"),
    [("linear", 0, 0.5), ("1-sqrt", 0, 1 / 3), ("square", 0, 2 / 3), ("cosine", 0, 0.5), ("mirror-cosine", 0, 0.5),
     ("rex", 0, 0.6137), ("exp", 0.1, 0.3909), ("inverse", 0.1, 0.2558)],
)  # fmt: skip
def test_golden_areas(shape, floor, area):
    n = 200_000
    fall = Decay(floor, n, shape).curve(np.arange(n + 1.0), 1.0)
    assert np.trapezoid(fall) / n == pytest.approx(area, abs=2e-4)


def test_the_inverse_square_root_cooldown_has_exact_ends():
    fall = Decay(0.2, 100, InverseSqrt(10.0))
    assert fall.at(0, 1.0) == 1.0 and fall.at(100, 1.0) == pytest.approx(0.2, rel=1e-15)
    half = 1 / math.sqrt(6) - 1
    assert fall.at(50, 1.0) == pytest.approx(1 - 0.8 * half / (1 / math.sqrt(11) - 1))


def test_rsqrt_and_power_and_tables():
    fall = Rsqrt(300, 100.0, floor=0.1)
    assert (fall.at(0, 1.0), fall.end(1.0)) == (1.0, 0.1 + 0.9 / 2)
    power = Power(10, scale=2.0, exponent=-0.5, cap=0.5, first_token=4, tokens_per_step=4)
    assert [power.at(t, 0.0) for t in (0, 3, 8)] == [0.5, 0.5, 2 / 6]
    assert Power(1, 2.0, -0.5, 0.5, 0, 4).stated == 0.5  # not infinite at no tokens
    table = Tabulated(np.array([1.0, 0.5, 0.0]), 4)
    assert [table.at(t, 0.0) for t in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_a_part_is_the_whole_there():
    whole = Decay(0.1, 10, "cosine")
    part = Part(whole, 1.0, 3, 4)
    assert [part.at(t, 0.0) for t in range(5)] == [whole.at(t + 3, 1.0) for t in range(5)]
    assert (part.stated, part.end(0.0)) == (whole.at(3, 1.0), whole.at(7, 1.0))


@given(st.sampled_from(sorted(SHAPES)), rates, rates, st.integers(1, 10**6), st.data())
def test_ends_are_exact_and_the_way_is_monotone(shape, start, to, steps, data):
    segment = Decay(to, steps, shape)
    assert segment.at(0, start) == start and segment.at(steps, start) == segment.end(start) == to
    t, later = sorted(data.draw(st.tuples(st.integers(0, steps), st.integers(0, steps))))
    first, second = segment.at(t, start), segment.at(later, start)
    slack = 1e-12 * max(start, to)
    assert (second <= first + slack) if to <= start else (second >= first - slack)


@given(rates, rates, st.integers(1, 10**6), st.data())
def test_ramp_is_linear(start, to, steps, data):
    t = data.draw(st.integers(0, steps))
    ramp = Ramp(to, steps)
    assert ramp.at(0, start) == start and ramp.at(steps, start) == to
    assert ramp.at(t, start) == pytest.approx(start + (to - start) * t / steps, rel=1e-9)


def test_hold_and_custom():
    assert Hold(5).at(3, 0.2) == Hold(5).end(0.2) == 0.2
    custom = Custom(lambda t: 1.0 / (1 + t), 4)
    assert (custom.stated, custom.at(1, 1.0), custom.end(1.0)) == (1.0, 0.5, 0.2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Decay(0.0, 5, "exp"), "end above 0"),
        (lambda: Decay(0.1, 5, "exp").at(0, 0.0), "start above 0"),
        (lambda: Decay(0.1, 5, "cosin"), "did you mean 'cosine'"),
        (lambda: Ramp(0.1, -1), "steps must be"),
        (lambda: Hold(2.5), "steps must be"),
        (lambda: Ramp(-0.1, 3), "to must be"),
        (lambda: Ramp(math.nan, 3), "to must be"),
        (lambda: Hold(3, value=math.inf), "value must be"),
        (lambda: Decay(0.0, 5, "inverse"), "end above 0"),
        (lambda: Rsqrt(5, 0.0), "timescale must be"),
        (lambda: Tabulated(np.array([1.0]), 5), "at least two"),
        (lambda: Tabulated(np.array([1.0, -1.0]), 5), "at least two finite"),
    ],
)
def test_impossible_segments(make, words):
    with pytest.raises(ValueError, match=words):
        make()
