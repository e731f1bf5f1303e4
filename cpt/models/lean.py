"""Elementwise functions of a block whose backward pass keeps little: inputs as they came, and a number or two per row.

Left to automatic differentiation, a norm keeps its input, what is centred and what is normed, in float32, and GELU its
input, its tanh and several products; kept for every layer, these are what memory and its bandwidth go to. Here the
backward pass forms them again from inputs that are there anyway.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

_ROOT_2_OVER_PI, _CUBIC = math.sqrt(2 / math.pi), 0.044715


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def layer_norm(x_NxD: jax.Array, scale_D: jax.Array, bias_D: jax.Array, eps: float, dtype: jnp.dtype) -> jax.Array:
    """`(x - mean) / sqrt(variance + eps) * scale + bias` over the last axis (Ba et al. 2016, arXiv 1607.06450).

    Computed in float32, returned in `dtype`; the backward pass keeps `x` in its own dtype, mean and 1 / deviation.
    """
    return _layer_norm(x_NxD, scale_D, bias_D, eps, dtype)[0]


def _layer_norm(x_NxD: jax.Array, scale_D: jax.Array, bias_D: jax.Array, eps: float, dtype: jnp.dtype):
    wide_NxD = x_NxD.astype(jnp.float32)
    mean_Nx1 = wide_NxD.mean(-1, keepdims=True)
    centred_NxD = wide_NxD - mean_Nx1
    inverse_Nx1 = jax.lax.rsqrt(jnp.square(centred_NxD).mean(-1, keepdims=True) + eps)
    y_NxD = (centred_NxD * inverse_Nx1 * scale_D + bias_D).astype(dtype)
    return y_NxD, (x_NxD, scale_D, mean_Nx1, inverse_Nx1)


def _layer_norm_back(eps: float, dtype: jnp.dtype, kept: tuple, dy_NxD: jax.Array):
    x_NxD, scale_D, mean_Nx1, inverse_Nx1 = kept
    dy_NxD = dy_NxD.astype(jnp.float32)
    normed_NxD = (x_NxD.astype(jnp.float32) - mean_Nx1) * inverse_Nx1
    dnormed_NxD = dy_NxD * scale_D
    along_Nx1 = (dnormed_NxD * normed_NxD).mean(-1, keepdims=True)
    dx_NxD = (dnormed_NxD - dnormed_NxD.mean(-1, keepdims=True) - normed_NxD * along_Nx1) * inverse_Nx1
    return dx_NxD.astype(x_NxD.dtype), (dy_NxD * normed_NxD).sum(0), dy_NxD.sum(0)


layer_norm.defvjp(_layer_norm, _layer_norm_back)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def rms_norm(x: jax.Array, scale: jax.Array, eps: float, dtype: jnp.dtype) -> jax.Array:
    """`x / sqrt(mean(x^2) + eps) * scale` over the last axes, those of `scale` (arXiv 1910.07467); as `layer_norm`."""
    return _rms_norm(x, scale, eps, dtype)[0]


def _rms_norm(x: jax.Array, scale: jax.Array, eps: float, dtype: jnp.dtype):
    over = _last(scale)
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.square(wide).mean(over, keepdims=True) + eps)
    return (wide * inverse * scale).astype(dtype), (x, scale, inverse)


def _rms_norm_back(eps: float, dtype: jnp.dtype, kept: tuple, dy: jax.Array):
    x, scale, inverse = kept
    dy, normed, over = dy.astype(jnp.float32), x.astype(jnp.float32) * inverse, _last(scale)
    dnormed = dy * scale
    dx = (dnormed - normed * (dnormed * normed).mean(over, keepdims=True)) * inverse
    return dx.astype(x.dtype), (dy * normed).sum(tuple(range(x.ndim - scale.ndim)))


rms_norm.defvjp(_rms_norm, _rms_norm_back)


def _last(scale: jax.Array) -> Sequence[int]:
    return tuple(range(-scale.ndim, 0))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def gelu(x: jax.Array, tanh: bool) -> jax.Array:
    """`x Phi(x)`, or its approximation by tanh (Hendrycks and Gimpel 2016, arXiv 1606.08415); keeps only `x`."""
    return jax.nn.gelu(x, approximate=tanh)


def _gelu(x: jax.Array, tanh: bool):
    return gelu(x, tanh), x


def _gelu_back(tanh: bool, x: jax.Array, dy: jax.Array):
    x, dy = _again(x, dy)
    wide = x.astype(jnp.float32)
    if tanh:
        t = jnp.tanh(_ROOT_2_OVER_PI * (wide + _CUBIC * wide**3))
        slope = 0.5 * (1 + t) + 0.5 * wide * (1 - t * t) * _ROOT_2_OVER_PI * (1 + 3 * _CUBIC * wide * wide)
    else:
        density = jnp.exp(-0.5 * wide * wide) / np.sqrt(2 * np.pi)
        slope = 0.5 * (1 + jax.lax.erf(wide / np.sqrt(2))) + wide * density
    return ((dy.astype(jnp.float32) * slope).astype(x.dtype),)


gelu.defvjp(_gelu, _gelu_back)


def _again(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Arrays of which the compiler does not know that the forward pass computed the same from them.

    It would keep the tanh of every layer, from which both passes go on: a seventh of an update's memory on CPU.
    """
    return jax.lax.optimization_barrier(arrays)


@jax.custom_vjp
def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """`silu(gate) * up` (Shazeer 2020, arXiv 2002.05202); keeps only `gate` and `up`."""
    return jax.nn.silu(gate) * up


def _swiglu(gate: jax.Array, up: jax.Array):
    return swiglu(gate, up), (gate, up)


def _swiglu_back(kept: tuple, dy: jax.Array):
    gate, up, dy = _again(*kept, dy)
    dy, wide = dy.astype(jnp.float32), gate.astype(jnp.float32)
    s = jax.nn.sigmoid(wide)
    dgate = dy * up.astype(jnp.float32) * s * (1 + wide * (1 - s))
    return dgate.astype(gate.dtype), (dy * wide * s).astype(up.dtype)


swiglu.defvjp(_swiglu, _swiglu_back)
