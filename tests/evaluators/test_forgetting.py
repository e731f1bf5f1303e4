import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt.evaluators.forgetting import (
    forgetting,
    forgetting_best,
    windowed_forgetting,
    windowed_plasticity,
    worst_case,
)

ACCURACIES = np.array([0.9, 0.8, 0.85, 0.5, 0.7, 0.9, 0.88])
LOSSES = st.lists(st.floats(0, 10), min_size=2, max_size=30)


def test_forgetting_is_positive_when_the_loss_rose():
    assert forgetting(2.0, 2.04) == pytest.approx(0.04)


def test_forgetting_best_of_chaudhry_on_the_worked_matrix():
    # Accuracies of tasks 1 and 2 after each of three tasks; a loss is a negative accuracy. F_3 = .25
    tasks = -np.array([[0.9, 0.6, 0.5], [0.1, 0.8, 0.7]])
    assert np.mean([forgetting_best(t) for t in tasks]) == pytest.approx(0.25)


def test_forgetting_best_differs_from_first_minus_last_when_a_set_improved_in_between():
    curve = np.array([3.0, 2.5, 3.1])
    assert forgetting(curve[0], curve[-1]) == pytest.approx(0.1)
    assert forgetting_best(curve) == pytest.approx(0.6)
    assert np.isnan(forgetting_best(curve[:1]))


@pytest.mark.parametrize(("window", "expected"), [(2, 0.35), (3, 0.35), (4, 0.40), (7, 0.40)])
def test_windowed_forgetting_goldens(window, expected):
    assert windowed_forgetting(-ACCURACIES, window) == pytest.approx(expected)


@pytest.mark.parametrize(("accuracies", "expected"), [([0.9, 0.5, 0.8], 0.3), ([0.5, 0.2, 0.9], 0.7)])
def test_windowed_plasticity_looks_at_every_start(accuracies, expected):
    assert windowed_plasticity(-np.array(accuracies), 3) == pytest.approx(expected)


@given(LOSSES, st.integers(2, 12))
def test_windowed_values_are_those_of_the_definition(losses, window):
    starts = range(max(1, len(losses) - window + 1))
    windows = [losses[s : s + window] for s in starts]
    rises = [w[j] - w[i] for w in windows for i in range(len(w)) for j in range(i + 1, len(w))]
    assert windowed_forgetting(np.array(losses), window) == pytest.approx(max(rises))
    assert windowed_plasticity(np.array(losses), window) == pytest.approx(-min(rises))


def test_a_window_without_a_pair_is_refused():
    with pytest.raises(ValueError, match="window of 1"):
        windowed_forgetting(ACCURACIES, 1)


def test_worst_case_golden():
    assert worst_case(0.95, [0.5, 0.6]) == pytest.approx(0.683333, abs=1e-6)
