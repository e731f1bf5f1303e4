"""Layers that families share. Every parameter carries the logical names of its dimensions in the metadata field `axes`,
next to its shape, so that sharding rules need no second list.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from cpt.models._spec import DecoderSpec
from cpt.models.layout import gathered
from cpt.models.products import times

Axes = Sequence[str | None]


def normal(rngs: nnx.Rngs, shape: Sequence[int], axes: Axes, std: float, factor: bool = False) -> nnx.Param:
    """A parameter of independent normal numbers.

    Args:
      factor: it is only ever multiplied, in the compute dtype (`Model.narrow`).
    """
    return nnx.Param(std * jax.random.normal(rngs.params(), shape, jnp.float32), axes=tuple(axes), factor=factor)


def deviations(spec: DecoderSpec) -> tuple[float, float]:
    """Standard deviations of the in-projections, embedding and head, and of the output projections of a block.

    `init="neox"`: small-init, sqrt(2 / (5 d)) (Nguyen and Salazar 2019, arXiv 1910.05895), and Wang's 2 / (L sqrt(d)).
    """
    std_in = spec.init_std or math.sqrt(2 / (5 * spec.width))
    return std_in, spec.init_std or 2 / (spec.layers * math.sqrt(spec.width))


class Linear(nnx.Module):
    """`x W + b` on rows [N, inputs]; the kernel keeps its heads as a dimension of its own, which sharding can name.

    Rows and outputs are flat while they are multiplied: with [B, L, d] the weight gradient contracts two dimensions,
    for which XLA on CPU first makes transposed copies of both operands (5 to 10 % of a step).
    """

    def __init__(
        self,
        rngs: nnx.Rngs,
        shape: Sequence[int],
        axes: Axes,
        std: float,
        dtype: str,
        inputs: int = 1,
        bias: bool = True,
    ):
        """`shape` and `axes` describe the kernel; its first `inputs` dimensions are summed over."""
        self.outputs, self.dtype, self.has_bias = tuple(shape[inputs:]), jnp.dtype(dtype), bias
        self.kernel = normal(rngs, shape, axes, std, factor=True)
        if bias:
            self.bias = nnx.Param(jnp.zeros(self.outputs, jnp.float32), axes=tuple(axes[inputs:]))

    def __call__(self, x_NxI: jax.Array) -> jax.Array:
        kernel_IxO = self.kernel[...].astype(self.dtype).reshape(x_NxI.shape[1], -1)
        y_NxO = times(x_NxI, kernel_IxO)
        if self.has_bias:
            y_NxO = y_NxO + self.bias[...].astype(self.dtype).reshape(-1)
        return y_NxO.reshape(-1, *self.outputs)


class Embed(nnx.Module):
    """Token embedding [V, d]."""

    def __init__(self, rngs: nnx.Rngs, spec: DecoderSpec, std: float):
        self.dtype = jnp.dtype(spec.compute_dtype)
        self.embedding = normal(rngs, (spec.vocab_size, spec.width), ("vocab", "embed"), std)

    def __call__(self, tokens_N: jax.Array) -> jax.Array:
        # "fill" turns an id beyond the vocabulary into NaN; the default of indexing would read the last row in silence.
        table_VxD = gathered(self.embedding[...], ("vocab", "embed"))
        return jnp.take(table_VxD, tokens_N, axis=0, mode="fill").astype(self.dtype)


class Head(nnx.Module):
    """Output matrix [d, V]; it holds the parameter only, the objective multiplies by it in chunks."""

    def __init__(self, rngs: nnx.Rngs, spec: DecoderSpec, std: float):
        self.kernel = normal(rngs, (spec.width, spec.vocab_size), ("embed", "vocab"), std)
