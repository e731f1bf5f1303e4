"""Drawn anew, each block's matrices smaller than those of the block before: layer index rescaling (2503.17500)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cpt.models.initialisers._base import Keys, Leaf, Source, layer_of, number, of_scratch, read
from cpt.models.initialisers._drawn import drawn
from cpt.models.spec import DecoderSpec


@of_scratch
def lir(source: Source, target: DecoderSpec, options: Mapping[str, Any]) -> Leaf:
    """Layer index rescaling (arXiv 2503.17500): kernels of block l, from 1, N(0, sigma^2 / l).

    Embedding and head have std sigma. Output projections have no further factor.

    Options: `std` (0.02), sigma; the paper has 0.006 for Llama and 0.02 for GPT-2.

    Raises:
      ConfigError: an option is wrong.
    """
    sigma = number(read(options, "lir", std=0.02), "std")

    def std(path: Keys) -> float:
        i = layer_of(path)
        return sigma if i is None else sigma / math.sqrt(i + 1)

    return drawn(source, target, "lir", std)
