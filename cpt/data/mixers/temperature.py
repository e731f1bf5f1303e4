"""Temperature sampling: p_i ~ n_i^(1/tau), which reads small sources more often than their size (2410.04579)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cpt.data.mixers._base import sizes, steady, tempered
from cpt.data.mixers._options import place, read


@steady
def temperature(phase: Any, sources: Mapping[str, Any], step: int) -> Mapping[str, float]:
    """`n_i^(1/tau) / sum_j n_j^(1/tau)` (arXiv 2410.04579, section 2); `mix` only names the sources.

    Options: `tau` (5.0), above 0: 1 is proportional, infinite uniform; `sizes`, tokens of those that are no stores.

    Raises:
      ConfigError: the size of a source is not known, tau is not above 0.
    """
    options = read(phase, "tau", "sizes")
    return tempered(sizes(phase, sources), options.get("tau", 5.0), f"{place(phase)}.tau")
