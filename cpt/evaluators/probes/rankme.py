"""Effective rank and spectral decay of the hidden states: whether representations collapse or spread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cpt.errors import ConfigError
from cpt.evaluators.probes._base import Probe, ProbeContext
from cpt.evaluators.probes._rows import Positions, count, end_of_document, rows_per_pass
from cpt.models.base import Params


def rankme(context: ProbeContext) -> Probe:
    """RankMe (Garrido et al. 2023, arXiv 2210.02885) and the alpha of alpha-ReQ (Agrawal et al. 2022).

    Of the states after the final norm, at positions that are the same at each call.

    Options:
      set: evaluation set whose rows are read; the first by default.
      tokens: positions N, 4096; more than the width D, or N bounds the rank in place of D.
      ranks: `[first, last]` eigenvalue, from 1, between which the power law is fitted; by default from the 11th (of a
        narrow model: an eighth of the width) to half the width. The few before stand for outlying directions, and the
        last ones for the noise of a finite sample.

    Values: `rank` in [1, D]; `alpha`, larger where few directions carry the variance.

    Raises:
      ConfigError: no such set, or numbers that do not fit it.
    """
    options = context.read(set=None, tokens=4096, ranks=None)
    where, model = f"{context.where}.options", context.model
    tokens_RxL = context.windows_of(options["set"])[:, :-1]
    positions = Positions(
        tokens_RxL, count(options["tokens"], f"{where}.tokens", 3), rows_per_pass(context), end_of_document(context)
    )
    first, last = _ranks(options["ranks"], min(positions.n - 1, model.spec.width), f"{where}.ranks")

    @jax.jit
    def measured(params: Params, placed: dict[str, jax.Array]) -> dict[str, jax.Array]:
        states_NxD = positions.gather(lambda tokens, segments: model.apply(params, tokens, segments), placed)
        return {"rank": effective_rank(states_NxD), "alpha": spectral_slope(covariance(states_NxD), first, last)}

    return lambda params, step: measured(params, positions.put(params))


def effective_rank(states_NxD: jax.Array) -> jax.Array:
    """`exp(-sum p_k log p_k)` of the singular values over their sum, `p_k = sigma_k / sum sigma` (RankMe, eq. 1-2).

    `states_NxD` is not centred. D for directions that are equally strong, k where there are k such, 1 for one; between
    1 and min(N, D). The paper adds 1e-7 to each p, which here only keeps log(0) away and is left out.
    """
    sigma_K = jnp.linalg.svd(states_NxD, compute_uv=False)
    return jnp.exp(jax.scipy.special.entr(sigma_K / sigma_K.sum()).sum())


def covariance(states_NxD: jax.Array) -> jax.Array:
    """Covariance [D, D] of the rows, their mean removed."""
    centred_NxD = states_NxD - states_NxD.mean(axis=0)
    return jnp.matmul(centred_NxD.T, centred_NxD, precision="highest") / states_NxD.shape[0]


def spectral_slope(matrix_DxD: jax.Array, first: int, last: int) -> jax.Array:
    """alpha of the power law `lambda_i = c i^-alpha` through eigenvalues `first..last` of a symmetric matrix.

    Least squares of log lambda on log i with weights 1/i, so that each octave of ranks counts alike: unweighted, the
    half of the points that is the last octave would decide alone. Ranks count from 1, the largest first; NaN where an
    eigenvalue is not positive.
    """
    rank_K = np.arange(first, last + 1)
    x_K, weight_K = np.log(rank_K), (1 / rank_K) / (1 / rank_K).sum()
    x_K = x_K - (weight_K * x_K).sum()
    y_K = jnp.log(jnp.linalg.eigvalsh(matrix_DxD)[::-1][first - 1 : last])
    return -(weight_K * x_K * y_K).sum() / (weight_K * x_K**2).sum()


def _ranks(given: Any, largest: int, where: str) -> tuple[int, int]:
    if largest < 2:
        raise ConfigError(f"{where}: {largest} eigenvalue is no spectrum; take more tokens")
    if given is None:
        return max(1, min(11, largest // 8)), max(2, largest // 2)
    if not isinstance(given, Sequence) or isinstance(given, str) or len(given) != 2:
        raise ConfigError(f"{where}: {given!r} must be the first and the last rank, e.g. [11, 256]")
    first, last = count(given[0], where), count(given[1], where)
    if not first < last <= largest:
        raise ConfigError(
            f"{where}: from {first} to {last} must increase and end by {largest}, the smaller of the width and of the "
            "number of tokens less one"
        )
    return first, last
