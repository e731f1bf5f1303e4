"""GPT-NeoX as one writes it in plain Flax: Linen modules, autodiff throughout, a full causal mask, all logits at once.

The shape of nanodo and of most small JAX trainers: `flax.training.TrainState`, optax, one jitted and donated step. It
uses nothing of ours, so that what ours is worth can be seen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState
from safetensors.numpy import load_file

from cpt.bench.facts import peak_memory
from cpt.models import convert


def rope(x_BxLxHxK: jax.Array, rotary: int, base: float) -> jax.Array:
    """Rotates the first `rotary` channels of each head, half against half."""
    angle_LxR = jnp.arange(x_BxLxHxK.shape[1])[:, None] / base ** (jnp.arange(0, rotary, 2) / rotary)
    cos, sin = jnp.cos(angle_LxR)[:, None], jnp.sin(angle_LxR)[:, None]
    first, second, rest = jnp.split(x_BxLxHxK.astype(jnp.float32), [rotary // 2, rotary], axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin, rest]
    return jnp.concatenate(turned, axis=-1).astype(x_BxLxHxK.dtype)


class Block(nn.Module):
    """Attention and MLP in parallel on the residual stream."""

    spec: Any
    dtype: Any

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
        spec, length = self.spec, x_BxLxD.shape[1]
        normed = nn.LayerNorm(spec.norm_eps, dtype=self.dtype, name="ln_attn")(x_BxLxD)
        qkv = nn.DenseGeneral((spec.heads, 3 * spec.head_dim), dtype=self.dtype, name="qkv")(normed)
        q, k, v = jnp.split(qkv, 3, axis=-1)
        q, k = (rope(x, spec.rotary_dim, spec.rotary_base) for x in (q, k))
        logits = jnp.einsum("bqhk,bshk->bhqs", q, k).astype(jnp.float32) / np.sqrt(spec.head_dim)
        mask_LxL = jnp.tril(jnp.ones((length, length), bool))
        weights = jax.nn.softmax(jnp.where(mask_LxL, logits, -1e30), axis=-1).astype(self.dtype)
        mixed = jnp.einsum("bhqs,bshk->bqhk", weights, v)
        attended = nn.DenseGeneral(spec.width, axis=(-2, -1), dtype=self.dtype, name="out")(mixed)
        normed = nn.LayerNorm(spec.norm_eps, dtype=self.dtype, name="ln_mlp")(x_BxLxD)
        inner = nn.gelu(nn.Dense(spec.ff_dim, dtype=self.dtype, name="up")(normed), approximate=spec.gelu == "tanh")
        return x_BxLxD + attended + nn.Dense(spec.width, dtype=self.dtype, name="down")(inner)


class Transformer(nn.Module):
    """Tokens [B, L] to logits [B, L, V]."""

    spec: Any
    dtype: Any

    @nn.compact
    def __call__(self, tokens_BxL: jax.Array) -> jax.Array:
        x_BxLxD = nn.Embed(self.spec.vocab_size, self.spec.width, dtype=self.dtype, name="embed")(tokens_BxL)
        for i in range(self.spec.layers):
            x_BxLxD = Block(self.spec, self.dtype, name=f"block_{i}")(x_BxLxD)
        x_BxLxD = nn.LayerNorm(self.spec.norm_eps, dtype=self.dtype, name="ln_final")(x_BxLxD)
        return nn.Dense(self.spec.vocab_size, use_bias=False, dtype=self.dtype, name="head")(x_BxLxD)


def parameters(folder: str, spec: Any) -> dict[str, Any]:
    """Linen's tree of the tensors in a Hugging Face directory."""
    stored = {k: v for file in sorted(Path(folder).glob("*.safetensors")) for k, v in load_file(file).items()}
    d, heads, head_dim = spec.width, spec.heads, spec.head_dim

    def norm(name: str) -> dict[str, np.ndarray]:
        return {"scale": stored[f"{name}.weight"], "bias": stored[f"{name}.bias"]}

    def dense(name: str, kernel: tuple[int, ...], bias: tuple[int, ...]) -> dict[str, np.ndarray]:
        return {"kernel": stored[f"{name}.weight"].T.reshape(kernel), "bias": stored[f"{name}.bias"].reshape(bias)}

    tree: dict[str, Any] = {
        "embed": {"embedding": stored["gpt_neox.embed_in.weight"]},
        "ln_final": norm("gpt_neox.final_layer_norm"),
        "head": {"kernel": stored["embed_out.weight"].T},
    }
    for i in range(spec.layers):
        at = f"gpt_neox.layers.{i}"
        tree[f"block_{i}"] = {
            "ln_attn": norm(f"{at}.input_layernorm"),
            "ln_mlp": norm(f"{at}.post_attention_layernorm"),
            "qkv": dense(f"{at}.attention.query_key_value", (d, heads, 3 * head_dim), (heads, 3 * head_dim)),
            "out": dense(f"{at}.attention.dense", (heads, head_dim, d), (d,)),
            "up": dense(f"{at}.mlp.dense_h_to_4h", (d, spec.ff_dim), (spec.ff_dim,)),
            "down": dense(f"{at}.mlp.dense_4h_to_h", (spec.ff_dim, d), (d,)),
        }
    return jax.tree.map(jnp.asarray, tree)


class plain_flax:
    """Updates and evaluations on the rows of the setting."""

    def __init__(self, setting: dict[str, Any]):
        spec = convert.read_spec(setting["model"])
        model = Transformer(spec, jnp.dtype(setting["dtype"]))
        tx = optax.chain(
            optax.clip_by_global_norm(setting["clip"]),
            optax.adamw(
                setting["lr"], setting["b1"], setting["b2"], setting["eps"], weight_decay=setting["weight_decay"],
                mask=lambda params: jax.tree.map_with_path(lambda p, _: p[-1].key not in ("bias", "scale"), params),
            ),
        )  # fmt: skip
        self.state = TrainState.create(apply_fn=model.apply, params=parameters(setting["model"], spec), tx=tx)
        self.rows_TxBxM, self.windows_RxM = np.load(setting["rows"]), np.load(setting["evaluation"])
        self.facts = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}

        def loss(params: Any, rows_BxM: jax.Array) -> jax.Array:
            logits_BxLxV = model.apply({"params": params}, rows_BxM[:, :-1]).astype(jnp.float32)
            return optax.softmax_cross_entropy_with_integer_labels(logits_BxLxV, rows_BxM[:, 1:]).mean()

        def train_step(state: TrainState, rows_BxM: jax.Array) -> tuple[TrainState, jax.Array]:
            value, grads = jax.value_and_grad(loss)(state.params, rows_BxM)
            return state.apply_gradients(grads=grads), value

        self._step, self._loss, self._at = jax.jit(train_step, donate_argnums=0), jax.jit(loss), 0

    def step(self, times: int) -> float:
        for _ in range(times):
            self.state, value = self._step(self.state, self.rows_TxBxM[self._at % len(self.rows_TxBxM)])
            self._at += 1
        value = float(value)
        jax.block_until_ready(self.state.params)
        return value

    def evaluate(self, times: int) -> float:
        for _ in range(times):
            value = self._loss(self.state.params, self.windows_RxM)
        return float(value)

    def memory(self) -> int:
        return peak_memory()


make = plain_flax
