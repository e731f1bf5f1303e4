"""Matrices whose spread has grown too large, scaled back: target variance rescaling (2503.17500)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from cpt.models.initialisers._base import Keys, Leaf, Source, check_same, flag, is_kernel, layer_of, number, read
from cpt.models.spec import DecoderSpec


def tvr(source: Source, target: DecoderSpec, options: Mapping[str, Any]) -> Leaf:
    """Target variance rescaling (arXiv 2503.17500), once: `W <- (W - mean) / std * sigma + mean`.

    For every kernel of a block with `std(W) > threshold sigma`; its bias becomes 0. Statistics are those of the whole
    tensor, the kernels of queries, keys and values apart where the family keeps them apart. Kept exactly: every other
    parameter; not the function. The paper does this every 50 updates, too; here it is done where a run starts.

    Options: `std` (0.02), sigma; `per_layer` (False), sigma / sqrt(l) in block l from 1; `threshold` (1.2).

    Raises:
      ConfigError: the model is another one, an option is wrong.
    """
    given = read(options, "tvr", std=0.02, per_layer=False, threshold=1.2)
    std, threshold, per_layer = number(given, "std"), number(given, "threshold"), flag(given, "per_layer")
    check_same(source.spec, target, "tvr")

    def leaf(path: Keys) -> np.ndarray:
        w, i = source(path), layer_of(path)
        kernel_at = (*path[:-1], "kernel")
        if i is None or path[-1] not in ("kernel", "bias") or path[2].startswith("ln_"):
            return w
        kernel = w if is_kernel(path) else source(kernel_at)
        mean, spread = kernel.mean(dtype=np.float64), kernel.std(dtype=np.float64)
        sigma = std / math.sqrt(i + 1) if per_layer else std
        if not spread > threshold * sigma:
            return w
        return ((w - mean) * (sigma / spread) + mean).astype(np.float32) if is_kernel(path) else np.zeros_like(w)

    return leaf
