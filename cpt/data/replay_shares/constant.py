"""The same share at every step."""

from __future__ import annotations

import numpy as np

from cpt.data.spec import Replay


def constant(replay: Replay, step: np.ndarray) -> np.ndarray:
    """`share`; of the same shape as `step` (steps in the phase)."""
    return np.full(np.shape(step), replay.spec.share)
