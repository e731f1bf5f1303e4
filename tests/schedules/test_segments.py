"""Shapes have the values of the literature and are exact at both ends."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt.schedules.segments import SHAPES, Custom, Decay, Hold, Ramp

rates = st.floats(1e-8, 10.0)


@pytest.mark.parametrize(
    ("shape", "quarter", "half", "three_quarters"),
    [  # Dremov et al. 2025 (arXiv 2508.01483), multipliers on the stable learning rate
        ("linear", 0.75, 0.5, 0.25),
        ("1-sqrt", 0.5, 0.2929, 0.1340),
        ("cosine", 0.8536, 0.5, 0.1464),
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
    ],
)
def test_impossible_segments(make, words):
    with pytest.raises(ValueError, match=words):
        make()
