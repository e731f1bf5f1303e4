"""Small models of both families with made-up parameters, for the tests of initialisers."""

import functools
from dataclasses import replace

import jax
import numpy as np

from cpt.models import base
from cpt.models.spec import LlamaSpec, ModelSpec

SIZES = dict(layers=2, width=32, heads=4, vocab_size=61, context=32)
NEOX = ModelSpec(**SIZES)
LLAMA = LlamaSpec(**SIZES, kv_heads=2, ff=48)
SPECS = {
    "neox": NEOX,
    "neox sequential": replace(NEOX, parallel_residual=False, ff=80),
    "llama": LLAMA,
    "tied, one key": replace(LLAMA, tied=True, kv_heads=1, bias="attention"),
    "qwen": replace(LLAMA, qk_norm="head", bias="qkv", tied=True, kv_heads=4),
    "olmo 2": replace(LLAMA, qk_norm="width", norm_placement="after", kv_heads=4),
}
TOKENS = np.random.default_rng(0).integers(0, 61, (2, 24))


def made_up(spec, seed=0):
    """Parameters without a zero, a one or two equal rows: whatever is forgotten or swapped shows."""
    noise = np.random.default_rng(seed)

    def one(path, leaf):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return (centre + 0.15 * noise.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(one, base.build(spec).abstract())


def quick(function, abstract):
    """A function of parameters, compiled in a third of the time: each of these is run once."""
    return jax.jit(function).lower(abstract).compile(compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def _compiled(spec):
    model = base.build(spec)
    return quick(lambda tree: model.apply(tree, TOKENS) @ model.head(tree), model.abstract())


def logits(spec, params):
    return np.asarray(_compiled(spec)(params))
