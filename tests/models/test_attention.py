"""Attention against a loop in float64, and the law that makes RoPE relative."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt.models.attention import rotary_table, rotate
from cpt.models.attention.blocked import blocked
from cpt.models.attention.reference import reference


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def loop_attention(q, k, v, segments):
    """The definition, one query at a time, float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(v)
    for b, h, t in np.ndindex(q.shape[:3]):
        seen = [s for s in range(t + 1) if segments is None or segments[b, s] == segments[b, t]]
        logits = k[b, h, seen] @ q[b, h, t] / np.sqrt(q.shape[-1])
        weights = np.exp(logits - logits.max())
        out[b, h, t] = weights @ v[b, h, seen] / weights.sum()
    return out


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("backend", [reference, blocked, partial(blocked, block=4, by_hand=True)])
def test_attention_is_its_definition(backend, packed):
    q, k, v = (normal(i, 2, 3, 11, 4) for i in range(3))
    segments = jnp.array([[0] * 4 + [1] * 7, [0] * 1 + [1] * 5 + [2] * 5]) if packed else None
    np.testing.assert_allclose(jax.jit(backend)(q, k, v, segments), loop_attention(q, k, v, segments), atol=2e-6)


@pytest.mark.parametrize("attend", [reference, blocked, partial(blocked, by_hand=True)])
def test_logits_are_float32_for_bfloat16_inputs(attend):
    """Two keys whose logits, 256 and 257, are one number in bfloat16."""
    q = jnp.array([[[[0, 0], [1, 1]]]], jnp.bfloat16)
    k = jnp.array([[[[256, 0], [256, 1]]]], jnp.bfloat16) * jnp.bfloat16(1)
    v = jnp.array([[[[0, 0], [1, 1]]]], jnp.bfloat16)
    got = float(attend(q, k, v)[0, 0, 1, 0])
    assert got == pytest.approx(1 / (1 + np.exp(-1 / np.sqrt(2))), abs=4e-3)


@pytest.mark.parametrize("channels", [4, 6, 8, 12])
def test_rotary_golden_values(channels):
    """4 channels turn, base 100: frequencies 1 and 0.1; channel 0 turns with channel 2, 1 with 3."""
    x = jnp.arange(1.0, channels + 1.0).reshape(1, 1, 1, channels).repeat(3, axis=2)
    turned = np.asarray(rotate(x, *rotary_table(3, 4, 100.0)))[0, 0, 2]
    expected = [
        1 * np.cos(2) - 3 * np.sin(2),
        2 * np.cos(0.2) - 4 * np.sin(0.2),
        3 * np.cos(2) + 1 * np.sin(2),
        4 * np.cos(0.2) + 2 * np.sin(0.2),
        *range(5, channels + 1),
    ]
    np.testing.assert_allclose(turned, expected, rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 40), st.sampled_from([2, 4, 8]))
def test_rotated_products_depend_on_the_distance_alone(i, j, shift, rotary_dim):
    q, k = normal(1, 8), normal(2, 8)
    table = rotary_table(64, rotary_dim, 10000.0)
    q_LxK, k_LxK = (np.asarray(rotate(jnp.tile(x, (64, 1)), *table)) for x in (q, k))
    np.testing.assert_allclose(q_LxK[i] @ k_LxK[j], q_LxK[i + shift] @ k_LxK[j + shift], atol=2e-5)


def test_rotation_keeps_norms_and_dtype():
    x = normal(3, 2, 2, 16, 8)
    table = rotary_table(16, 8, 10000.0)
    np.testing.assert_allclose(jnp.linalg.norm(rotate(x, *table), axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)
    assert rotate(x.astype(jnp.bfloat16), *table).dtype == jnp.bfloat16
    assert rotate(x, *rotary_table(16, 0, 10000.0)) is x
