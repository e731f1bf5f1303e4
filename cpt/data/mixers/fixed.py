"""The shares of `mix` as they are, at every step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cpt.data.mixers._base import steady


@steady
def fixed(phase: Any, sources: Mapping[str, Any], step: int) -> Mapping[str, float]:
    """Share of each source among the new tokens of the batch at `step` of `phase`; replay is laid over it later.

    Args:
      phase: the `cpt.plan.Phase`; its config is `phase.spec`.
      sources: the declared sources by name.
      step: step in the phase.
    """
    return phase.spec.mix
