"""A model as the rest of the framework sees it: parameters are a nested dict of arrays, `apply` is a pure function.

Architectures are written in Flax NNX, but no NNX object ever crosses `jax.jit`: its objects are split and merged while
JAX traces, so a compiled step pays nothing for them (a call through `nnx.jit` costs the host 10 to 25 times as much).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from cpt.errors import ConfigError
from cpt.models import attention, layout
from cpt.models._spec import is_scanned
from cpt.models.cache import Cache
from cpt.models.spec import DecoderSpec
from cpt.registry import find

Params = dict[str, Any]
"""Nested dict[str, ...] of float32 arrays, e.g. params["layers"]["0"]["attention"]["qkv"]["kernel"]."""


@dataclass(frozen=True)
class Model:
    """A decoder without its parameters. Hashable, so it can be a static argument of `jax.jit`.

    Attributes:
      spec: its hyper-parameters.
      family: `(spec, rngs) -> nnx.Module`; the module maps (tokens_BxL, segments_BxL) to hidden_BxLxD, holds the output
        matrix as `head.kernel` unless it is tied, and gives every parameter a metadata field `axes`.
      mesh: devices that activations are spread over; None leaves that to the partitioner.
    """

    spec: DecoderSpec
    family: Callable[[DecoderSpec, nnx.Rngs], nnx.Module]
    mesh: Mesh | None = None

    def on(self, mesh: Mesh) -> Model:
        """This model with its activations spread over `mesh` (`cpt.models.layout`)."""
        return replace(self, mesh=mesh)

    def init(self, key: jax.Array) -> Params:
        """Fresh float32 parameters. For a sharded model: `jax.jit(model.init, out_shardings=...)(key)`."""
        return nnx.to_pure_dict(nnx.state(self.family(self.spec, nnx.Rngs(params=key)), nnx.Param))

    def apply(self, params: Params, tokens_BxL: jax.Array, segments_BxL: jax.Array | None = None) -> jax.Array:
        """Hidden states after the final norm, in the compute dtype.

        Args:
          params: as from `init`.
          tokens_BxL: int ids in [0, vocab_size); any other id makes its row NaN.
          segments_BxL: int document ids of packed rows; a token sees only earlier tokens of its own segment.

        Returns:
          hidden_BxLxD.

        Raises:
          ConfigError: the rows are longer than `spec.context`.
        """
        if is_scanned(self.spec):  # layers are copied behind each other, and half as much is copied then
            params = self.narrow(params)
        with layout.over(self.mesh), attention.using(self.spec.attention):
            return self._bound(params, tokens_BxL)(tokens_BxL, segments_BxL)

    def decode(self, params: Params, tokens_BxT: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Hidden states of the next tokens of rows whose earlier ones are in `cache`; as `apply`.

        Only of families whose module has a method of this name. `used_B` is left as it is: how many of the tokens are
        no padding, the caller knows.

        Returns:
          hidden_BxTxD, and the cache with these tokens in it.
        """
        with layout.over(self.mesh):
            return self._bound(params, tokens_BxT).decode(tokens_BxT, cache), cache

    def attention_inputs(
        self, params: Params, tokens_BxL: jax.Array, segments_BxL: jax.Array | None = None
    ) -> list[jax.Array]:
        """What each block's in-projection of attention multiplies, [B, L, D] in the compute dtype; as `apply`.

        Only of families whose module has a method of this name.
        """
        with layout.over(self.mesh), attention.using(self.spec.attention):
            return self._bound(params, tokens_BxL).attention_inputs(tokens_BxL, segments_BxL)

    def attention_kernels(self, params: Params) -> list[jax.Array]:
        """The in-projection of attention of each block, [D, outputs] float32: it multiplies `attention_inputs`.

        Only of families that have a function of this name.
        """
        return self.family.attention_kernels(params)

    def head(self, params: Params) -> jax.Array:
        """The output matrix [D, V], float32: `logits = hidden @ head`; of a tied model the embedding, transposed."""
        return params["embed"]["embedding"].T if self.spec.tied else params["head"]["kernel"]

    def narrow(self, params: Params, embedding: bool = False) -> Params:
        """`params` with the matrices of products in the compute dtype, as every product would cast them.

        The results of `apply` are the same. For what reads parameters many times: micro-batches, layers in a loop.

        Args:
          embedding: embedding and output head as well; not for training, which adds up their gradients in float32.
        """
        dtype = jnp.dtype(self.spec.compute_dtype)
        is_factor = nnx.to_pure_dict(self._skeleton[1], extract_fn=lambda v: v.get_metadata().get("factor", False))
        for name in ("embed", "head"):
            if embedding and name in is_factor:
                is_factor[name] = jax.tree.map(lambda _: True, is_factor[name])
        return jax.tree.map(lambda leaf, factor: leaf.astype(dtype) if factor else leaf, params, is_factor)

    def logical_axes(self) -> dict[str, Any]:
        """The tree of `init` with a tuple of logical names per parameter, one name or None per dimension.

        Names: "vocab", "embed", "heads", "kv_heads", "head_dim", "mlp". Tuples are leaves here: map over this tree with
        `is_leaf=lambda x: isinstance(x, tuple)`, or with the tree of `abstract` first.
        """
        return nnx.to_pure_dict(self._skeleton[1], extract_fn=lambda variable: variable.get_metadata()["axes"])

    def abstract(self) -> dict[str, Any]:
        """The tree of `init` as `jax.ShapeDtypeStruct`s; allocates nothing."""
        return nnx.to_pure_dict(self._skeleton[1])

    def _bound(self, params: Params, tokens_BxL: jax.Array) -> nnx.Module:
        """The module with `params` in it, for rows like these."""
        length = tokens_BxL.shape[1]
        if length > self.spec.context:
            raise ConfigError(
                f"model.context: rows of {length} tokens do not fit in {self.spec.context}; raise model.context or "
                "shorten the rows"
            )
        graphdef, abstract = self._skeleton
        state = jax.tree.map(lambda leaf: leaf, abstract)  # a copy: the next line writes into it
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graphdef, state)

    @cached_property
    def _skeleton(self) -> tuple[nnx.GraphDef, nnx.State]:
        return nnx.split(nnx.eval_shape(lambda: self.family(self.spec, nnx.Rngs(params=jax.random.key(0)))), nnx.Param)


def build(spec: DecoderSpec) -> Model:
    """The model that `spec` describes: its family is the class of that name in the file of that name.

    Raises:
      ConfigError: there is no such family.
    """
    return Model(spec, find("cpt.models", spec.family, "model.family"))
