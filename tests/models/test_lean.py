"""Functions with a backward pass of their own: the same numbers as automatic differentiation, from less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cpt.models.lean import gelu, layer_norm, rms_norm, swiglu

EPS = 1e-5
rng = np.random.default_rng(0)


def numbers(*shape: int, dtype=jnp.float32) -> jax.Array:
    return jnp.asarray(2 * rng.standard_normal(shape), dtype)


def plain_layer_norm(x, scale, bias):
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    return (centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + EPS) * scale + bias).astype(x.dtype)


def plain_rms_norm(x, scale):
    wide, over = x.astype(jnp.float32), tuple(range(-scale.ndim, 0))
    return (wide / jnp.sqrt(jnp.square(wide).mean(over, keepdims=True) + EPS) * scale).astype(x.dtype)


CASES = {
    "layer_norm": (
        lambda x, s, b: layer_norm(x, s, b, EPS, x.dtype),
        plain_layer_norm,
        lambda t: (numbers(7, 24, dtype=t), numbers(24), numbers(24)),
    ),
    "rms_norm": (
        lambda x, s: rms_norm(x, s, EPS, x.dtype),
        plain_rms_norm,
        lambda t: (numbers(7, 24, dtype=t), numbers(24)),
    ),
    "rms_norm over heads": (
        lambda x, s: rms_norm(x, s, EPS, x.dtype),
        plain_rms_norm,
        lambda t: (numbers(5, 3, 8, dtype=t), numbers(8)),
    ),
    "rms_norm over all heads at once": (
        lambda x, s: rms_norm(x, s, EPS, x.dtype),
        plain_rms_norm,
        lambda t: (numbers(5, 3, 8, dtype=t), numbers(3, 8)),
    ),
    "gelu by tanh": (
        lambda x: gelu(x, True),
        lambda x: jax.nn.gelu(x, approximate=True),
        lambda t: (numbers(7, 24, dtype=t),),
    ),
    "gelu exact": (
        lambda x: gelu(x, False),
        lambda x: jax.nn.gelu(x, approximate=False),
        lambda t: (numbers(7, 24, dtype=t),),
    ),
    "swiglu": (
        swiglu,
        lambda gate, up: jax.nn.silu(gate) * up,
        lambda t: (numbers(7, 24, dtype=t), numbers(7, 24, dtype=t)),
    ),
}


@pytest.mark.parametrize("dtype, atol", [(jnp.float32, 3e-6), (jnp.bfloat16, 0.06)])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_automatic_differentiation(name, dtype, atol):
    ours, theirs, make = CASES[name]
    args = make(dtype)
    weight = numbers(*ours(*args).shape)

    def both(f):
        scalar = lambda *a: (f(*a).astype(jnp.float32) * weight).sum()  # noqa: E731
        return f(*args), jax.grad(scalar, argnums=tuple(range(len(args))))(*args)

    (value, grads), (expected, expected_grads) = jax.jit(both, static_argnums=0)(ours), both(theirs)
    assert value.dtype == expected.dtype == dtype
    np.testing.assert_allclose(value.astype(np.float32), expected.astype(np.float32), atol=atol, rtol=atol)
    for got, want, arg in zip(grads, expected_grads, args, strict=True):
        assert got.dtype == arg.dtype and got.shape == arg.shape
        scale = np.abs(want.astype(np.float32)).max()
        np.testing.assert_allclose(got.astype(np.float32), want.astype(np.float32), atol=2 * atol * scale)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_finite_differences(name):
    ours, _, make = CASES[name]
    args = make(jnp.float32)
    direction = [numbers(*a.shape) for a in args]
    weight = numbers(*ours(*args).shape)
    scalar = lambda *a: float((np.asarray(ours(*a), np.float64) * np.asarray(weight, np.float64)).sum())  # noqa: E731
    grads = jax.grad(lambda *a: (ours(*a) * weight).sum(), argnums=tuple(range(len(args))))(*args)
    h = 1e-2
    ahead, behind = ([a + sign * h * d for a, d in zip(args, direction, strict=True)] for sign in (1, -1))
    slope = (scalar(*ahead) - scalar(*behind)) / (2 * h)
    expected = sum(float((g * d).sum()) for g, d in zip(grads, direction, strict=True))
    assert slope == pytest.approx(expected, rel=5e-3, abs=0.05)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("row", [[-1e4, -30.0, 0.0, 30.0, 1e4, 1.0, 2.0, 3.0], [3.0] * 8])
def test_extremes_stay_finite(name, row):
    ours, _, make = CASES[name]
    args = [jnp.broadcast_to(jnp.array(row), (*a.shape[:-1], 8)) for a in make(jnp.float32)]
    grads = jax.grad(lambda *a: ours(*a).sum(), argnums=tuple(range(len(args))))(*args)
    assert all(np.isfinite(x).all() for x in (ours(*args), *grads))


@pytest.mark.parametrize("name, per_element", [("layer_norm", 1), ("rms_norm", 1), ("gelu by tanh", 1), ("swiglu", 2)])
def test_what_is_kept_for_the_backward_pass_is_the_input_and_little_more(name, per_element):
    ours, _, make = CASES[name]
    args = make(jnp.bfloat16)
    _, back = jax.vjp(ours, *args)
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(back))
    rows, width = args[0].shape
    assert kept <= per_element * args[0].nbytes + 8 * rows + 4 * width


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="it counts in the text of the compiler for CPU")
@pytest.mark.parametrize("function, of", [(lambda x: gelu(x, True), "tanh"), (lambda x: swiglu(x, x), "exponential")])
def test_both_passes_compute_what_is_dear(function, of):
    """Found to be the same in both, it would be kept from one to the other, for every layer."""

    def passes(x, dy):
        y, pull = jax.vjp(function, x)
        return y, pull(dy)

    program = jax.jit(passes).lower(*[jax.ShapeDtypeStruct((64, 64), jnp.float32)] * 2).compile().as_text()
    assert program.count(f" {of}(") >= 2
