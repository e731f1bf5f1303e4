"""AdamW (Loshchilov and Hutter, 1711.05101) without a learning rate: the trainer multiplies in the plan's, by step."""

from __future__ import annotations

from typing import Any

import jax
import optax


def adamw(spec: Any) -> optax.GradientTransformation:
    """Clip by global norm, Adam moments, decoupled weight decay; the update still has to be scaled by `-lr`.

    Args:
      spec: `cpt.config.OptimizerSpec`.
    """
    clip = optax.clip_by_global_norm(spec.clip) if spec.clip else optax.identity()
    return optax.chain(
        clip,
        optax.scale_by_adam(b1=spec.b1, b2=spec.b2, eps=spec.eps),
        optax.add_decayed_weights(spec.weight_decay, mask=_decayed),
    )


def _decayed(params: Any) -> Any:
    """Biases and norm scales are not decayed (GPT-NeoX); their leaves are called `bias` and `scale`."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key not in ("bias", "scale"), params)
