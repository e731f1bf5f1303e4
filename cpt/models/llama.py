"""Llama and what descends from it: RMS norms, SwiGLU, shared keys and values, rotary positions on whole heads.

Touvron et al. 2023 (arXiv 2302.13971, 2307.09288). By the options of `LlamaSpec` it is also Llama 3, Mistral, Qwen 2 to
3, SmolLM and OLMo 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from cpt.models.attention import attend, rotate
from cpt.models.cache import Recall
from cpt.models.decoder import Decoder
from cpt.models.layers import Axes, Linear
from cpt.models.lean import rms_norm, swiglu
from cpt.models.llama_spec import LlamaSpec


class RMSNorm(nnx.Module):
    """`x / rms(x) * scale` over the last axes, those of `shape`, in float32, returned in the compute dtype."""

    def __init__(self, spec: LlamaSpec, shape: Sequence[int], axes: Axes):
        self.eps, self.dtype = spec.norm_eps, jnp.dtype(spec.compute_dtype)
        self.scale = nnx.Param(jnp.ones(shape, jnp.float32), axes=tuple(axes))

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.scale[...], self.eps, self.dtype)


class Attention(nnx.Module):
    """Causal self-attention whose keys and values are shared by groups of query heads.

    Keys and values have a logical name for their heads of their own: there are fewer of them, so that a mesh may be
    able to split the query heads and not these.
    """

    def __init__(self, rngs: nnx.Rngs, spec: LlamaSpec, std_in: float, std_out: float):
        d, head_dim = spec.width, spec.head_dim

        def inward(heads: int, name: str) -> Linear:
            shape, axes = (d, heads, head_dim), ("embed", name, "head_dim")
            return Linear(rngs, shape, axes, std_in, spec.compute_dtype, bias=spec.bias != "none")

        def norm(heads: int, name: str) -> RMSNorm:
            whole = spec.qk_norm == "width"
            shape, axes = ((heads, head_dim), (name, "head_dim")) if whole else ((head_dim,), ("head_dim",))
            return RMSNorm(spec, shape, axes)

        self.q, self.k, self.v = (inward(n, name) for n, name in _heads(spec))
        self.normed = spec.qk_norm != "none"
        if self.normed:
            self.norm_q, self.norm_k = (norm(n, name) for n, name in _heads(spec)[:2])
        shape, axes = (spec.heads, head_dim, d), ("heads", "head_dim", "embed")
        self.out = Linear(rngs, shape, axes, std_out, spec.compute_dtype, inputs=2, bias=spec.bias == "attention")

    def __call__(
        self, x_NxD: jax.Array, rotary: tuple, batch: int, segments_BxL: jax.Array | None, recall: Recall = attend
    ) -> jax.Array:
        q, k, v = (checkpoint_name(project(x_NxD), "qkv") for project in (self.q, self.k, self.v))
        if self.normed:
            q, k = self.norm_q(q), self.norm_k(k)
        q, k, v = (t.reshape(batch, -1, *t.shape[1:]).transpose(0, 2, 1, 3) for t in (q, k, v))
        mixed_BxHxLxK = recall(rotate(q, *rotary), rotate(k, *rotary), v, segments_BxL)
        return self.out(mixed_BxHxLxK.transpose(0, 2, 1, 3).reshape(len(x_NxD), -1))


def _heads(spec: LlamaSpec) -> list[tuple[int, str]]:
    """Number and logical name of the heads of queries, keys and values."""
    return [(spec.heads, "heads"), (spec.kv_heads, "kv_heads"), (spec.kv_heads, "kv_heads")]


class MLP(nnx.Module):
    """`(silu(x W_gate) * x W_up) W_down` (SwiGLU: Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, rngs: nnx.Rngs, spec: LlamaSpec, std_in: float, std_out: float):
        inward, outward = (spec.width, spec.ff), (spec.ff, spec.width)
        axes, dtype = ("embed", "mlp"), spec.compute_dtype
        self.gate = Linear(rngs, inward, axes, std_in, dtype, bias=False)
        self.up = Linear(rngs, inward, axes, std_in, dtype, bias=False)
        self.down = Linear(rngs, outward, axes[::-1], std_out, dtype, bias=False)

    def __call__(self, x_NxD: jax.Array) -> jax.Array:
        return self.down(swiglu(*(checkpoint_name(project(x_NxD), "inner") for project in (self.gate, self.up))))


class Block(nnx.Module):
    """Attention, then MLP, each added to the residual stream and each with a norm before or after it."""

    def __init__(self, rngs: nnx.Rngs, spec: LlamaSpec, std_in: float, std_out: float):
        self.before = spec.norm_placement == "before"
        self.ln_attn, self.ln_mlp = (RMSNorm(spec, (spec.width,), ("embed",)) for _ in range(2))
        self.attention = Attention(rngs, spec, std_in, std_out)
        self.mlp = MLP(rngs, spec, std_in, std_out)

    def attention_input(self, x_NxD: jax.Array) -> jax.Array:
        """What queries, keys and values are projections of."""
        return self.ln_attn(x_NxD) if self.before else x_NxD

    def __call__(
        self, x_NxD: jax.Array, rotary: tuple, batch: int, segments_BxL: jax.Array | None, recall: Recall = attend
    ) -> jax.Array:
        attended = self.attention(self.attention_input(x_NxD), rotary, batch, segments_BxL, recall)
        x_NxD = x_NxD + (attended if self.before else self.ln_attn(attended))
        return x_NxD + (self.mlp(self.ln_mlp(x_NxD)) if self.before else self.ln_mlp(self.mlp(x_NxD)))


class llama(Decoder):
    """The whole decoder. Its name is that of its file, by which the registry finds it."""

    def __init__(self, spec: LlamaSpec, rngs: nnx.Rngs):
        super().__init__(spec, rngs, Block, lambda spec: RMSNorm(spec, (spec.width,), ("embed",)))

    @staticmethod
    def attention_kernels(params: dict[str, Any]) -> list[jax.Array]:
        """The projections to queries, keys and values of each block, side by side and flat."""
        blocks = [params["layers"][str(i)]["attention"] for i in range(len(params["layers"]))]
        kernels = [[block[name]["kernel"] for name in ("q", "k", "v")] for block in blocks]
        return [jnp.concatenate([w.reshape(len(w), -1) for w in three], axis=1) for three in kernels]
