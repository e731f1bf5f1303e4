"""Deeper by blocks that add nothing at first: block expansion (LLaMA-Pro, 2401.02415)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cpt.errors import ConfigError
from cpt.models.initialisers._base import Leaf, Source, check_same, read, whole
from cpt.models.initialisers._depth import Block, stacked
from cpt.models.spec import DecoderSpec


def llama_pro(source: Source, target: DecoderSpec, options: Mapping[str, Any]) -> Leaf:
    """Block expansion (Wu et al. 2024, arXiv 2401.02415): after each group of M blocks, P copies of its last P.

    The copies end in zeros (output projections of attention and MLP; the scales of norms that come after them), so they
    add nothing. Kept exactly: the logits of every input, bit for bit. The paper then trains the copies only. M follows
    from the layers of the two models.

    Options: `copies` (1), P.

    Raises:
      ConfigError: the new blocks do not make groups of equal size, another field differs, an option is wrong.
    """
    copies = whole(read(options, "llama_pro", copies=1), "copies", least=1)
    check_same(source.spec, target, "llama_pro", "layers")
    layers, more = source.spec.layers, target.layers - source.spec.layers
    if more <= 0 or more % copies or layers % (more // copies) or layers // (more // copies) < copies:
        raise ConfigError(
            f"model.layers: {target.layers} are not the source's {layers} with {copies} more after each of some groups "
            f"of equal size; {layers} + {copies} n works for an n that divides {layers}"
        )
    size = layers // (more // copies)
    blocks = [
        block
        for end in range(size, layers + 1, size)
        for block in (
            *(Block((i,)) for i in range(end - size, end)),
            *(Block((i,), "zero") for i in range(end - copies, end)),
        )
    ]
    return stacked(source, source.axes, target, blocks)
