"""UniMax: as even as possible, with no source read more than so many times (2304.09151)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cpt.data.mixers._base import sizes, steady
from cpt.data.mixers._options import number, place, read
from cpt.errors import ConfigError


@steady
def unimax(phase: Any, sources: Mapping[str, Any], step: int) -> Mapping[str, float]:
    """The phase's new tokens shared out evenly, a source that is full giving its rest to the others (arXiv 2304.09151).

    Smallest source first, each gets `min(left / sources left, epochs * n_i)`; what that leaves is for the larger ones.

    Options: `epochs` (1.0), passes over a source in this phase; `sizes`, tokens of those sources that are no stores.
    `mix` only names the sources; `sources.<name>.epochs` must allow the passes.

    Raises:
      ConfigError: the size of a source is not known, or all of them together are too small for the phase.
    """
    options = read(phase, "epochs", "sizes")
    n, epochs = sizes(phase, sources), number(options.get("epochs", 1.0), f"{place(phase)}.epochs")
    budget = left = phase.new_tokens
    given = {}
    for i, name in enumerate(sorted(n, key=lambda name: (n[name], name))):
        given[name] = min(left / (len(n) - i), epochs * n[name])
        left -= given[name]
    if left > 1e-9 * budget:
        raise ConfigError(
            f"{place(phase)}.epochs: {epochs:g} passes over {', '.join(n)} are {budget - left:,.0f} "
            f"tokens, the phase needs {budget:,.0f}; allow more passes or shorten the phase"
        )
    return {name: tokens / budget for name, tokens in given.items()}
