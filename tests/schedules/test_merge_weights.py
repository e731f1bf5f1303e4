"""Which average is which cooldown: golden values of the paper, and the identity that defines it."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt.errors import ConfigError
from cpt.schedules.merging import NAMES, coefficients, effective_weights, named_coefficients


@pytest.mark.parametrize(
    ("name", "w", "c"),
    [  # WSM (2507.17634), five checkpoints
        ("linear", (0.8, 0.6, 0.4, 0.2), (0.2, 0.2, 0.2, 0.2, 0.2)),
        ("1-sqrt", (0.5528, 0.3675, 0.2254, 0.1056), (0.4472, 0.1852, 0.1421, 0.1198, 0.1056)),
        ("cosine", (0.9045, 0.6545, 0.3455, 0.0955), (0.0955, 0.25, 0.3090, 0.25, 0.0955)),
    ],
)
def test_golden(name, w, c):
    assert named_coefficients(name, 5) == pytest.approx(c, abs=5e-5)
    assert effective_weights(named_coefficients(name, 5)) == pytest.approx(w, abs=5e-5)


def test_uniform_is_linear():
    assert named_coefficients("uniform", 7) == pytest.approx(named_coefficients("linear", 7))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_there_and_back(weights):
    w = np.sort(weights)[::-1]
    c = coefficients(w)
    assert c.sum() == pytest.approx(1.0) and (c >= 0).all()
    assert effective_weights(c) == pytest.approx(w, abs=1e-12)


@pytest.mark.parametrize("name", [*NAMES, "ema:0.9"])
@pytest.mark.parametrize("k", [2, 3, 10])
def test_all_sum_to_one_and_forget_monotonically(name, k):
    c = named_coefficients(name, k)
    assert c.sum() == pytest.approx(1.0) and (c > 0).all() and (np.diff(effective_weights(c)) <= 0).all()


def test_an_exponential_moving_average():
    average = 1.0 * np.eye(4)[0]
    for j in range(1, 4):
        average = 0.9 * average + 0.1 * np.eye(4)[j]
    assert named_coefficients("ema:0.9", 4) == pytest.approx(average)


@given(st.integers(2, 8), st.sampled_from(NAMES), st.integers(0, 99))
def test_with_frozen_gradients_the_average_is_the_decayed_run(k, name, seed):
    """SGD whose gradients do not depend on the iterate: the average equals the run whose rates were w (W4)."""
    rng = np.random.default_rng(seed)
    gradients, start, rate = rng.normal(size=(k - 1, 5)), rng.normal(size=5), 0.1
    visited = [start - rate * gradients[:j].sum(0) for j in range(k)]
    c = named_coefficients(name, k)
    decayed = start - rate * (effective_weights(c)[:, None] * gradients).sum(0)
    assert sum(ci * theta for ci, theta in zip(c, visited, strict=True)) == pytest.approx(decayed, abs=1e-12)


def test_coefficients_from_a_file(tmp_path):
    path = tmp_path / "c.json"
    path.write_text("[0.25, 0.75]")
    assert named_coefficients(str(path), 2).tolist() == [0.25, 0.75]
    for text, says in (("[0.5, 0.75]", "sum to 1.25"), ("[1.0]", "1 coefficients for 2"), ("{", "not a JSON list")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=says):
            named_coefficients(str(path), 2)
    path.write_text(json.dumps({"a": 1}))
    with pytest.raises(ConfigError, match="not a JSON list"):
        named_coefficients(str(path), 2)


def test_what_is_no_average():
    with pytest.raises(ConfigError, match="did you mean 'cosine'"):
        named_coefficients("cosin", 3)
    with pytest.raises(ConfigError, match="an average needs at least 2"):
        named_coefficients("uniform", 1)
