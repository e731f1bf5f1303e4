"""The head's objective in three products, against full logits and autodiff."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import equations, products

from cpt.errors import ConfigError
from cpt.objectives import tiles
from cpt.objectives.cross_entropy import cross_entropy
from cpt.objectives.linear_cross_entropy import linear_cross_entropy
from cpt.objectives.spec import ObjectiveSpec
from cpt.objectives.tiles import rows_per_tile

SHAPES = ((1, 1, 3, 2), (3, 7, 5, 11), (4, 6, 16, 40))  # B, L, D, V


def problem(batch, length, width, vocab, seed=0):
    """Targets at both ends of the vocabulary, weights of padding and of multipliers."""
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(rng.standard_normal((batch, length, width)), jnp.float32)
    head = jnp.asarray(rng.standard_normal((width, vocab)), jnp.float32)
    targets = rng.integers(0, vocab, (batch, length))
    targets[0, 0], targets[-1, -1] = 0, vocab - 1
    weights = rng.choice([0.0, 1.0, 0.3, 2.5], (batch, length))
    weights[-1, -1] = 1.0
    return hidden, head, jnp.asarray(targets), jnp.asarray(weights, jnp.float32)


def reference(hidden, head, targets, weights, denominator=1.0, z_loss=0.0):
    """Full logits; the gradient is JAX's own."""
    nll_BxL = cross_entropy(hidden, head, targets, targets.size)
    logits_BxLxV = jnp.dot(hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)
    penalty_BxL = z_loss * jnp.square(jax.nn.logsumexp(logits_BxLxV, axis=-1))
    return ((nll_BxL + penalty_BxL) * weights).sum() / denominator, nll_BxL


def both(function, hidden, head, targets, weights, **options):
    """(objective, nll), and the gradients by states, head and weights."""

    def run(hidden, head, weights):
        return function(hidden, head, targets, weights, **options)

    return jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2), has_aux=True))(hidden, head, weights)


def assert_close(got, want, rtol):
    """To `rtol` of the largest number."""
    got, want = (np.asarray(x, np.float64) for x in (got, want))
    np.testing.assert_allclose(got, want, rtol=0, atol=rtol * np.abs(want).max())


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from(SHAPES),
    st.sampled_from([None, 1, 5, 8, 24]),
    st.sampled_from([0.0, 0.1]),
    st.sampled_from([1, 16, 128]),
    st.integers(0, 3),
)
def test_values_and_gradients_are_those_of_full_logits(shape, rows, z_loss, lanes, seed):
    hidden, head, targets, weights = problem(*shape, seed=seed)

    @jax.jit
    def run(*given):
        own = lambda h, w, m: linear_cross_entropy(h, w, targets, m, 7.0, z_loss, rows=rows, lanes=lanes)  # noqa: E731
        full = lambda h, w, m: reference(h, w, targets, m, 7.0, z_loss)  # noqa: E731
        slopes = [jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True)(*given) for f in (own, full)]
        return *slopes, own(*given)

    ((got, got_nll), slopes), ((want, want_nll), want_slopes), (alone, alone_nll) = run(hidden, head, weights)
    for objective, nll in ((got, got_nll), (alone, alone_nll)):  # without a gradient other code computes the same
        assert float(objective) == pytest.approx(float(want), rel=1e-6)
        assert_close(nll, want_nll, 1e-6)
    for slope, want_slope in zip(slopes, want_slopes, strict=True):
        assert slope.dtype == want_slope.dtype and slope.shape == want_slope.shape
        assert_close(slope, want_slope, 1e-5)


@pytest.mark.parametrize("rows", [None, 4])
def test_gradients_are_differences_of_the_objective(rows):
    with jax.enable_x64(True):
        hidden, head, targets, weights = problem(2, 5, 4, 9)
        hidden, head = hidden.astype(jnp.float64), head.astype(jnp.float64)

        def objective(hidden, head):
            logits = hidden @ head
            lse = jax.nn.logsumexp(logits, axis=-1)
            nll = lse - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
            return float(((nll + 0.1 * lse**2) * weights).sum()) / 3

        _, (by_hidden, by_head, _) = both(
            linear_cross_entropy, hidden, head, targets, weights, denominator=3.0, z_loss=0.1, rows=rows
        )
        rng = np.random.default_rng(1)
        for _ in range(3):
            a, b = (jnp.asarray(rng.standard_normal(x.shape)) for x in (hidden, head))
            h = 1e-5
            slope = (objective(hidden + h * a, head + h * b) - objective(hidden - h * a, head - h * b)) / (2 * h)
            # The logits are float32.
            assert float((by_hidden * a).sum() + (by_head * b).sum()) == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("rows", [None, 10])
def test_bfloat16_products_and_a_float32_gradient_of_the_head(rows):
    hidden, head, targets, weights = problem(4, 16, 64, 300)
    half = hidden.astype(jnp.bfloat16)
    (objective, nll), (by_hidden, by_head, _) = both(linear_cross_entropy, half, head, targets, weights, rows=rows)
    rounded = half.astype(jnp.float32), head.astype(jnp.bfloat16).astype(jnp.float32)
    (want, want_nll), (want_by_hidden, want_by_head, _) = both(reference, *rounded, targets, weights)
    # Only what the products read is rounded: the logits and their sums are not.
    assert float(objective) == pytest.approx(float(want), rel=1e-6)
    assert_close(nll, want_nll, 1e-5)
    assert by_hidden.dtype == jnp.bfloat16 and by_head.dtype == jnp.float32
    assert_close(by_hidden, want_by_hidden, 2**-8)
    assert_close(by_head, want_by_head, 2**-8)
    # More digits than bfloat16 has: the sum over the tokens was never rounded to it.
    assert (by_head != by_head.astype(jnp.bfloat16)).mean() > 0.9


def test_tokens_of_weight_zero_do_not_count():
    hidden, head, targets, weights = problem(3, 8, 5, 11)
    weights = weights.at[1].set(0)
    (objective, _), (by_hidden, by_head, _) = both(linear_cross_entropy, hidden, head, targets, weights, rows=5)
    assert (by_hidden[1] == 0).all() and (by_hidden[2] != 0).any()
    without = (x[jnp.array([0, 2])] for x in (hidden, targets, weights))
    kept_hidden, kept_targets, kept_weights = without
    (want, _), (_, want_by_head, _) = both(linear_cross_entropy, kept_hidden, head, kept_targets, kept_weights)
    assert float(objective) == pytest.approx(float(want), rel=1e-6)
    assert_close(by_head, want_by_head, 1e-6)


def test_no_gradient_passes_through_the_nll():
    hidden, head, targets, weights = problem(3, 7, 5, 11)
    slope = jax.grad(lambda h: linear_cross_entropy(h, head, targets, weights)[1].sum())(hidden)
    assert (slope == 0).all()


def test_what_comes_from_above_scales_the_gradient():
    hidden, head, targets, weights = problem(3, 7, 5, 11)

    def squared(function, hidden):
        return function(hidden, head, targets, weights)[0] ** 2

    got, want = (jax.grad(lambda h, f=f: squared(f, h))(hidden) for f in (linear_cross_entropy, reference))
    assert_close(got, want, 1e-5)


def test_large_logits_do_not_overflow():
    hidden, head, targets, weights = problem(3, 7, 5, 11)
    (objective, nll), slopes = both(linear_cross_entropy, 1e4 * hidden, head, targets, weights, lanes=16, rows=4)
    assert jnp.isfinite(nll).all() and (nll >= 0).all()
    assert all(jnp.isfinite(x).all() for x in (objective, *slopes[:2]))


def test_z_loss_pulls_the_normaliser_to_one():
    """Descending its term alone takes logsumexp to 0; cross-entropy alone does not know of it."""
    hidden, head, targets, _ = problem(2, 8, 16, 11)
    bias = jnp.concatenate([head, jnp.ones((1, 11))])  # the last state is 1: all logits can move together
    hidden = jnp.concatenate([hidden, jnp.ones((2, 8, 1))], axis=-1)
    weights = jnp.ones((2, 8))
    plain, pulled = (
        both(linear_cross_entropy, hidden, bias, targets, weights, z_loss=z)[1][1][-1].sum() for z in (0.0, 0.1)
    )
    lse = jax.nn.logsumexp(hidden @ bias, axis=-1)
    assert abs(float(plain)) < 1e-5
    assert float(pulled) == pytest.approx(float(2 * 0.1 * lse.sum()), rel=1e-4)


@pytest.mark.parametrize("z_loss", [-1e-4, float("nan"), float("inf")])
def test_a_z_loss_that_is_none(z_loss):
    with pytest.raises(ConfigError, match=r"objective\.z_loss: .* at least 0"):
        ObjectiveSpec(z_loss)


def test_rows_of_a_tile(monkeypatch):
    monkeypatch.setattr(tiles, "LOGITS_AT_ONCE", 1000)
    monkeypatch.setattr(tiles, "HALF_LOGITS_AT_ONCE", 4000)
    assert rows_per_tile(100, 10, half=False) == 100  # fits: one piece
    assert rows_per_tile(96, 30, half=False) == 32  # 33 would fit, 32 divides
    assert rows_per_tile(97, 30, half=False) == 33  # nothing divides 97: the last tile is padded
    assert rows_per_tile(10_000, 30, half=True) == 125
    assert rows_per_tile(7, 5000, half=False) == 1
    monkeypatch.undo()
    assert rows_per_tile(65536, 50304, half=True) == 4096
    assert rows_per_tile(65536, 50304, half=False) == 1024


def arrays(function, *given):
    """Elements of every intermediate of a program, and how many matrix products it has, the body of a loop once."""
    sizes = [v.aval.size for eqn in equations(function, *given) for v in eqn.outvars]
    return max(sizes), len(products(function, *given))


def test_three_products_and_the_logits_of_one_tile(monkeypatch):
    given = problem(4, 64, 8, 100)
    gradient = lambda *x, **o: jax.grad(lambda h, w: linear_cross_entropy(h, w, *x[2:], **o)[0], (0, 1))(*x[:2])  # noqa: E731
    assert arrays(gradient, *given) == (4 * 64 * 100, 3)
    largest, products = arrays(lambda *x: gradient(*x, rows=16), *given)
    assert largest == 4 * 64 * 8 and products == 3  # the states themselves; the logits of a tile are 1600
    monkeypatch.setattr(tiles, "LOGITS_AT_ONCE", 1600)
    assert arrays(lambda *x: gradient(*x), *given) == (4 * 64 * 8, 3)
    assert arrays(lambda *x: linear_cross_entropy(*x, rows=16), *given) == (4 * 64 * 8, 1)


@pytest.fixture(scope="module")
def spread(tmp_path_factory):
    """What `sharded_head.py` finds; in a process of its own, as the number of CPU devices is fixed when JAX starts."""
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"}
    command = [sys.executable, Path(__file__).parent / "sharded_head.py", tmp_path_factory.mktemp("toy")]
    done = subprocess.run(command, env={**os.environ, **flags}, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.slow
def test_eight_devices_compute_what_one_does(spread):
    assert len(spread["heads"]) == 10
    for name, off in spread["heads"].items():
        # Where `tensor` splits the vocabulary, parts of the states' gradient are added in their dtype.
        tolerance = 1e-2 if "bfloat16" in name else 3e-6
        assert off["objective"] < 1e-6 and off["nll"] < 1e-6, name
        assert off["by_hidden"] < tolerance and off["by_head"] < 3e-6, name


@pytest.mark.slow
@pytest.mark.parametrize("sizes", ["(8, 1, 1, 1)", "(1, 8, 1, 1)", "(2, 2, 1, 2)"])
def test_devices_add_up_the_gradient_of_the_head_once(spread, sizes):
    """In the update over many tiles; in their loop, only with `tensor`, are sums of the rows of one."""
    found = spread[f"update {sizes}"]
    width, vocab, tile, tensor = 48, 260, 4, 2 if sizes == "(2, 2, 1, 2)" else 1
    own = vocab // tensor
    of_head = [x for x in dims_of(found["facts"]["collectives"]) if x[1] in ([width, own], [6, own], [24, own])]
    assert not found["facts"]["calls_host"]
    # The widths of a shard of the head (6 of 48 over fsdp 8, 24 over fsdp 2), and the tile: nothing else has logits.
    assert [tile, own] in found["logits"]
    assert all(dims in ([tile, own], [6, own], [own, 6], [24, own], [own, 24]) for dims in found["logits"])
    in_loops = dims_of(found["in_loops"])
    assert in_loops == ([] if tensor == 1 else [("all-reduce", [tile]), ("all-reduce", [2, tile])])
    want = {
        "(8, 1, 1, 1)": [("all-reduce", [width, own])],
        "(1, 8, 1, 1)": [("all-gather", [width, own]), ("reduce-scatter", [6, own])],
        "(2, 2, 1, 2)": [("all-gather", [width, own]), ("all-reduce", [24, own]), ("reduce-scatter", [24, own])],
    }
    assert sorted(of_head) == want[sizes]


def dims_of(collectives):
    return [(x["kind"], dims) for x in collectives for _, dims in x["shapes"]]
