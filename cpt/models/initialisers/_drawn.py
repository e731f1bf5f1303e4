"""Fresh parameters with other standard deviations: the draw of the run's seed, each matrix scaled."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from cpt.models.initialisers._base import Keys, Leaf, Source, check_same, writes_stream
from cpt.models.layers import deviations
from cpt.models.spec import DecoderSpec


def small(spec: DecoderSpec) -> float:
    """`sqrt(2 / (5 d))` (Nguyen and Salazar 2019, arXiv 1910.05895)."""
    return math.sqrt(2 / (5 * spec.width))


def drawn(source: Source, target: DecoderSpec, kind: str, std: Callable[[Keys], float]) -> Leaf:
    """A fresh model of which matrix `path` has the standard deviation `std(path)`; biases are 0, scales of norms 1.

    Args:
      source: a fresh model, whose matrices have those of `cpt.models.layers.deviations`.
    """
    check_same(source.spec, target, kind)
    inward, outward = deviations(source.spec)

    def leaf(path: Keys) -> np.ndarray:
        w = source(path)
        if path[-1] not in ("kernel", "embedding"):
            return w
        return w * np.float32(std(path) / (outward if writes_stream(path) else inward))

    return leaf
