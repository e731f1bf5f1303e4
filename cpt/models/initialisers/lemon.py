"""Wider and deeper by any numbers, with the copies made unequal: lossless model expansion (2310.07999)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cpt.errors import ConfigError
from cpt.models.initialisers._base import OPTIONS, Leaf, Source, check_not_below, check_same, read, whole
from cpt.models.initialisers._depth import Block, check_cancels, stacked
from cpt.models.initialisers._width import Copies, check_uniform, copies, grouped_sum, widened
from cpt.models.spec import DecoderSpec, check_name


def lemon(source: Source, target: DecoderSpec, options: Mapping[str, Any]) -> Leaf:
    """LEMON (Wang et al. 2024, arXiv 2310.07999): copies whose outgoing weights are shared unequally, idle blocks.

    Kept exactly, up to rounding: the logits of every input. The weights that read the copies of a unit are random parts
    of the unit's that sum to them (`a + b = 1`, a and b not equal), so that copies part in training. A width D' that is
    no multiple of D holds `k = D' // D` copies and a rest without content; norms see `eta^2 = k D / D'` times the
    variance, so `model.norm_eps` must be eta^2 times that of the source. New blocks are copies of the block before them
    that add nothing to the residual stream, spread evenly.

    Options: `blocks` ("zero"), why new blocks add nothing: their last weights are `zero`, or halves that `cancel`;
    `seed` (0) of the shares.

    Raises:
      ConfigError: a size is below the source's, `norm_eps` is another, another field differs, an option is wrong.
    """
    kind = "lemon"
    given = read(options, kind, blocks="zero", seed=0)
    check_name(f"{OPTIONS}.blocks", given["blocks"], ("zero", "cancel"))
    seed, spec = whole(given, "seed"), source.spec
    check_same(spec, target, kind, "width", "heads", "kv_heads", "ff", "layers", "norm_eps")
    check_not_below(spec, target, kind, "width", "heads", "kv_heads", "ff_dim", "layers")
    made = copies(spec, target, kind)
    check_uniform(made, spec)
    _check_epsilon(spec, target, made)
    if given["blocks"] == "cancel":
        check_cancels(target)
    wide = widened(source, made, _unequally, seed)
    ends = [i * target.layers // spec.layers for i in range(spec.layers + 1)]
    blocks = [
        Block((i,), "kept" if j == ends[i] else given["blocks"])
        for i in range(spec.layers)
        for j in range(ends[i], ends[i + 1])
    ]
    return stacked(wide, source.axes, target, blocks)


def _unequally(rows: np.ndarray, copy_of_I: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    share = rng.random(rows.shape, np.float32) + np.float32(0.5)
    return rows * (share / grouped_sum(share, copy_of_I))


def _check_epsilon(source: DecoderSpec, target: DecoderSpec, made: Copies) -> None:
    needed = source.norm_eps if not made.rest else source.norm_eps * made.eta**2
    if abs(target.norm_eps - needed) > 1e-6 * needed:
        raise ConfigError(
            f"model.norm_eps: {target.norm_eps!r} here, but widening {source.width} to {target.width} keeps the "
            f"function only with {needed:.8g}; set model.norm_eps={needed:.8g}"
        )
