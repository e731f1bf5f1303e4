"""The decoder written out once more in NumPy, float64, from the equations: a second opinion that needs no torch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cpt.models.base import build
from cpt.models.spec import ModelSpec

SPEC = ModelSpec(layers=2, width=24, heads=3, ff=40, vocab_size=31, context=16, rotary_fraction=0.5, norm_eps=0.1)


def norm(x, p, eps):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * p["scale"] + p["bias"]


def gelu(x, kind):
    if kind == "exact":
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def turn(x_LxK, rotary_dim, base):
    """Each pair (i, i + R) as a complex number, turned by position * base^(-i / R)."""
    half = rotary_dim // 2
    pair = x_LxK[:, :half] + 1j * x_LxK[:, half:rotary_dim]
    pair = pair * np.exp(1j * np.arange(len(x_LxK))[:, None] * base ** (-np.arange(half) / half))
    return np.concatenate([pair.real, pair.imag, x_LxK[:, rotary_dim:]], axis=1)


def attention(x_LxD, p, spec):
    mixed = np.zeros((len(x_LxD), spec.width))
    for h in range(spec.heads):
        q, k, v = (x_LxD @ p["qkv"]["kernel"][:, h, i] + p["qkv"]["bias"][h, i] for i in range(3))
        q, k = (turn(x, spec.rotary_dim, spec.rotary_base) for x in (q, k))
        weights = np.tril(np.exp(q @ k.T / math.sqrt(spec.head_dim)))
        mixed[:, h * spec.head_dim : (h + 1) * spec.head_dim] = weights / weights.sum(1, keepdims=True) @ v
    return mixed @ p["out"]["kernel"].reshape(spec.width, spec.width) + p["out"]["bias"]


def mlp(x_LxD, p, spec):
    inner = gelu(x_LxD @ p["up"]["kernel"] + p["up"]["bias"], spec.gelu)
    return inner @ p["down"]["kernel"] + p["down"]["bias"]


def decoder(tokens_L, params, spec):
    x = params["embed"]["embedding"][tokens_L]
    for i in range(spec.layers):
        p = params["layers"][str(i)]
        after = x + attention(norm(x, p["ln_attn"], spec.norm_eps), p["attention"], spec)
        mlp_input = x if spec.parallel_residual else after
        x = after + mlp(norm(mlp_input, p["ln_mlp"], spec.norm_eps), p["mlp"], spec)
    return norm(x, params["ln_final"], spec.norm_eps)


@pytest.mark.parametrize(("kind", "parallel"), [("tanh", True), ("exact", False)])
def test_decoder_is_its_equations(kind, parallel):
    spec = ModelSpec(**{**vars(SPEC), "gelu": kind, "parallel_residual": parallel})
    model, rng = build(spec), np.random.default_rng(0)
    params = jax.tree.map(lambda x: 0.4 * rng.standard_normal(x.shape), model.abstract())
    tokens_BxL = rng.integers(0, 31, (2, 16))
    single = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    got = jax.jit(model.apply)(single, jnp.asarray(tokens_BxL))
    expected = np.stack([decoder(row, params, spec) for row in tokens_BxL])
    np.testing.assert_allclose(got, expected, atol=3e-5)
