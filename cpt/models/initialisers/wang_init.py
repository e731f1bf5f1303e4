"""Drawn anew, a block's output projections with std 2 / (L sqrt(d)), the rest with small-init (2204.06745)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cpt.models.initialisers._base import Leaf, Source, of_scratch, read, writes_stream
from cpt.models.initialisers._drawn import drawn, small
from cpt.models.spec import DecoderSpec


@of_scratch
def wang_init(source: Source, target: DecoderSpec, options: Mapping[str, Any]) -> Leaf:
    """Wang's init of output projections, N(0, 4 / (L^2 d)), over small-init: what Pythia started from.

    Black et al. 2022 (arXiv 2204.06745), section 2.1. It is `model.init="neox"` without `model.init_std`; as a
    transform it is for comparisons with the others.

    Raises:
      ConfigError: there are options.
    """
    read(options, "wang_init")
    outward = 2 / (target.layers * math.sqrt(target.width))
    return drawn(source, target, "wang_init", lambda path: outward if writes_stream(path) else small(target))
