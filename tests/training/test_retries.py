"""When a checkpoint is due by the clock, read from no clock."""

import pytest

from cpt.errors import ConfigError
from cpt.training.retries import LONGEST_RETRY_S, SaveClock
from cpt.training.spec import CheckpointSpec


def test_nothing_is_due_where_no_minutes_are_set():
    clock = SaveClock()
    clock.saved(0.0)
    assert not any(clock.due(float(t)) for t in range(0, 10**6, 1000))


def test_one_is_due_each_interval_since_the_last_save():
    clock = SaveClock(600.0)
    assert [t for t in range(0, 2000, 100) if clock.due(float(t))] == [600, 1200, 1800]
    clock.saved(1900.0)
    assert [t for t in range(1900, 3200, 100) if clock.due(float(t))] == [2500, 3100]


def test_failures_are_tried_again_after_1_2_4_minutes_and_a_success_ends_that():
    clock, now, waits = SaveClock(), 0.0, []
    for _ in range(9):
        waits.append(clock.failed(now) / 60)
        assert not clock.due(now + clock.wait_s - 1)
        now += clock.wait_s
        assert clock.due(now) and not clock.due(now)
    assert waits[:4] == [1, 2, 4, 8] and 60 * waits[-1] == LONGEST_RETRY_S
    clock.saved(now)
    assert not clock.due(now + 10**6)


@pytest.mark.parametrize("minutes", [0, -1.0, float("nan")])
def test_an_interval_is_positive(minutes):
    with pytest.raises(ConfigError, match=r"checkpoints\.rolling_minutes: .* is not greater than 0"):
        CheckpointSpec(rolling_minutes=minutes)
