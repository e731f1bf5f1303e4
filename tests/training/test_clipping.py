"""The norm of gradients and what is clipped by it, against optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt.optimizers.clipping import PIECES, clip_by_global_norm, global_norm


def gradients(seed: int, scale: float = 1.0) -> dict:
    """Arrays that can be cut into pieces and some that cannot."""
    rng = np.random.default_rng(seed)
    shapes = {"a": (16, 24), "b": (PIECES,), "c": (3, 5), "d": (), "e": (4, 2, 6)}
    return {k: jnp.asarray(scale * rng.standard_normal(s), jnp.float32) for k, s in shapes.items()}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(1e-6, 1e6))
def test_the_norm_is_that_of_all_numbers(seed, scale):
    grads = gradients(seed, scale)
    want = np.linalg.norm(np.concatenate([np.ravel(np.asarray(g, np.float64)) for g in grads.values()]))
    for alone in (True, False):
        assert float(global_norm(grads, alone)) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("limit", [0.5, 1e3])
@pytest.mark.parametrize("known", [True, False])
def test_gradients_are_clipped_as_optax_clips(limit, known):
    grads = gradients(0)
    clip, theirs = clip_by_global_norm(limit), optax.clip_by_global_norm(limit)
    extra = {"grad_norm": global_norm(grads, True)} if known else {}
    got, _ = clip.update(grads, clip.init(grads), **extra)
    want, _ = theirs.update(grads, theirs.init(grads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, want)
    assert float(optax.tree.norm(got)) == pytest.approx(min(limit, float(optax.tree.norm(grads))), rel=1e-6)


def test_below_the_limit_no_bit_changes_and_the_dtype_stays():
    grads = jax.tree.map(lambda g: g.astype(jnp.bfloat16), gradients(1))
    clip = clip_by_global_norm(1e3)
    got, _ = clip.update(grads, clip.init(grads))
    jax.tree.map(np.testing.assert_array_equal, got, grads)
    assert {g.dtype for g in jax.tree.leaves(got)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["a", "c"])
def test_one_number_that_is_not_finite_is_noticed(name, bad):
    grads = gradients(2)
    grads[name] = grads[name].at[0, 0].set(bad)
    assert not np.isfinite(global_norm(grads, True)) and not np.isfinite(global_norm(grads, False))
