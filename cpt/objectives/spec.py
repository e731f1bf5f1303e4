"""The section of a config that says what is minimised beside the losses of the sources."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cpt.errors import ConfigError


@dataclass(frozen=True)
class ObjectiveSpec:
    """What is minimised: cross-entropy, its tokens weighted by their sources (`weights` of the phase), and more.

    Attributes:
      z_loss: factor of `logsumexp(logits)^2`, added to the loss of each token (PaLM, Chowdhery et al. 2022, arXiv
        2204.02311, section 5, took 1e-4). It keeps the logits from drifting. `loss` stays the cross-entropy alone.
    """

    z_loss: float = 0.0

    def __post_init__(self):
        if not (math.isfinite(self.z_loss) and self.z_loss >= 0):
            raise ConfigError(f"objective.z_loss: {self.z_loss} is no finite number of at least 0 (PaLM took 1e-4)")
