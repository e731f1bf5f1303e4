"""Much replay just after the switch, where the stability gap lies, and `schedule.end` after that."""

from __future__ import annotations

import numpy as np

from cpt.data.spec import Replay


def burst(replay: Replay, step: np.ndarray) -> np.ndarray:
    """`share` for the first `over` steps, then `end`; of the same shape as `step` (steps in the phase)."""
    return np.where(np.asarray(step) < replay.over, replay.spec.share, replay.spec.schedule.end)
