"""Each source in proportion to its tokens: p_i ~ n_i."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cpt.data.mixers._base import sizes, steady, tempered
from cpt.data.mixers._options import read


@steady
def proportional(phase: Any, sources: Mapping[str, Any], step: int) -> Mapping[str, float]:
    """`n_i / sum_j n_j`; `mix` only names the sources. Options: `sizes`, tokens of those that are no stores.

    Raises:
      ConfigError: the size of a source is not known.
    """
    read(phase, "sizes")
    return tempered(sizes(phase, sources), 1.0, "")
