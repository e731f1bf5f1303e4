"""Cross-entropy against its definition in float64; chunking must change memory and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import equations

from cpt.objectives import cross_entropy as module
from cpt.objectives.cross_entropy import automatic_rows, cross_entropy, weighted_sums


def problem(batch=3, length=7, width=5, vocab=11, seed=0):
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(rng.standard_normal((batch, length, width)), jnp.float32)
    head = jnp.asarray(rng.standard_normal((width, vocab)), jnp.float32)
    return hidden, head, jnp.asarray(rng.integers(0, vocab, (batch, length)))


def definition(hidden, head, targets):
    logits = np.asarray(hidden, np.float64) @ np.asarray(head, np.float64)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return -np.log(np.take_along_axis(p, np.asarray(targets)[..., None], -1)[..., 0])


def test_is_its_definition():
    hidden, head, targets = problem()
    nll = cross_entropy(hidden, head, targets)
    assert nll.shape == (3, 7) and nll.dtype == jnp.float32
    np.testing.assert_allclose(nll, definition(hidden, head, targets), rtol=1e-5)


@settings(max_examples=8, deadline=None)
@given(st.sampled_from([(1, 1), (3, 7), (4, 6)]), st.integers(1, 25))
def test_any_chunking_gives_the_same_values_and_gradients(shape, rows):
    batch, length = shape
    hidden, head, targets = problem(batch, length)
    weights = jnp.asarray(np.random.default_rng(1).standard_normal(shape), jnp.float32)

    def run(rows):
        def loss(hidden, head):
            nll = cross_entropy(hidden, head, targets, rows)
            return (nll * weights).sum(), nll

        (_, nll), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(hidden, head)
        return nll, *grads

    for chunked, whole in zip(run(rows), run(batch * length), strict=True):
        np.testing.assert_allclose(chunked, whole, atol=2e-6)


def largest_array(rows, shape=(4, 64, 8), vocab=100):
    """Elements of the largest intermediate of a gradient, read from its program."""
    hidden, head = jnp.zeros(shape), jnp.zeros((shape[2], vocab))
    loss = jax.grad(lambda h, w: cross_entropy(h, w, jnp.zeros(shape[:2], int), rows).sum(), argnums=(0, 1))
    return max(v.aval.size for eqn in equations(loss, hidden, head) for v in eqn.outvars)


def test_logits_of_the_whole_batch_never_exist():
    assert largest_array(rows=4 * 64) == 4 * 64 * 100
    assert largest_array(rows=16) <= 4 * 64 * 8  # the hidden states themselves; a chunk's logits are 1600


def test_chunks_by_itself_when_logits_are_large(monkeypatch):
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", 1600)
    assert largest_array(rows=None) <= 4 * 64 * 8
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", 4 * 64 * 100)
    assert largest_array(rows=None) == 4 * 64 * 100


def test_automatic_rows():
    assert automatic_rows(2048, 2048) == 2048  # fits: one piece
    assert automatic_rows(65536, 50304) == 2**26 // 50304 == 1334
    assert automatic_rows(65536, 50304, devices=8) == 2**29 // 50304
    assert automatic_rows(10, 2**30) == 1


def test_large_logits_do_not_overflow():
    hidden, head, targets = problem()
    nll = cross_entropy(1e4 * hidden, head, targets)
    assert jnp.isfinite(nll).all() and (nll >= 0).all()


def test_bfloat16_states_give_float32_sums():
    hidden, head, targets = problem(width=64, vocab=300)
    half = hidden.astype(jnp.bfloat16)
    nll = cross_entropy(half, head, targets)
    assert nll.dtype == jnp.float32
    rounded = definition(half.astype(jnp.float32), head.astype(jnp.bfloat16).astype(jnp.float32), targets)
    np.testing.assert_allclose(nll, rounded, rtol=1e-4)  # only the inputs are rounded, not the logits


def test_weighted_sums_per_source():
    nll = jnp.array([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0], [64.0, 128.0, 256.0]])
    weights = jnp.array([[1, 1, 0], [1, 0, 1], [0.5, 0, 0]])
    nats, tokens = weighted_sums(nll, weights, jnp.array([2, 0, 2]), 4)
    np.testing.assert_array_equal(nats, [40, 0, 35, 0])
    np.testing.assert_array_equal(tokens, [2, 0, 2.5, 0])
    assert nats.dtype == tokens.dtype == jnp.float32


@pytest.mark.parametrize("kind", [bool, int, float])
def test_weights_of_any_dtype(kind):
    nats, tokens = weighted_sums(jnp.ones((2, 3)), jnp.ones((2, 3), kind), jnp.array([0, 1]), 2)
    np.testing.assert_array_equal(nats, [3, 3])
    np.testing.assert_array_equal(tokens, [3, 3])
