"""What decoders of all families share: embedding, blocks on a residual stream, a final norm, and perhaps a head.

A family is its block and its norm. What goes through the blocks, and how, is the same for all of them, and is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from cpt.models._spec import DecoderSpec, is_scanned
from cpt.models.attention import rotary_table
from cpt.models.cache import Cache
from cpt.models.layers import Embed, Head, deviations
from cpt.models.layout import by_token
from cpt.models.recomputing import recomputing

Run = Callable[[tuple[nnx.GraphDef, nnx.State], jax.Array], jax.Array]


class Decoder(nnx.Module):
    """Tokens [B, L] to hidden states [B, L, d] after the final norm.

    A block is called with the stream [B * L, d], the rotary table, B, the segments [B, L] or None, and optionally a
    `Recall`; its `attention_input` gives what the projections of its attention multiply.

    Args:
      spec: its hyper-parameters.
      block: `(rngs, spec, std_in, std_out) -> nnx.Module`.
      norm: `(spec) -> nnx.Module`, of the stream after the last block.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        rngs: nnx.Rngs,
        block: Callable[[nnx.Rngs, Any, float, float], nnx.Module],
        norm: Callable[[Any], nnx.Module],
    ):
        std_in, std_out = deviations(spec)
        self.spec = spec
        self.embed = Embed(rngs, spec, std_in)
        # Keys are strings: a pure dict with integer keys does not survive a checkpoint as it was.
        self.layers = nnx.Dict({str(i): block(rngs, spec, std_in, std_out) for i in range(spec.layers)})
        self.ln_final = norm(spec)
        if not spec.tied:
            self.head = Head(rngs, spec, std_in)

    def __call__(self, tokens_BxL: jax.Array, segments_BxL: jax.Array | None = None) -> jax.Array:
        if is_scanned(self.spec):
            x_NxD = self._scanned(tokens_BxL, segments_BxL)
        else:
            *_, x_NxD = self.stream(tokens_BxL, segments_BxL)
        return self.ln_final(x_NxD).reshape(*tokens_BxL.shape, -1)

    def decode(self, tokens_BxT: jax.Array, cache: Cache) -> jax.Array:
        """Hidden states [B, T, d] of the tokens that follow those in `cache`, which then holds them as well."""
        batch, x_NxD = len(tokens_BxT), by_token(self.embed(tokens_BxT.reshape(-1)))
        rotary = cache.turns(self._rotary(cache.capacity), tokens_BxT.shape[1])
        for i in range(self.spec.layers):
            x_NxD = by_token(self.layers[str(i)](x_NxD, rotary, batch, None, cache.recall(i)))
        return self.ln_final(x_NxD).reshape(*tokens_BxT.shape, -1)

    def attention_inputs(self, tokens_BxL: jax.Array, segments_BxL: jax.Array | None = None) -> list[jax.Array]:
        """What the projections of attention of each block multiply: its input, after the norm if that comes before,
        [B, L, d]."""
        streams = zip(range(self.spec.layers), self.stream(tokens_BxL, segments_BxL), strict=False)
        return [self.layers[str(i)].attention_input(x_NxD).reshape(*tokens_BxL.shape, -1) for i, x_NxD in streams]

    def stream(self, tokens_BxL: jax.Array, segments_BxL: jax.Array | None) -> Iterator[jax.Array]:
        """The residual stream [B * L, d] before each block, and after the last one."""
        x_NxD, run = self._begin(tokens_BxL, segments_BxL)
        for i in range(self.spec.layers):
            yield x_NxD
            x_NxD = run(nnx.split(self.layers[str(i)]), x_NxD)
        yield x_NxD

    def _scanned(self, tokens_BxL: jax.Array, segments_BxL: jax.Array | None) -> jax.Array:
        """The last of `stream`, by a program that holds one block; its parameters are laid behind each other for it."""
        x_NxD, run = self._begin(tokens_BxL, segments_BxL)
        graphs, states = zip(*(nnx.split(self.layers[str(i)]) for i in range(self.spec.layers)), strict=True)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        return jax.lax.scan(lambda x_NxD, state: (run((graphs[0], state), x_NxD), None), x_NxD, stacked)[0]

    def _begin(self, tokens_BxL: jax.Array, segments_BxL: jax.Array | None) -> tuple[jax.Array, Run]:
        """The embedded tokens, and what takes the stream through a block that was split into graph and state."""
        batch, length = tokens_BxL.shape
        rotary = self._rotary(length)

        def run(graph: nnx.GraphDef, state: nnx.State, x_NxD: jax.Array) -> jax.Array:
            x_NxD = checkpoint_name(x_NxD, "block_input")
            return by_token(nnx.merge(graph, state)(x_NxD, rotary, batch, segments_BxL))

        run = recomputing(self.spec.remat, run)
        return by_token(self.embed(tokens_BxL.reshape(-1))), lambda block, x_NxD: run(*block, x_NxD)

    def _rotary(self, length: int) -> tuple[jax.Array, jax.Array]:
        return rotary_table(length, self.spec.rotary_dim, self.spec.rotary_base, self.spec.rope)
