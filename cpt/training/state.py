"""What a run holds on its devices. With the step, this is all of its mutable state."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax


class State(NamedTuple):
    """Attributes:
    params: nested dict of float32 arrays.
    opt_state: optax state; holds no schedule.
    """

    params: Any
    opt_state: Any


class Sums(NamedTuple):
    """What one update reports; sums over its batch, so that they can be added to others.

    Attributes:
      nats_K: summed loss of each column's tokens, before the update.
      tokens_K: int32 tokens of each column.
      objective: what was minimised (weighted mean, nats per token).
      grad_norm: global norm before clipping.
      finite: whether objective and gradient are; if not, the update was not applied.
      spike: whether they are above the limits that were given; then it was not applied either.
      asked: the largest of what each process asked of all (`cpt.training.requests`); None in a process alone.
    """

    nats_K: jax.Array
    tokens_K: jax.Array
    objective: jax.Array
    grad_norm: jax.Array
    finite: jax.Array
    spike: jax.Array
    asked: jax.Array | None = None
