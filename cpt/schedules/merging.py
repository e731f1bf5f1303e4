"""Merging checkpoints in place of decaying: which average of checkpoints is which cooldown.

With theta_j = theta_0 - eta * sum_{i<=j} g_i, the average sum_j c_j theta_j applies update i with the weight

    w_i = sum_{j >= i} c_j,      and back:  c_k = w_k,  c_j = w_j - w_{j+1},  c_0 = 1 - w_1

so any cooldown w that falls from 1 to 0 is an average of k + 1 checkpoints of a constant run (Tian et al. 2025, WSM,
arXiv 2507.17634). It is exact for updates that do not depend on the iterate; for training it is an approximation.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np

from cpt.errors import ConfigError, nearest
from cpt.schedules.shapes import SHAPES

NAMES = ("uniform", "linear", "1-sqrt", "cosine", "exp")


def coefficients(weights_K: np.ndarray) -> np.ndarray:
    """[k + 1] coefficients c of the checkpoints, oldest first, that weigh the updates between them by w [k]."""
    return -np.diff(np.concatenate([[1.0], weights_K, [0.0]]))


def effective_weights(coefficients_J: np.ndarray) -> np.ndarray:
    """[k] weight w of the updates after each checkpoint but the last, from the coefficients [k + 1]."""
    return np.cumsum(coefficients_J[::-1])[::-1][1:]


def named_coefficients(name: str, checkpoints: int) -> np.ndarray:
    """Coefficients of `checkpoints` checkpoints, oldest first; they sum to 1.

    Args:
      name: a cooldown (`linear`, which is `uniform`; `1-sqrt`; `cosine`; `exp`, to a tenth), `ema:DECAY`, or a JSON
        file with a list of coefficients.

    Raises:
      ConfigError: an unknown name, fewer than 2 checkpoints, a file that holds something else.
    """
    if checkpoints < 2:
        raise ConfigError(f"--steps: {checkpoints} checkpoint given; an average needs at least 2")
    if m := re.fullmatch(r"ema:(0?\.\d+)", name):
        ages = np.arange(checkpoints)[::-1]
        raw = float(m.group(1)) ** ages * np.where(ages < checkpoints - 1, 1 - float(m.group(1)), 1.0)
        return raw / raw.sum()
    if name == "uniform":
        return np.full(checkpoints, 1.0 / checkpoints)
    if name in NAMES:
        u = np.arange(1, checkpoints) / checkpoints
        return coefficients(np.asarray(SHAPES[name](1.0, 0.1 if name == "exp" else 0.0, u)))
    if Path(name).is_file():
        return _from_file(Path(name), checkpoints)
    offered = ", ".join((*NAMES, "ema:0.9", "a JSON file"))
    raise ConfigError(f"--weights: no '{name}'{nearest(name, NAMES)}  (there are: {offered})")


def _from_file(path: Path, checkpoints: int) -> np.ndarray:
    try:
        given = json.loads(path.read_text())
        values = np.array([float(v) for v in given])
    except (OSError, ValueError, TypeError) as e:
        raise ConfigError(f"--weights={path}: not a JSON list of numbers ({e})") from e
    if len(values) != checkpoints:
        raise ConfigError(f"--weights={path}: {len(values)} coefficients for {checkpoints} checkpoints")
    if not math.isclose(values.sum(), 1.0, rel_tol=1e-6):
        raise ConfigError(f"--weights={path}: the coefficients sum to {values.sum():g}, not to 1")
    return values
