"""A share that falls from `share` to `schedule.end` with the half-life `schedule.over`."""

from __future__ import annotations

import numpy as np

from cpt.data.spec import Replay


def decay(replay: Replay, step: np.ndarray) -> np.ndarray:
    """`end + (share - end) * 2**(-step / over)`; of the same shape as `step` (steps in the phase)."""
    last = replay.spec.schedule.end
    return last + (replay.spec.share - last) * 2.0 ** (-np.asarray(step) / replay.over)
