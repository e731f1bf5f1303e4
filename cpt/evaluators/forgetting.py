"""Forgetting: how much worse a set got after it was learned. Everything here is on losses, so higher = worse.

The plain form subtracts the loss at the switch from the loss at the end, the first-minus-last form of Avalanche and of
De Lange et al. The form of Chaudhry et al. subtracts the *best* value seen earlier, so it is larger when later phases
first helped a set and then hurt it. Both exist in the literature under one name; here they have two.
"""

from __future__ import annotations

import numpy as np


def forgetting(reference_loss: float, end_loss: float) -> float:
    """`L(end) - L0` in nats/token; positive = forgotten, negative = improved (De Lange et al. 2023, FORG)."""
    return float(end_loss - reference_loss)


def forgetting_best(loss_T: np.ndarray) -> float:
    """`L_T - min_{t<T} L_t` (Chaudhry et al. 2018, f_j^k, with the sign of losses); positive = worse than at its best.

    Chaudhry et al. look at the ends of phases only: give it a column of the phase x set matrix. On all evaluations of a
    curve it is the excess over the best loss ever seen, which noise makes larger the denser the grid is.

    Args:
      loss_T: [T] losses in order; the last is the end. NaN when there is nothing earlier.
    """
    return float(loss_T[-1] - np.min(loss_T[:-1])) if len(loss_T) > 1 else float("nan")


def windowed_forgetting(loss_T: np.ndarray, window: int) -> float:
    """WF^w of De Lange et al. 2023 for losses: the largest rise `L_j - L_i`, i < j, inside `window` evaluations.

    It needs no knowledge of phase boundaries. Higher = worse; negative when the loss fell at every evaluation.

    Args:
      loss_T: [T] losses at consecutive evaluations.
      window: evaluations in a window, w >= 2.
    """
    return _largest_rise(np.asarray(loss_T, float), window)


def windowed_plasticity(loss_T: np.ndarray, window: int) -> float:
    """WP^w of De Lange et al. 2023 for losses: the largest fall `L_i - L_j`, i < j, inside `window` evaluations.

    Higher = better. Every pair of a window is looked at: the published code skips start points in a way that is right
    for forgetting only, and understates plasticity (accuracies .9 .5 .8 give -.1 there; the largest rise is .3).
    """
    return _largest_rise(-np.asarray(loss_T, float), window)


def worst_case(current: float, worst_old: list[float]) -> float:
    """WC-ACC of De Lange et al. 2023: mean of the current set's value and each old set's worst since learned.

    `(1/k) a_k + (1 - 1/k) mean(worst_old)` with k = 1 + len(worst_old); for losses higher = worse.
    """
    return float(np.mean([current, *worst_old]))


def _largest_rise(values_T: np.ndarray, window: int) -> float:
    if window < 2:
        raise ValueError(f"a window of {window} evaluations holds no pair")
    # Two evaluations share a window of w exactly when they lie at most w - 1 apart.
    rises = [np.max(values_T[lag:] - values_T[:-lag]) for lag in range(1, min(window, len(values_T)))]
    return float(np.max(rises)) if rises else float("nan")
