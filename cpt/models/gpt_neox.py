"""GPT-NeoX, the architecture of Pythia: rotary positions on a share of each head, parallel residual, untied head.

Black et al. 2022 (arXiv 2204.06745); Biderman et al. 2023 (arXiv 2304.01373).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from cpt.models.attention import attend, rotate
from cpt.models.cache import Recall
from cpt.models.decoder import Decoder
from cpt.models.layers import Linear
from cpt.models.lean import gelu, layer_norm
from cpt.models.spec import ModelSpec


class LayerNorm(nnx.Module):
    """Layer norm over the last axis with scale and bias, in float32, returned in the compute dtype."""

    def __init__(self, spec: ModelSpec):
        self.eps, self.dtype = spec.norm_eps, jnp.dtype(spec.compute_dtype)
        self.scale = nnx.Param(jnp.ones(spec.width, jnp.float32), axes=("embed",))
        self.bias = nnx.Param(jnp.zeros(spec.width, jnp.float32), axes=("embed",))

    def __call__(self, x_NxD: jax.Array) -> jax.Array:
        return layer_norm(x_NxD, self.scale[...], self.bias[...], self.eps, self.dtype)


class Attention(nnx.Module):
    """Multi-head causal self-attention with one fused projection for queries, keys and values.

    Heads are the outer dimension of the projection, [d, heads, 3, head_dim]: split over heads it stays split when it is
    flattened for the product, and it is the row order of Hugging Face's `query_key_value`.
    """

    def __init__(self, rngs: nnx.Rngs, spec: ModelSpec, std_in: float, std_out: float):
        d, heads, head_dim, dtype = spec.width, spec.heads, spec.head_dim, spec.compute_dtype
        self.qkv = Linear(rngs, (d, heads, 3, head_dim), ("embed", "heads", None, "head_dim"), std_in, dtype)
        self.out = Linear(rngs, (heads, head_dim, d), ("heads", "head_dim", "embed"), std_out, dtype, inputs=2)

    def __call__(
        self, x_NxD: jax.Array, rotary: tuple, batch: int, segments_BxL: jax.Array | None, recall: Recall = attend
    ) -> jax.Array:
        qkv_NxHx3xK = checkpoint_name(self.qkv(x_NxD), "qkv")
        qkv_BxLxHx3xK = qkv_NxHx3xK.reshape(batch, -1, *qkv_NxHx3xK.shape[1:])
        # Split, not unpacked: the gradient of that is a concatenation, and not a sum of three padded arrays.
        q, k, v = (jnp.squeeze(t, 3).transpose(0, 2, 1, 3) for t in jnp.split(qkv_BxLxHx3xK, 3, axis=3))
        mixed_BxHxLxK = recall(rotate(q, *rotary), rotate(k, *rotary), v, segments_BxL)
        return self.out(mixed_BxHxLxK.transpose(0, 2, 1, 3).reshape(x_NxD.shape))


class MLP(nnx.Module):
    """`gelu(x W_up) W_down`."""

    def __init__(self, rngs: nnx.Rngs, spec: ModelSpec, std_in: float, std_out: float):
        self.tanh = spec.gelu == "tanh"
        self.up = Linear(rngs, (spec.width, spec.ff_dim), ("embed", "mlp"), std_in, spec.compute_dtype)
        self.down = Linear(rngs, (spec.ff_dim, spec.width), ("mlp", "embed"), std_out, spec.compute_dtype)

    def __call__(self, x_NxD: jax.Array) -> jax.Array:
        return self.down(gelu(checkpoint_name(self.up(x_NxD), "inner"), self.tanh))


class Block(nnx.Module):
    """Attention and MLP around the residual stream, each with its own norm."""

    def __init__(self, rngs: nnx.Rngs, spec: ModelSpec, std_in: float, std_out: float):
        self.parallel = spec.parallel_residual
        self.ln_attn, self.ln_mlp = LayerNorm(spec), LayerNorm(spec)
        self.attention = Attention(rngs, spec, std_in, std_out)
        self.mlp = MLP(rngs, spec, std_in, std_out)

    def attention_input(self, x_NxD: jax.Array) -> jax.Array:
        """What queries, keys and values are projections of."""
        return self.ln_attn(x_NxD)

    def __call__(
        self, x_NxD: jax.Array, rotary: tuple, batch: int, segments_BxL: jax.Array | None, recall: Recall = attend
    ) -> jax.Array:
        attended = self.attention(self.attention_input(x_NxD), rotary, batch, segments_BxL, recall)
        if self.parallel:
            return x_NxD + attended + self.mlp(self.ln_mlp(x_NxD))
        x_NxD = x_NxD + attended
        return x_NxD + self.mlp(self.ln_mlp(x_NxD))


class gpt_neox(Decoder):
    """The whole decoder. Its name is that of its file, by which the registry finds it."""

    def __init__(self, spec: ModelSpec, rngs: nnx.Rngs):
        super().__init__(spec, rngs, Block, LayerNorm)

    @staticmethod
    def attention_kernels(params: dict[str, Any]) -> list[jax.Array]:
        """The fused projection of each block, flat, [d, 3 d]."""
        kernels = [params["layers"][str(i)]["attention"]["qkv"]["kernel"] for i in range(len(params["layers"]))]
        return [kernel.reshape(len(kernel), -1) for kernel in kernels]
