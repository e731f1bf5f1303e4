"""Intervals by resampling evaluation documents: would another draw of documents have said the same?

Documents are resampled, with all their sequences, because the tokens of a sequence and the sequences of a document are
not independent: resampling tokens, or neighbouring sequences, gives intervals that are several times too narrow. The
resample is *paired*: a replicate uses the same documents at every step, so what a difference between two steps shows is
not hidden by how hard those documents are. With the same seed and sets the replicates of two runs are paired as well.

What the interval does not hold: another training seed. Use several seeds for that (Madaan et al. 2024).
"""

from __future__ import annotations

import numpy as np

from cpt.evaluators.stability_gap import area_above, depth, transient

REPLICATES = 2000
_CELLS = 2_000_000  # counts held at once: 16 MB


def by_document(sums_SxT: np.ndarray, documents_S: list[int] | None) -> np.ndarray:
    """Sums per document [D, T] from sums per sequence [S, T]; unchanged where the documents are not known."""
    if documents_S is None:
        return sums_SxT
    _, document_S = np.unique(documents_S, return_inverse=True)
    out_DxT = np.zeros((document_S.max() + 1, sums_SxT.shape[1]))
    np.add.at(out_DxT, document_S, sums_SxT)
    return out_DxT


def resampled_losses(
    nats_SxT: np.ndarray, tokens_SxT: np.ndarray, replicates: int = REPLICATES, seed: int = 0
) -> np.ndarray:
    """Loss curves [R, T] of `replicates` resamples: `counts @ nats / counts @ tokens`, sums before the division.

    Args:
      nats_SxT: per unit of resampling (document, or sequence) and evaluation, summed negative log-likelihood.
      tokens_SxT: per unit and evaluation, tokens scored.
      replicates: number of resamples R.
      seed: of the generator; fixed, so that a report made twice is the same.
    """
    rng = np.random.default_rng(seed)
    sequences = len(nats_SxT)
    chunk = max(1, _CELLS // max(1, sequences))
    out = []
    for first in range(0, replicates, chunk):
        rows = min(chunk, replicates - first)
        drawn = rng.integers(0, sequences, (rows, sequences)) + sequences * np.arange(rows)[:, None]
        counts_RxS = np.bincount(drawn.ravel(), minlength=rows * sequences).reshape(rows, sequences).astype(float)
        out.append((counts_RxS @ nats_SxT) / (counts_RxS @ tokens_SxT))
    return np.concatenate(out)


def interval(values_R: np.ndarray, level: float = 0.95) -> list[float]:
    """Percentile interval `[lo, hi]` that holds `level` of the replicates."""
    lo, hi = np.quantile(values_R, [(1 - level) / 2, (1 + level) / 2])
    return [float(lo), float(hi)]


def gap_intervals(tokens_T: np.ndarray, losses_RxT: np.ndarray) -> dict[str, list[float]]:
    """95 % intervals of forgetting, depth, area and transient of a curve that starts at the switch.

    Forgetting can have either sign, so an interval that contains 0 means "within noise". Depth, area and transient
    cannot be negative and are pushed up by noise (a maximum over evaluations); judge them by their size, not by whether
    they reach 0.
    """
    return {
        "forgetting": interval(losses_RxT[:, -1] - losses_RxT[:, 0]),
        "depth": interval(depth(losses_RxT)),
        "area": interval(area_above(tokens_T, losses_RxT, losses_RxT[:, 0])),
        "transient": interval(transient(losses_RxT)),
    }
