"""The gradient of a weight: the same numbers in the form for CPU, which the compiler must not undo."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cpt.models.products import times, weight_gradient

SHAPES = [(48, 8, 24), (48, 24, 8), (48, 16, 16), (1, 3, 5), (5, 3, 1)]


def numbers(*shape: int, dtype: str = "float32") -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape), dtype)


@pytest.mark.parametrize("cpu", [True, False])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
def test_weight_gradient_is_the_product_that_it_says(rows, inputs, outputs, cpu):
    x, dy = numbers(rows, inputs), numbers(rows, outputs)
    want = np.asarray(x, np.float64).T @ np.asarray(dy, np.float64)
    np.testing.assert_allclose(jax.jit(weight_gradient, static_argnums=2)(x, dy, cpu), want, atol=1e-5)


@pytest.mark.parametrize("inputs", [8, 64])
def test_bfloat16_is_summed_in_what_is_asked(inputs):
    """4,096 products of 1 and 1/256: in float32 the sum is 16, in bfloat16 what it may be."""
    x, dy = jnp.ones((4096, inputs), jnp.bfloat16), jnp.full((4096, 16), 2**-8, jnp.bfloat16)
    wide = weight_gradient(x, dy, True, jnp.float32)
    assert wide.dtype == jnp.float32 and (wide == 16).all()
    assert weight_gradient(x, dy, True).dtype == jnp.bfloat16


@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
def test_times_has_the_gradients_of_the_product(rows, inputs, outputs):
    x, weight, toward = numbers(rows, inputs), numbers(inputs, outputs), numbers(rows, outputs)

    def gradients(product):
        y, pull = jax.vjp(product, x, weight)
        return y, *pull(toward)

    for got, want in zip(gradients(times), gradients(jnp.matmul), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="it is about the compiler for CPU")
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 256), (256, 64)])
def test_the_compiler_does_not_take_the_transposes_back(inputs, outputs):
    """No product contracts the rows of both operands, which is the slow one."""
    abstract = [jax.ShapeDtypeStruct((512, n), jnp.float32) for n in (inputs, outputs)]
    compiled = jax.jit(weight_gradient, static_argnums=2).lower(*abstract, True).compile().as_text()
    products = [line for line in compiled.splitlines() if " dot(" in line]
    assert products and all("lhs_contracting_dims={1}, rhs_contracting_dims={0}" in line for line in products)
