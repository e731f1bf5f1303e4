"""What a list of timed steps says: where they became steady, which of them other processes disturbed, and the figures.

Machines are shared and noisy. A step that others took part of the cores from is marked and left out of every figure,
and how many there were is told with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

CONTENDED = 0.06  # of the cores' time, used by others
STEADY_STEPS, STEADY_WITHIN, STEADY_AT_MOST = 3, 0.02, 10
FEWEST_QUIET = 3


@dataclass(frozen=True)
class Step:
    """One timed step.

    Attributes:
      seconds: it took.
      others: share of the cores' time that other processes used meanwhile; 0 where nobody can say.
    """

    seconds: float
    others: float = 0.0

    @property
    def contended(self) -> bool:
        return self.others > CONTENDED


def steady_from(seconds: Sequence[float], at_most: int = STEADY_AT_MOST) -> int:
    """Index of the first step to be counted: behind the first three in a row within 2 % of each other, before the last.

    Args:
      at_most: a machine that never gets there is taken as it is after so many steps, if that leaves half of them.
    """
    for i in range(STEADY_STEPS, min(len(seconds) - 1, at_most) + 1):
        window = seconds[i - STEADY_STEPS : i]
        if max(window) <= (1 + STEADY_WITHIN) * min(window):
            return i
    return min(at_most, len(seconds) // 2)


def counted(steps: Sequence[Step]) -> list[Step]:
    """The steps of figures: from the first steady one on and not contended; all of those where too few are not."""
    steady = list(steps[steady_from([s.seconds for s in steps]) :])
    quiet = [s for s in steady if not s.contended]
    return quiet if len(quiet) >= min(FEWEST_QUIET, len(steady)) else steady


def figures(steps: Sequence[Step]) -> dict[str, Any]:
    """`median_s`, `p95_s`, and of how many steps: `counted`, `warm_up`, `contended`, `all_contended`.

    `all_contended` says that too few were quiet, so that disturbed ones had to be counted.
    """
    warm_up, used = steady_from([s.seconds for s in steps]), counted(steps)
    seconds = [s.seconds for s in used]
    return {
        "median_s": float(np.median(seconds)),
        "p95_s": float(np.percentile(seconds, 95)),
        "counted": len(used),
        "warm_up": warm_up,
        "contended": sum(s.contended for s in steps[warm_up:]),
        "all_contended": any(s.contended for s in used),
    }


def rates(median_s: float, tokens: int, palm: float, causal: float, peak: float | None, matmul: float) -> dict:
    """What a median step means.

    Args:
      tokens: of a step.
      palm, causal: FLOPs of a step, with the whole and with the visible half of attention.
      peak: FLOP/s of all devices as their maker states it; None where nobody does.
      matmul: FLOP/s of a matrix product, measured in the same run, on all devices.

    Returns:
      `tokens_per_second`, `gflops_per_second` (causal), `mfu_palm` and `mfu_causal` (None without a peak), and the same
      beside the measured rate, `of_matmul_palm` and `of_matmul_causal`.
    """
    done = {"palm": palm / median_s, "causal": causal / median_s}
    return {
        "tokens_per_second": tokens / median_s,
        "gflops_per_second": done["causal"] / 1e9,
        **{f"mfu_{k}": rate / peak if peak else None for k, rate in done.items()},
        **{f"of_matmul_{k}": rate / matmul for k, rate in done.items()},
    }


def ratio(ours: Sequence[Step], theirs: Sequence[Step]) -> float:
    """Their median over ours, of steps that took turns: how many times as fast we are.

    A turn counts if none of its two steps was contended, as long as there are enough of those.
    """
    pairs = list(zip(ours, theirs, strict=True))
    quiet = [p for p in pairs if not any(s.contended for s in p)]
    used = quiet if len(quiet) >= min(FEWEST_QUIET, len(pairs)) else pairs
    return float(np.median([b.seconds for _, b in used]) / np.median([a.seconds for a, _ in used]))


def over_rounds(ratios: Sequence[Sequence[float]]) -> tuple[float, list[float] | None]:
    """The mean ratio of rounds of turns, and its 95 % interval by Student's t over the rounds.

    Of a round the mean counts without the tenth of its turns at either end. Turns beside each other share what they are
    compared with, and a round has a state of the machine of its own: so it is rounds that vary independently, and one
    alone has no interval.
    """
    means = [float(stats.trim_mean(of, 0.1)) for of in ratios]
    mean = float(np.mean(means))
    if len(means) < 2:
        return mean, None
    half = float(stats.t.ppf(0.975, len(means) - 1) * stats.sem(means))
    return mean, [mean - half, mean + half]


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """Slope of log y over log x by least squares: y grows as x to this power.

    Raises:
      ValueError: fewer than two points, or one that is not positive.
    """
    if len(x) < 2 or min(*x, *y) <= 0:
        raise ValueError(f"a growth needs two positive points at least, got {list(x)} and {list(y)}")
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])
