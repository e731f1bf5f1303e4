"""Wider by whole factors: every unit is cloned, and what reads the clones divides by their number (2409.12903)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cpt.models.initialisers._base import Leaf, Source, check_multiples, check_same, number, read, whole
from cpt.models.initialisers._width import check_uniform, copies, equally, grouped_sum, widened
from cpt.models.spec import DecoderSpec


def hypercloning(source: Source, target: DecoderSpec, options: Mapping[str, Any]) -> Leaf:
    """HyperCloning (Samragh et al. 2024, arXiv 2409.12903): `W' = tile(W, (n_out, n_in)) / n_in`, vectors tiled.

    Kept exactly, up to rounding: the logits of every input. The residual stream is the old one, repeated. Width, heads,
    heads of keys and values, and the inner width of the MLP each grow by a whole factor of their own; the channels of a
    head stay, as rotary positions need. A tied head reads the tiled embedding without dividing, so the scale of the
    final norm is divided instead.

    Options: `snr_db` (None), signal to noise in dB of noise that is added to the weights of the clones and sums to zero
    over them, so that clones can part in training; `seed` (0) of the noise.

    Raises:
      ConfigError: a size is no whole multiple, another field differs, an option is wrong.
    """
    kind = "hypercloning"
    given = read(options, kind, snr_db=None, seed=0)
    level = None if given["snr_db"] is None else 10 ** (-number(given, "snr_db", -200.0) / 20)
    seed = whole(given, "seed")
    check_same(source.spec, target, kind, "width", "heads", "kv_heads", "ff")
    check_multiples(source.spec, target, kind, "width", "heads", "kv_heads", "ff_dim")
    made = copies(source.spec, target, kind)
    check_uniform(made, source.spec)

    def share(rows: np.ndarray, copy_of_I: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        rows = equally(rows, copy_of_I)
        n = len(copy_of_I) // (copy_of_I.max() + 1)
        if level is None or n == 1:
            return rows
        noise = level * np.sqrt(np.square(rows).mean()) * rng.standard_normal(rows.shape, np.float32)
        # Without its mean over the clones, and as large as before.
        return rows + (noise - equally(grouped_sum(noise, copy_of_I), copy_of_I)) * np.float32(np.sqrt(n / (n - 1)))

    return widened(source, made, share, seed)
