"""Drawn anew, against loss spikes: small sub-layers, embeddings of std 1 (2312.16903)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cpt.errors import ConfigError
from cpt.models.initialisers._base import Keys, Leaf, Source, of_scratch, read, writes_stream
from cpt.models.initialisers._drawn import drawn, small
from cpt.models.spec import DecoderSpec


@of_scratch
def spike_no_more(source: Source, target: DecoderSpec, options: Mapping[str, Any]) -> Leaf:
    """Spike No More (Takase et al. 2023, arXiv 2312.16903): small-init, output projections over sqrt(2 L).

    The paper also asks for a large shortcut: embeddings with a standard deviation near 1, for which it multiplies them
    by sqrt(d), or norms them, in the forward pass. Here the forward pass stays as it is and the table itself is drawn
    with std 1: the same size of the stream at the first update, and gradients of the table without the factor sqrt(d).
    Leave the table out of weight decay.

    Raises:
      ConfigError: the head is tied: logits would be sqrt(d) times too large; there are options.
    """
    read(options, "spike_no_more")
    if target.tied:
        raise ConfigError(
            "model.tied: 'spike_no_more' draws the embedding with std 1, and as output head that makes logits of std "
            f"sqrt({target.width}); set model.tied=False"
        )
    sigma = small(target)

    def std(path: Keys) -> float:
        if path[-1] == "embedding":
            return 1.0
        return sigma / math.sqrt(2 * target.layers) if writes_stream(path) else sigma

    return drawn(source, target, "spike_no_more", std)
