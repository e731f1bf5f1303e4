"""Composed schedules: continuous unless told otherwise, right at the joints, and only the active segment runs."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt.errors import ConfigError
from cpt.schedules.composer import compose
from cpt.schedules.segments import Custom, Decay, Hold, Ramp
from cpt.schedules.shapes import SHAPES

levels = st.floats(1e-6, 1e-2)
lengths = st.integers(0, 40)
continuous = st.lists(
    st.one_of(
        st.builds(Ramp, levels, st.integers(1, 40)),
        st.builds(Hold, lengths),
        st.builds(Decay, levels, lengths, st.sampled_from(sorted(SHAPES))),
    ),
    max_size=8,
)


@given(continuous, levels)
def test_segments_continue_where_the_one_before_ended(segments, start):
    schedule = compose(segments, start)
    assert schedule.steps == sum(s.steps for s in segments)
    assert schedule(0) == start
    values = schedule.values(0, schedule.steps + 1)
    # At every joint the schedule is where the segment before it was told to end.
    edge, level = 0, start
    for segment in (s for s in segments if s.steps):
        assert values[edge] == level
        edge, level = edge + segment.steps, segment.end(level)
    assert values[-1] == schedule.end == level


@given(continuous, levels, st.data())
def test_values_are_the_same_numbers_as_calls(segments, start, data):
    schedule = compose(segments, start)
    first, last = sorted(data.draw(st.tuples(st.integers(0, 300), st.integers(0, 300))))
    values = schedule.values(first, last)
    assert values.dtype == np.float64 and values.tolist() == [schedule(t) for t in range(first, last)]


@given(continuous, continuous, levels)
def test_two_phases_are_the_schedule_of_both(before, after, start):
    whole, first = compose(before + after, start), compose(before, start)
    second = compose(after, first.end)
    n = first.steps
    assert whole.values(0, n).tolist() == first.values(0, n).tolist()
    assert whole.values(n, whole.steps + 1).tolist() == second.values(0, second.steps + 1).tolist()


def test_at_a_jump_the_later_segment_speaks():
    schedule = compose([Hold(3, value=1.0, jump=True), Hold(2, value=0.5, jump=True)])
    assert schedule.values(0, 7).tolist() == [1, 1, 1, 0.5, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    "second", [Hold(4, value=0.5), Ramp(1.0, 4, start=0.5), Decay(0.1, 4, start=0.5), Custom(lambda t: 0.5, 4)]
)
def test_a_silent_jump_is_refused(second):
    with pytest.raises(
        ConfigError, match=r"^config error: phases\.b\.lr: segment 2 of 2 .* begins at 0\.5.* ends at 1;"
    ):
        compose([Ramp(1.0, 3), second], where="phases.b.lr")
    allowed = {**vars(second), "jump": True}
    assert compose([Ramp(1.0, 3), type(second)(**allowed)])(3) == 0.5


def test_a_stated_beginning_that_agrees_is_no_jump():
    third = 0.1 + 0.2
    assert compose([Ramp(third, 3), Hold(2, value=0.3)]).end == 0.3
    with pytest.raises(ConfigError):
        compose([Ramp(0.3, 3), Hold(2, value=0.3 * (1 + 1e-7))])


def test_segments_of_no_steps():
    # Without warm-up steps the learning rate begins at the peak; other empty segments leave no trace.
    assert compose([Ramp(1.0, 0), Decay(0.0, 4, "linear")]).values(0, 5).tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert compose([Hold(0, value=9.0), Decay(5.0, 0), Custom(lambda t: 7.0, 0), Hold(2)], 1.0).values(
        0, 3
    ).tolist() == [
        1,
        1,
        1,
    ]
    empty = compose([], 0.5)
    assert (empty.steps, empty(0), empty(10)) == (0, 0.5, 0.5)


def test_outside():
    schedule = compose([Ramp(1.0, 4)])
    assert schedule(4) == schedule(5) == schedule(10**9) == schedule.end == 1.0
    with pytest.raises(ValueError, match="begins at step 0"):
        schedule(-1)
    with pytest.raises(TypeError):
        schedule(1.5)
    assert schedule(np.int64(2)) == 0.5


def test_inactive_segments_never_run():
    asked = []

    def fn(t):
        asked.append(t)
        return 1.0

    schedule = compose([Ramp(1.0, 5), Custom(fn, 5), Decay(0.1, 5)])
    asked.clear()
    schedule.values(0, 5), schedule.values(10, 16)
    assert asked == []
    schedule.values(4, 11)
    assert asked == [0, 1, 2, 3, 4]


def test_an_optax_schedule_plugs_in():
    optax = pytest.importorskip("optax")
    theirs = optax.cosine_decay_schedule(3e-4, 50, alpha=0.1)
    schedule = compose([Ramp(3e-4, 10), Custom(theirs, 50), Hold(5)])
    ours = compose([Ramp(3e-4, 10), Decay(3e-5, 50), Hold(5)])
    np.testing.assert_allclose(schedule.values(0, 66), ours.values(0, 66), rtol=1e-5)
    assert isinstance(schedule(20), float)


def test_exponential_from_zero_is_refused():
    with pytest.raises(ConfigError, match=r"lr: segment 1 of 1 \(Decay\): .*start above 0"):
        compose([Decay(0.1, 5, "exp")])


def test_a_custom_that_is_not_finite_is_refused():
    with pytest.raises(ConfigError, match="not finite"):
        compose([Custom(lambda t: float("nan"), 5, jump=True)])


def test_a_custom_below_zero_is_refused():
    with pytest.raises(ConfigError, match=r"segment 1 of 1 \(Custom\): .* below 0 at its ends \(got 0\.5, -0\.5\)"):
        compose([Custom(lambda t: 0.5 - t, 1, jump=True)])


def test_many_cycles_are_one_short_line():
    cycles = [Decay(0.1, 5, start=1.0, jump=True) for _ in range(100)]
    assert compose(cycles).describe() == " > ".join(["cosine 1..0.1"] * 4 + ["... 95 more", "cosine 1..0.1"])
    assert compose(cycles[:6]).describe() == " > ".join(["cosine 1..0.1"] * 6)


def test_descriptions():
    assert compose([Ramp(1e-3, 3), Decay(1e-4, 297)]).describe() == "ramp 3 > cosine 1e-3..1e-4"
    again = compose([Ramp(1e-3, 3, start=0.0, jump=True), Decay(1e-4, 297)], start=1e-4)
    assert again.describe() == "re-warm 3 > cosine 1e-3..1e-4"
    assert compose([Hold(1500)], start=3e-5).describe() == "hold 1.5k at 3e-5"
    assert compose([Ramp(1e-3, 3)]).describe() == "ramp 3 to 1e-3"
    assert compose([Ramp(1e-3, 0), Decay(1e-4, 9, "exp")]).describe() == "exp 1e-3..1e-4"
    assert compose([], 1e-4).describe() == "nothing at 1e-4"


# ---- slices and branches ----
@given(continuous, levels, st.data())
def test_slices_laid_end_to_end_are_the_whole(segments, start, data):
    schedule = compose(segments, start)
    cuts = sorted(data.draw(st.lists(st.integers(0, schedule.steps), max_size=3)))
    edges = [0, *cuts, schedule.steps]
    parts = [schedule.slice(a, b) for a, b in itertools.pairwise(edges)]
    joined = [v for p in parts for v in p.values(0, p.steps)]
    assert joined == schedule.values(0, schedule.steps).tolist()
    assert [p.steps for p in parts] == [b - a for a, b in itertools.pairwise(edges)]
    assert parts[-1].end == schedule.end
    for part, following in itertools.pairwise(parts):
        assert part.end == pytest.approx(following.start, rel=1e-12)  # no jumps in these


def test_a_slice_that_ends_at_a_jump_ends_before_it():
    schedule = compose([Hold(3, value=1.0, jump=True), Hold(2, value=0.5, jump=True)])
    assert (schedule.slice(0, 3).end, schedule.slice(3, 5)(0)) == (1.0, 0.5)
    for first, last in ((-1, 3), (4, 3), (0, 6)):
        with pytest.raises(ValueError, match="of a schedule of 5"):
            schedule.slice(first, last)


@given(continuous, levels, st.integers(1, 40), levels, st.data())
def test_a_branch_is_its_parent_before_the_branch(segments, start, steps, to, data):
    parent = compose(segments, start)
    at = data.draw(st.integers(0, parent.steps))
    child = parent.branch(at, [Decay(to, steps, "1-sqrt")])
    assert child.steps == at + steps and child.end == to
    assert child.values(0, at).tolist() == parent.values(0, at).tolist()
    assert child(at) == pytest.approx(parent(at), rel=1e-12)


def test_a_branch_that_jumps_is_refused():
    with pytest.raises(ConfigError, match=r"branch: segment 1 of 1 \(Decay\) begins at 2"):
        compose([Ramp(1.0, 4)]).branch(4, [Decay(0.1, 3, start=2.0)], "branch")


@given(continuous, levels, levels)
def test_first_below_stays_below(segments, start, level):
    schedule = compose(segments, start)
    values = schedule.values(0, schedule.steps + 1)
    found = schedule.first_below(level)
    if found is None:
        assert values[-1] > level
    else:
        assert (values[found:] <= level).all() and (found == 0 or values[found - 1] > level)


def test_where_the_last_fall_begins():
    assert compose([Ramp(1.0, 4), Hold(5), Decay(0.1, 3)]).last_fall == 9
    assert compose([Ramp(1.0, 4), Hold(5)]).last_fall == 9
    assert compose([Ramp(1.0, 4), Decay(0.5, 2), Hold(5)]).last_fall == 4
    # In the middle of a cooldown too, so that a phase may begin there.
    whole = compose([Ramp(1.0, 4), Hold(5), Decay(0.1, 3)])
    assert [whole.slice(a, b).last_fall for a, b in ((0, 11), (5, 12), (10, 12), (2, 7))] == [9, 4, 0, 5]


def test_the_highest_learning_rate():
    assert compose([Ramp(1.0, 4), Decay(0.5, 2), Hold(5)], 0.2).highest == 1.0
    assert compose([Hold(3, value=0.1, jump=True)], 0.2).highest == 0.1
    assert compose([], 0.2).highest == 0.2


@given(top=st.integers(0, 10**6), steps=st.integers(1, 10**6))
def test_the_top_of_a_curve_is_found(top, steps):
    triangle = compose([Custom(lambda t: 2e6 - abs(t - top), steps, jump=True)])
    assert triangle.highest == triangle(min(top, steps))
    first = steps // 3
    assert triangle.slice(first, steps).highest == 2e6 - abs(min(max(top, first), steps) - top)
