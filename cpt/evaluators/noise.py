"""How much of a number is noise: seeds, checkpoints, documents (Madaan et al. 2024, arXiv:2406.10229).

Three things make a loss another number than it might have been. Another *seed*: asked by training again, answered by a
t interval over the seeds. Another *checkpoint* of the same run: answered by how steadily the value moves (monotonicity)
and how much it jumps between late checkpoints. Another draw of *evaluation documents*: answered by the paired bootstrap
of `paired_difference`, which needs one run of each kind only, and therefore says nothing about seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy import special

from cpt.evaluators.bootstrap import REPLICATES, by_document, interval, resampled_losses

LEVEL = 0.95


class Interval(NamedTuple):
    """A mean and the ends of its interval; NaN where there is none."""

    mean: float
    lo: float
    hi: float


@dataclass(frozen=True)
class Difference:
    """`a - b` with its interval.

    Attributes:
      value: the difference.
      lo, hi: ends of the interval; NaN where nothing says how noisy the value is.
      paired: whether what the two share (seeds, documents) was taken out of the noise.
      over: what was drawn several times.
    """

    value: float
    lo: float
    hi: float
    paired: bool
    over: Literal["seeds", "documents"] = "seeds"

    @property
    def within_noise(self) -> bool | None:
        """Whether the interval contains 0; None where there is no interval."""
        return None if np.isnan(self.lo) or np.isnan(self.hi) else bool(self.lo <= 0 <= self.hi)


def kendall_tau(values_T: Sequence[float]) -> float:
    """Monotonicity: Kendall's tau-b between the order of the checkpoints and their values.

    Args:
      values_T: [T] in order of training; what is not finite is left out.

    Returns:
      1 = rises at every checkpoint, -1 = falls at every one (a loss that is learned), 0 = no trend; NaN for fewer than
      two values or for values that are all the same.
    """
    from scipy import stats  # here: three quarters of a second, which no run should wait for before it trains

    values = _finite(values_T)
    return float(stats.kendalltau(np.arange(len(values)), values).statistic) if len(values) > 1 else np.nan


def signal_to_noise(values_N: Sequence[float]) -> float:
    """Mean over standard deviation of the seeds' values, `mean / std` with N - 1 under the square root.

    Infinite where all seeds agree to the last digit; NaN for one seed. The mean is taken as the signal, so it
    only makes sense for a value on a scale with a zero of its own: a loss or a score, not a change.
    """
    values = _finite(values_N)
    if len(values) < 2:
        return np.nan
    mean, std = float(np.mean(values)), float(np.std(values, ddof=1))
    return mean / std if std else float(np.sign(mean) * np.inf) if mean else np.nan


def step_to_step_noise(values_T: Sequence[float], last: int = 5) -> float:
    """Standard deviation of the last `last` checkpoints over the whole change, `std / |v_T - v_1|`; lower is better.

    A trend among the last checkpoints counts as well, so take so few that they move little. Above 1 the value jumps
    more from one checkpoint to the next than training has moved it.

    Args:
      values_T: [T] in order of training; what is not finite is left out.
      last: how many, at least 2.

    Returns:
      NaN for fewer than `last` values; infinite where nothing has changed but the values do jump.
    """
    values = _finite(values_T)
    if last < 2:
        raise ValueError(f"last={last}: a standard deviation needs at least 2 checkpoints")
    if len(values) < last:
        return np.nan
    std, change = float(np.std(values[-last:], ddof=1)), abs(float(values[-1] - values[0]))
    return std / change if change else np.inf if std else np.nan


def mean_interval(values_N: Sequence[float], level: float = LEVEL) -> Interval:
    """Mean over seeds and its Student-t interval, `mean ± t_{N-1} std / sqrt(N)`.

    For few seeds it is wide: t is 12.7 for two, 4.3 for three, 2.8 for five. One seed has a mean and a NaN interval; no
    seed has neither.
    """
    values = _all_finite(values_N)
    if not len(values):
        return Interval(np.nan, np.nan, np.nan)
    mean = float(np.mean(values))
    if len(values) == 1:
        return Interval(mean, np.nan, np.nan)
    half = _t(len(values) - 1, level) * float(np.std(values, ddof=1)) / np.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def difference(a: Sequence[float], b: Sequence[float], paired: bool = False, level: float = LEVEL) -> Difference:
    """`mean(a) - mean(b)` of two groups of seeds.

    Args:
      a, b: one value per seed.
      paired: the i-th values of both come from the same seed, so that what the seed decides (initial weights, order of
        the data) cancels: a t interval of the differences. Otherwise Welch's, for groups of unlike spread; with three
        seeds each it is a little too narrow (92 instead of 95 in 100 where the spreads differ fivefold).
      level: of the interval.

    Raises:
      ValueError: paired groups of unlike size, or a value that is not finite.
    """
    a, b = _all_finite(a), _all_finite(b)
    if paired:
        if len(a) != len(b):
            raise ValueError(f"paired groups have one value per seed each, got {len(a)} and {len(b)}")
        return Difference(*mean_interval(a - b, level), paired=True)
    if not len(a) or not len(b):
        return Difference(np.nan, np.nan, np.nan, paired=False)
    value = float(np.mean(a) - np.mean(b))
    if min(len(a), len(b)) < 2:
        return Difference(value, np.nan, np.nan, paired=False)
    va, vb = (float(np.var(v, ddof=1)) / len(v) for v in (a, b))
    if va + vb == 0:
        return Difference(value, value, value, paired=False)
    # Welch and Satterthwaite: degrees of freedom of a sum of two variances that are estimated from few values each.
    df = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    half = _t(df, level) * np.sqrt(va + vb)
    return Difference(value, float(value - half), float(value + half), paired=False)


def paired_difference(
    nats_a_SxT: np.ndarray,
    nats_b_SxT: np.ndarray,
    tokens_S: np.ndarray,
    documents_S: Sequence[int] | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
    level: float = LEVEL,
) -> dict[str, Difference]:
    """Two runs on the same evaluation rows: `a - b` of the final losses (`final`) and of `forgetting`, nats/token.

    Each resample draws documents once and reads both runs on them, so how hard the documents are cancels. It is one
    training of each kind: another seed may well say otherwise, which `difference` over seeds knows and this does not.

    Args:
      nats_a_SxT, nats_b_SxT: [S, T] summed nats per row and evaluation; the first column is the switch, the last the
        end. The runs may have been evaluated at different steps in between.
      tokens_S: [S] tokens scored per row, the same in both runs.
      documents_S: document of each row, the unit of resampling; None resamples rows.
      replicates, seed: of the bootstrap.
      level: of the percentile interval, which is NaN where there is one document only.

    Raises:
      ValueError: the runs have other rows than each other.
    """
    if not len(nats_a_SxT) == len(nats_b_SxT) == len(tokens_S):
        rows = f"{len(nats_a_SxT)}, {len(nats_b_SxT)} and {len(tokens_S)}"
        raise ValueError(f"paired runs are evaluated on the same rows, got {rows}")
    nats_Sx4 = np.stack([nats[:, i] for nats in (nats_a_SxT, nats_b_SxT) for i in (0, -1)], axis=1).astype(float)
    tokens_Sx4 = np.repeat(np.asarray(tokens_S, float)[:, None], 4, axis=1)
    nats_Dx4, tokens_Dx4 = (by_document(sums, documents_S) for sums in (nats_Sx4, tokens_Sx4))
    here_4 = nats_Dx4.sum(axis=0) / tokens_Dx4.sum(axis=0)
    drawn_Rx4 = resampled_losses(nats_Dx4, tokens_Dx4, replicates, seed) if len(nats_Dx4) > 1 else None

    def of(value, replicates_R):
        lo, hi = (np.nan, np.nan) if replicates_R is None else interval(replicates_R, level)
        return Difference(float(value), lo, hi, paired=True, over="documents")

    signs = {"final": np.array([0, 1, 0, -1]), "forgetting": np.array([-1, 1, 1, -1])}
    return {k: of(here_4 @ s, None if drawn_Rx4 is None else drawn_Rx4 @ s) for k, s in signs.items()}


def _t(df: float, level: float) -> float:
    return float(special.stdtrit(df, (1 + level) / 2))


def _finite(values: Sequence[float]) -> np.ndarray:
    values = np.asarray(values, float)
    return values[np.isfinite(values)]


def _all_finite(values: Sequence[float]) -> np.ndarray:
    """A seed whose value is not finite (a run that diverged) is a finding, not a value to be left out unseen."""
    values = np.asarray(values, float)
    if not np.all(np.isfinite(values)):
        raise ValueError("a value is not finite; leave that seed out and say so")
    return values
