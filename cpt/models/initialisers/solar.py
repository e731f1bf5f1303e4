"""Deeper by less than twice: two copies of the blocks, overlapping in the middle (SOLAR, 2312.15166)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cpt.errors import ConfigError
from cpt.models.initialisers._base import Leaf, Source, check_same, read
from cpt.models.initialisers._depth import Block, stacked
from cpt.models.spec import DecoderSpec


def solar(source: Source, target: DecoderSpec, options: Mapping[str, Any]) -> Leaf:
    """Depth up-scaling (Kim et al. 2023, arXiv 2312.15166): blocks 0..n-m-1, then m..n-1, which makes 2 (n - m).

    m follows from the layers of the two models; the paper has n = 32, m = 8. Kept exactly: embedding, final norm, head,
    and every block; not the function.

    Raises:
      ConfigError: no m makes that many layers, another field differs.
    """
    read(options, "solar")
    check_same(source.spec, target, "solar", "layers")
    n, wanted = source.spec.layers, target.layers
    if wanted % 2 or not n < wanted <= 2 * n:
        raise ConfigError(
            f"model.layers: {wanted} cannot be made of two parts of the source's {n}; 'solar' needs an even number "
            f"above {n} and not above {2 * n}"
        )
    each = wanted // 2
    order = [*range(each), *range(n - each, n)]
    return stacked(source, source.axes, target, [Block((i,)) for i in order])
