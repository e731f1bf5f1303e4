"""Rows of weights that sum to 1: each new row is a convex combination of old ones."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

START = 64  # of the largest scores that are sorted at first; supports are far smaller as a rule


def sparsemax(scores_NxK: np.ndarray) -> np.ndarray:
    """The Euclidean projection of each row onto the simplex, float64 (Martins & Astudillo 2016, arXiv 1602.02068).

    With scores sorted downwards, k is the largest with `1 + k z_k > z_1 + ... + z_k`, the threshold tau is
    `(z_1 + ... + z_k - 1) / k`, and a weight is `max(z - tau, 0)`.
    """
    scores_NxK = np.asarray(scores_NxK, np.float64)
    top = min(START, scores_NxK.shape[1])
    while True:
        sorted_NxT = -np.sort(np.partition(-scores_NxK, top - 1, axis=1)[:, :top], axis=1)
        sums_NxT = np.cumsum(sorted_NxT, axis=1)
        k_T = np.arange(1, top + 1)
        k_N = (1 + k_T * sorted_NxT > sums_NxT).sum(1)
        if top == scores_NxK.shape[1] or (k_N < top).all():
            break
        top = min(4 * top, scores_NxK.shape[1])
    tau_N = (np.take_along_axis(sums_NxT, k_N[:, None] - 1, axis=1)[:, 0] - 1) / k_N
    return np.maximum(scores_NxK - tau_N[:, None], 0)


def nearest_softmax(scores_NxK: np.ndarray, neighbours: int, temperature: float) -> np.ndarray:
    """`softmax(score / temperature)` over the `neighbours` largest scores of each row, 0 elsewhere; float64."""
    scores_NxK = np.asarray(scores_NxK, np.float64)
    neighbours = min(neighbours, scores_NxK.shape[1])
    best_NxN = np.argpartition(-scores_NxK, neighbours - 1, axis=1)[:, :neighbours]
    out_NxK = np.zeros_like(scores_NxK)
    np.put_along_axis(out_NxK, best_NxN, softmax(np.take_along_axis(scores_NxK, best_NxN, 1) / temperature), 1)
    return out_NxK


def softmax(scores_NxK: np.ndarray) -> np.ndarray:
    """Of each row."""
    exp_NxK = np.exp(scores_NxK - scores_NxK.max(1, keepdims=True))
    return exp_NxK / exp_NxK.sum(1, keepdims=True)


def unit(vectors_NxA: np.ndarray) -> np.ndarray:
    """Each row divided by its length, float64; a row of zeros stays one."""
    vectors_NxA = np.asarray(vectors_NxA, np.float64)
    lengths_N = np.linalg.norm(vectors_NxA, axis=1, keepdims=True)
    return vectors_NxA / np.where(lengths_N > 0, lengths_N, 1)


def combined(weights_MxK: csr_array, old_KxD: np.ndarray) -> np.ndarray:
    """`weights @ old` in float64, `[M, d]`."""
    return weights_MxK @ old_KxD.astype(np.float64)
