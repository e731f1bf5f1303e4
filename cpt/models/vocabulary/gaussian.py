"""New tokens are drawn close to the mean of the old ones, with their covariance. The default."""

from __future__ import annotations

import numpy as np

from cpt.models.vocabulary._base import ROWS_AT_ONCE, Fill, Request, each

SCALE = 1e-5
JITTER = 1e-12  # of the mean variance; a covariance of fewer tokens than dimensions has directions without any


def gaussian(request: Request) -> Fill:
    """N(mu, s Sigma) with mean and full covariance of the rows of each matrix (Mundra et al. 2024, arXiv 2407.05841).

    After continual pre-training such a start was about as good as the elaborate ones there (their abstract).

    Options: `scale` (1e-5), the s.
    """
    scale = request.options(scale=SCALE)["scale"]

    def draw(old_KxD: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        mean_D, sigma_DxD = moments(old_KxD)
        z_MxD = rng.standard_normal((len(request.wanted_M), len(mean_D)))
        if not scale or not (variance := np.trace(sigma_DxD) / len(mean_D)):
            return np.tile(mean_D, (len(z_MxD), 1))
        return mean_D + z_MxD @ _root(scale * sigma_DxD, scale * variance).T

    return each(draw, request)


def moments(old_KxD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean `[d]` and covariance `[d, d]` of the rows, divided by their number, in float64."""
    mean_D = old_KxD.mean(0, dtype=np.float64)
    sigma_DxD = np.zeros((len(mean_D), len(mean_D)))
    for start in range(0, len(old_KxD), ROWS_AT_ONCE):
        centred = old_KxD[start : start + ROWS_AT_ONCE].astype(np.float64) - mean_D
        sigma_DxD += centred.T @ centred
    return mean_D, sigma_DxD / len(old_KxD)


def _root(covariance_DxD: np.ndarray, variance: float) -> np.ndarray:
    """Its Cholesky factor, with as little added to the diagonal as makes it one."""
    jitter = JITTER
    while True:
        try:
            return np.linalg.cholesky(covariance_DxD + jitter * variance * np.eye(len(covariance_DxD)))
        except np.linalg.LinAlgError:
            jitter *= 10
