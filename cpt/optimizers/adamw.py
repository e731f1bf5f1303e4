"""AdamW (Loshchilov and Hutter, 1711.05101) without a learning rate: the trainer multiplies in the plan's, by step."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cpt.optimizers.clipping import clip_by_global_norm


def adamw(spec: Any, varies: bool = False) -> optax.GradientTransformation:
    """Clip by global norm, Adam moments, decoupled weight decay; the update still has to be scaled by `-lr`.

    Args:
      spec: `cpt.config.OptimizerSpec`.
      varies: `update` is given `b2` and `weight_decay` at each step, in place of those of `spec`.
    """
    clip = clip_by_global_norm(spec.clip) if spec.clip else optax.identity()
    if varies:
        return optax.chain(clip, scale_by_varying_adam(spec.b1, spec.eps), add_varying_decay())
    return optax.chain(
        clip,
        optax.scale_by_adam(b1=spec.b1, b2=spec.b2, eps=spec.eps),
        optax.add_decayed_weights(spec.weight_decay, mask=_decayed),
    )


class VaryingAdamState(NamedTuple):
    """Moments, the count of updates, and the product of every beta2 so far: what the second moment still lacks."""

    count: jax.Array
    mu: Any
    nu: Any
    b2_product: jax.Array


def scale_by_varying_adam(b1: float, eps: float) -> optax.GradientTransformationExtraArgs:
    """Adam whose beta2 is an argument of `update`; with a constant one it is `optax.scale_by_adam`.

    The second moment is divided by `1 - prod_i beta2_i`, the weight of the gradients in it. The usual `1 - beta2**t`
    would, after a rise from .95 to .999 at step 1000, halve updates whose second moment needs no correction at all.
    """

    def init(params: Any) -> VaryingAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return VaryingAdamState(jnp.zeros([], jnp.int32), zeros, zeros, jnp.ones([], jnp.float32))

    def update(updates: Any, state: VaryingAdamState, params: Any = None, *, b2: jax.Array, **_: Any):
        count = optax.safe_increment(state.count)
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, updates)
        product = state.b2_product * b2
        scale = 1 - b1 ** count.astype(jnp.float32)
        out = jax.tree.map(lambda m, v: (m / scale) / (jnp.sqrt(v / (1 - product)) + eps), mu, nu)
        return out, VaryingAdamState(count, mu, nu, product)

    return optax.GradientTransformationExtraArgs(init, update)


def add_varying_decay() -> optax.GradientTransformationExtraArgs:
    """Decoupled weight decay whose strength is an argument of `update`."""

    def update(updates: Any, state: Any, params: Any = None, *, weight_decay: jax.Array, **_: Any):
        decays = _decayed(params)
        return jax.tree.map(lambda u, p, d: u + weight_decay * p if d else u, updates, params, decays), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def _decayed(params: Any) -> Any:
    """Biases and norm scales are not decayed (GPT-NeoX); their leaves are called `bias` and `scale`."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key not in ("bias", "scale"), params)
