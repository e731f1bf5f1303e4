"""What happens to the optimizer state when a phase begins.

Resetting it is part of the re-warming recipe of 2403.08763; continued runs of others keep it. Both are one config line,
and the choice is logged.
"""

from __future__ import annotations

from typing import Any

import jax
import optax


def apply_policy(policy: str, tx: optax.GradientTransformation, params: Any, opt_state: Any) -> Any:
    """The optimizer state that a phase with this policy starts from.

    Args:
      policy: see `cpt.config.PolicySpec`. `keep` and `lr0_warm` change nothing here (the plan holds the rate at 0).
      tx: the optimizer, for its initial state.
      params: parameters, for their shapes.
      opt_state: state at the end of the phase before.
    """
    if policy in ("keep", "lr0_warm"):
        return opt_state
    fresh = tx.init(params)
    if policy == "reset":
        return fresh
    # Scalars count updates (or are a product over them, where beta2 varies); everything else is a moment.
    reset_count = policy == "reset_count"
    return jax.tree.map(lambda old, new: new if (old.ndim == 0) == reset_count else old, opt_state, fresh)
