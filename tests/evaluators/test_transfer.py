import numpy as np
import pytest

from cpt.evaluators.transfer import bwt, fwt

# Accuracies after no, one, two, three tasks; losses are their negatives.
WORKED = -np.array([[0.1, 0.1, 0.1], [0.9, 0.1, 0.2], [0.6, 0.8, 0.3], [0.5, 0.7, 0.85]])


def test_goldens():
    matrix = WORKED.tolist()
    assert np.mean(matrix[-1]) == pytest.approx(-0.683333, abs=1e-6)
    assert bwt(matrix, [1, 2, 3]) == pytest.approx(-0.25)
    assert fwt(matrix, [1, 2, 3]) == pytest.approx(0.10)


def test_a_set_never_learned_counts_for_neither():
    matrix = np.column_stack([WORKED, [9, 8, 7, 6]]).tolist()
    assert bwt(matrix, [1, 2, 3, None]) == pytest.approx(-0.25)
    assert fwt(matrix, [1, 2, 3, None]) == pytest.approx(0.10)


def test_undefined_is_none():
    assert bwt([[3.0], [2.0]], [1]) is None
    assert fwt([[3.0], [2.0]], [1]) is None
    holed = WORKED.tolist()
    holed[3][0] = None
    assert bwt(holed, [1, 2, 3]) is None
    assert fwt(holed, [1, 2, 3]) == pytest.approx(0.10)
