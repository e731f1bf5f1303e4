"""The stability gap: old data's loss jumps right after a switch and (partly) comes back (De Lange et al. 2023).

Forgetting compares two points and misses the excursion between them. Here the whole curve after the switch is measured
against `L0`, the loss at the switch: how high it went (depth), when (peak), how long until it was back (recovery), and
how much excess loss that was in all (area). A loss that only rises has a depth but no `transient` part: forgetting, no
gap.

Between evaluations the curve is taken as piecewise linear in tokens, so a denser grid on the same line changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

EPS = 0.01
"""Default tolerance of "recovered", nats/token: about the 95 % interval of a loss over 10 to 20 million tokens."""


@dataclass(frozen=True)
class StabilityGap:
    """What one curve after a switch shows. Losses in nats/token, `*_tokens` in tokens since the switch; higher = worse.

    Attributes:
      depth: max L - L0; 0 when the loss never rose above its value at the switch.
      peak_step: optimizer step of that maximum.
      peak_tokens: tokens from the switch to that maximum.
      recovery_tokens: tokens from the switch to the first point at or after the peak with L <= L0 + eps; None if never.
      recovery_to_end_tokens: the same against L(end) + eps: when the curve had settled.
      turning_tokens: the same against L0 itself, the turning length of arXiv 2505.07796: from there on the set gains
        from the new data; None where it never does.
      area: integral of max(L - L0, 0) over tokens, nat·tokens.
      area_over_end: the same above L(end).
      transient: max L - L(end): the part that came back by itself.
      worst: max L.
      eps: tolerance used for the recoveries.
    """

    depth: float
    peak_step: int
    peak_tokens: float
    recovery_tokens: float | None
    recovery_to_end_tokens: float | None
    turning_tokens: float | None
    area: float
    area_over_end: float
    transient: float
    worst: float
    eps: float


def stability_gap(steps_T: np.ndarray, tokens_T: np.ndarray, loss_T: np.ndarray, eps: float = EPS) -> StabilityGap:
    """Measure a curve that starts at the switch: `loss_T[0]` is L0, `loss_T[-1]` is L(end).

    Args:
      steps_T: [T] optimizer steps, increasing.
      tokens_T: [T] token positions, increasing.
      loss_T: [T] losses, nats/token.
      eps: tolerance of recovery, nats/token.
    """
    since_T = np.asarray(tokens_T, float) - tokens_T[0]
    loss_T = np.asarray(loss_T, float)
    peak = int(np.argmax(loss_T))
    return StabilityGap(
        depth=float(depth(loss_T)),
        peak_step=int(steps_T[peak]),
        peak_tokens=float(since_T[peak]),
        recovery_tokens=first_at_or_below(since_T, loss_T, loss_T[0] + eps, peak),
        recovery_to_end_tokens=first_at_or_below(since_T, loss_T, loss_T[-1] + eps, peak),
        turning_tokens=first_at_or_below(since_T, loss_T, loss_T[0], peak),
        area=float(area_above(since_T, loss_T, loss_T[0])),
        area_over_end=float(area_above(since_T, loss_T, loss_T[-1])),
        transient=float(transient(loss_T)),
        worst=float(loss_T[peak]),
        eps=eps,
    )


def depth(loss_XxT: np.ndarray) -> np.ndarray:
    """`max_t L(t) - L0` along the last axis, nats/token."""
    return np.max(loss_XxT, axis=-1) - loss_XxT[..., 0]


def transient(loss_XxT: np.ndarray) -> np.ndarray:
    """`max_t L(t) - L(end)` along the last axis, nats/token."""
    return np.max(loss_XxT, axis=-1) - loss_XxT[..., -1]


def area_above(
    tokens_T: np.ndarray,
    loss_XxT: np.ndarray,
    level_X: np.ndarray | float,
    clip_at: Literal["crossing", "evaluation"] = "crossing",
) -> np.ndarray:
    """Integral of `max(L(t) - level, 0) dt` over tokens, nat·tokens, along the last axis.

    Args:
      tokens_T: [T] token positions, increasing; any spacing.
      loss_XxT: [..., T] one or many curves on that grid.
      level_X: [...] level of each curve.
      clip_at: where a segment that crosses the level is cut. "crossing" cuts it where the line meets the level, so
        points added on the line change nothing. "evaluation" clips the values first and then applies the trapezoid
        rule, the common shortcut; it overstates the area by the corner beside each crossing. (With the level at L(end)
        and a curve that starts below it the two differ: 24.18 and 24.35 nat·tokens on the worked example in the tests.)
    """
    excess = np.asarray(loss_XxT, float) - np.asarray(level_X, float)[..., None]
    left, right, dt = excess[..., :-1], excess[..., 1:], np.diff(tokens_T)
    clipped = (np.maximum(left, 0) + np.maximum(right, 0)) / 2
    if clip_at == "crossing":
        # A crossing segment keeps a triangle: its positive end is p high and a share p / (p - n) of the segment long.
        p, n = np.maximum(left, right), np.minimum(left, right)
        crosses = (p > 0) & (n < 0)
        clipped = np.where(crosses, p * p / np.where(crosses, 2 * (p - n), 1.0), clipped)
    return np.sum(clipped * dt, axis=-1)


def first_at_or_below(tokens_T: np.ndarray, loss_T: np.ndarray, level: float, start: int) -> float | None:
    """First token position at or after index `start` where the curve is <= `level`; None if nowhere."""
    below = np.flatnonzero(loss_T[start:] <= level)
    if not len(below):
        return None
    i = start + int(below[0])
    if i == start:
        return float(tokens_T[i])
    share = (loss_T[i - 1] - level) / (loss_T[i - 1] - loss_T[i])
    return float(tokens_T[i - 1] + share * (tokens_T[i] - tokens_T[i - 1]))
