"""A straight line over the phase, from `share` to `schedule.end`."""

from __future__ import annotations

import numpy as np

from cpt.data.spec import Replay


def linear(replay: Replay, step: np.ndarray) -> np.ndarray:
    """`share + (end - share) * step / (steps - 1)`; of the same shape as `step` (steps in the phase)."""
    u = np.asarray(step) / max(1, replay.steps - 1)
    return replay.spec.share * (1 - u) + replay.spec.schedule.end * u
