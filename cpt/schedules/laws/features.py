"""Sums over a learning-rate trajectory that the laws are made of."""

from __future__ import annotations

import numpy as np
from scipy.signal import lfilter


def area(lr_T: np.ndarray) -> np.ndarray:
    """`S1(t) = sum_{i<=t} lr_i`, float64 [T]; entry t - 1 is after t updates."""
    return np.cumsum(lr_T)


def annealing_area(drops_T: np.ndarray, decay: float) -> np.ndarray:
    """`S2(t) = sum_{i<=t} m_i`, `m_i = decay * m_{i-1} + (lr_{i-1} - lr_i)` in O(T) (Tissue et al. 2024, eq. 2).

    Args:
      drops_T: float64 [T], `lr_{i-1} - lr_i`; linear in it, so drops of different phases can be told apart.
      decay: lambda, about 0.999.
    """
    return np.cumsum(lfilter([1.0], [1.0, -decay], drops_T))


def drops(lr_T: np.ndarray, warmup: int) -> np.ndarray:
    """`lr_{i-1} - lr_i` with the first `warmup` updates left out."""
    out = -np.diff(lr_T, prepend=lr_T[0])
    out[: warmup + 1] = 0.0
    return out
