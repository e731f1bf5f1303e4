"""Keys and values of the tokens that a model has read, so that it reads each of them once.

A model is traced over the tokens that come next with its attention replaced by `Cache.recall`, which looks back at what
is kept and keeps what is new. Grouped heads are kept as few as they are, and keys are kept as they were rotated: their
positions never change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp

from cpt.models.attention import attend, softmax_mix

Recall = Callable[..., jax.Array]
"""`(q, k, v, segments) -> mixed`: attention of one block, as `cpt.models.attention.attend`."""


@jax.tree_util.register_dataclass
@dataclass
class Cache:
    """What B rows have read. An empty one is filled by the first tokens; its lists are changed while JAX traces.

    Attributes:
      keys, values: of each block, [B, kv_heads, capacity, head_dim] in the compute dtype; none before the first tokens.
      used_B: int32, how many tokens of each row are kept; what lies behind them is never looked at.
      capacity: tokens that a row may have.
    """

    keys: list[jax.Array]
    values: list[jax.Array]
    used_B: jax.Array
    capacity: int = field(metadata={"static": True})

    @classmethod
    def empty(cls, rows: int, capacity: int) -> Cache:
        """Before anything is read."""
        return cls([], [], jnp.zeros(rows, jnp.int32), capacity)

    def turns(self, rotary: tuple[jax.Array, jax.Array], length: int) -> tuple[jax.Array, jax.Array]:
        """The rows of a rotary table [capacity, R] for the next `length` tokens, as `rotate` wants them."""
        if not self.keys:
            return tuple(table[:length] for table in rotary)
        return tuple(table.at[self._next(length)].get(mode="clip")[:, None] for table in rotary)

    def recall(self, block: int) -> Recall:
        """The attention of a block. The blocks take their turns in order, each once."""
        return self._begin if block == len(self.keys) else partial(self._go_on, block)

    def _begin(self, q: jax.Array, k: jax.Array, v: jax.Array, segments: None = None) -> jax.Array:
        """The first tokens see each other; those of a shorter row are followed by padding, which it cannot see."""
        room = [(0, 0), (0, 0), (0, self.capacity - k.shape[2]), (0, 0)]
        self.keys.append(jnp.pad(k, room))
        self.values.append(jnp.pad(v, room))
        return attend(q, k, v)

    def _go_on(self, block: int, q: jax.Array, k: jax.Array, v: jax.Array, segments: None = None) -> jax.Array:
        at_BxT = self._next(k.shape[2])
        rows_Bx1 = jnp.arange(len(k))[:, None]
        for kept, new in ((self.keys, k), (self.values, v)):
            # "drop": a row that is done may be read on with the others, beyond its end.
            kept[block] = kept[block].at[rows_Bx1, :, at_BxT].set(new.transpose(0, 2, 1, 3), mode="drop")
        visible_Bx1xTxC = jnp.arange(self.capacity) <= at_BxT[:, None, :, None]
        return softmax_mix(q, self.keys[block], self.values[block], visible_Bx1xTxC)

    def _next(self, length: int) -> jax.Array:
        """Positions of the next tokens, [B, length]."""
        return self.used_B[:, None] + jnp.arange(length)
