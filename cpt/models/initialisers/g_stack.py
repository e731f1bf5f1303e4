"""Deeper by a whole factor: the blocks of a short training, stacked in order (2405.15319)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cpt.models.initialisers._base import Leaf, Source, check_multiples, check_same, read
from cpt.models.initialisers._depth import Block, stacked
from cpt.models.spec import DecoderSpec


def g_stack(source: Source, target: DecoderSpec, options: Mapping[str, Any]) -> Leaf:
    """G_stack (Du et al. 2024, arXiv 2405.15319): blocks 0..L-1, then 0..L-1 again, g times.

    Kept exactly: embedding, final norm and head, and every block; not the function. The paper grows by g = 4 after a
    few billion tokens: `log10 d = 0.88 log10 N + 163.27 / log10 C - 5.74` tokens for a target of N parameters and
    `C = 6 N D` FLOPs.

    Raises:
      ConfigError: the layers are no whole multiple, another field differs.
    """
    read(options, "g_stack")
    check_same(source.spec, target, "g_stack", "layers")
    check_multiples(source.spec, target, "g_stack", "layers")
    blocks = [Block((i % source.spec.layers,)) for i in range(target.layers)]
    return stacked(source, source.axes, target, blocks)
