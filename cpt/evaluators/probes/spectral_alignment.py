"""Early warning of a loss explosion: the inputs of a layer gather on one side of its strongest direction."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from cpt.errors import ConfigError
from cpt.evaluators.probes._base import Probe, ProbeContext
from cpt.evaluators.probes._rows import Positions, count, end_of_document, rows_per_pass
from cpt.models.base import Params


def spectral_alignment(context: ProbeContext) -> Probe:
    """Sign concentration of the cosine between a layer's inputs and the top singular vector of its weights.

    After Qiu et al. 2025 (arXiv 2510.04202): while training is healthy, the inputs x of a weight matrix lie on both
    sides of the direction v that it amplifies most; before a loss explodes, cos(x, v) loses its diversity of signs,
    and then each update can make the largest singular value grow. Here W is a block's projection of queries, keys and
    values, x its input after the norm, and the concentration of the block is `|mean sign cos(x, v)|`: 0 for half of
    the inputs on either side, 1 for all on one, about `1 / sqrt(N)` by chance. The paper looks at distributions; this
    number and its threshold are a choice made here. In small models single blocks reach 1 while all is well, where
    the mean stays near 0.7; it passes 0.9 when the learning rate is several times too large.

    Options:
      set: evaluation set whose rows are read; the first by default.
      tokens: positions N, 1024.
      iterations: of the power method, from a fixed start; 32.
      threshold: of `concentration` for a warning; 0.9.

    Values: `concentration`, mean over blocks; `concentration_max`; `warning`, 1 or 0.

    Raises:
      ConfigError: no such set, an option out of range, or a model family that does not tell the inputs of its blocks.
    """
    options = context.read(set=None, tokens=1024, iterations=32, threshold=0.9)
    where, model = f"{context.where}.options", context.model
    tokens_RxL = context.windows_of(options["set"])[:, :-1]
    iterations = count(options["iterations"], f"{where}.iterations")
    threshold = options["threshold"]
    if not isinstance(threshold, float) or not 0 < threshold < 1:
        raise ConfigError(f"{where}.threshold: {threshold!r} must be a number between 0 and 1")
    positions = Positions(
        tokens_RxL, count(options["tokens"], f"{where}.tokens"), rows_per_pass(context), end_of_document(context)
    )
    if not hasattr(model.family, "attention_inputs"):
        raise ConfigError(f"{context.where}: model.family '{model.spec.family}' does not tell the inputs of its blocks")

    @jax.jit
    def measured(params: Params, placed: dict[str, jax.Array]) -> dict[str, jax.Array]:
        inputs = positions.gather(lambda tokens, segments: model.attention_inputs(params, tokens, segments), placed)
        pairs = zip(inputs, model.attention_kernels(params), strict=True)
        of_block = jnp.stack([concentration(x, w, iterations) for x, w in pairs])
        mean = of_block.mean()
        warning = jnp.where(jnp.isnan(mean), jnp.nan, (mean > threshold).astype(jnp.float32))
        return {"concentration": mean, "concentration_max": of_block.max(), "warning": warning}

    return lambda params, step: measured(params, positions.put(params))


def concentration(inputs_NxD: jax.Array, kernel_DxO: jax.Array, iterations: int = 32) -> jax.Array:
    """`|mean_n sign(cos(x_n, v))|` with v the top right singular vector of the map `x -> x W`; NaN if an input is."""
    projected_N = inputs_NxD @ top_direction(kernel_DxO, iterations)
    return jnp.abs(jnp.sign(projected_N).mean())


def top_direction(kernel_DxO: jax.Array, iterations: int) -> jax.Array:
    """The input direction [D] that `x -> x W` amplifies most, of length 1, by power iteration on `W W^T`.

    The start is fixed. The error falls as `(sigma_2 / sigma_1)^(2 iterations)`.
    """
    start_D = np.random.default_rng(0).standard_normal(kernel_DxO.shape[0]).astype(np.float32)

    def improve(_: int, v_D: jax.Array) -> jax.Array:
        v_D = kernel_DxO @ (v_D @ kernel_DxO)
        return v_D / jnp.linalg.norm(v_D)

    return jax.lax.fori_loop(0, iterations, improve, start_D / np.linalg.norm(start_D))
