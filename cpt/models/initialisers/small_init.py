"""Drawn anew, every matrix with std sqrt(2 / (5 d)) (1910.05895)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cpt.models.initialisers._base import Leaf, Source, of_scratch, read
from cpt.models.initialisers._drawn import drawn, small
from cpt.models.spec import DecoderSpec


@of_scratch
def small_init(source: Source, target: DecoderSpec, options: Mapping[str, Any]) -> Leaf:
    """Small-init (Nguyen and Salazar 2019, arXiv 1910.05895): N(0, 2 / (5 d)), for output projections too.

    Raises:
      ConfigError: there are options.
    """
    read(options, "small_init")
    return drawn(source, target, "small_init", lambda path: small(target))
