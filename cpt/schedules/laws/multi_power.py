"""The multi-power law: every drop of the learning rate gains on its own, the more the longer ago it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cpt.schedules.laws.curves import Curve
from cpt.schedules.laws.features import area
from cpt.schedules.laws.law import Options

BINS = 400  # drops of a smooth schedule are summed in so many stretches


@dataclass(frozen=True)
class Prepared:
    """Of one curve: S1 at each point; of each drop its size, the rate after it, and the area since it at each point."""

    s1_P: np.ndarray
    drop_K: np.ndarray
    log_lr_K: np.ndarray
    since_PxK: np.ndarray


class MultiPower:
    """`L(t) = L0 + A * S1(t)**-alpha - B * sum_k (lr_{k-1} - lr_k) * G(lr_k**-gamma * S_k(t))` (Luo et al. 2025).

    `G(x) = 1 - (1 + C x)**-beta`, `S_k(t)` the area under the learning rate from update k to t, S1 with the warm-up's.
    """

    names = ("L0", "A", "alpha", "B", "C", "beta", "gamma")
    positive = (True,) * 7
    # Three curves fix the gain of a drop, not how it comes about: without the published constants (C 2.13, beta .598,
    # gamma .655 at 100M parameters) the last three run to the edge and the law extrapolates worse.
    prior = (None, None, None, None, (2.1, 0.1), (0.6, 0.1), (0.65, 0.1))

    def prepare(self, curve: Curve, options: Options) -> Prepared:
        """Drops of the whole curve, summed in stretches; a drop counts from its own update on."""
        at, drop = curve.changes
        s1_T = area(curve.lr_T)
        if len(at) > BINS:
            # Stretches of equal length, each with its drops at their mean place.
            stretch = np.minimum((at - at[0]) * BINS // (at[-1] - at[0] + 1), BINS - 1)
            weight = np.bincount(stretch, np.abs(drop), BINS)
            place = np.bincount(stretch, np.abs(drop) * at, BINS) / np.where(weight > 0, weight, 1)
            drop, keep = np.bincount(stretch, drop, BINS), weight > 0
            at, drop = np.round(place[keep]).astype(np.int64), drop[keep]
        points = curve.steps_P - 1
        before_K = np.where(at > 0, s1_T[np.maximum(at - 1, 0)], 0.0)
        since = np.maximum(s1_T[points][:, None] - before_K[None, :], 0.0)
        floor = 1e-6 * curve.lr_T.max()  # a rate of 0 has no power
        return Prepared(s1_T[points], drop, np.log(np.maximum(curve.lr_T[at], floor)), since)

    def loss(self, parameters_U: np.ndarray, prepared: Any) -> tuple[np.ndarray, np.ndarray]:
        """See `Law.loss`."""
        base, scale, alpha, b, c, beta, gamma = parameters_U
        p: Prepared = prepared
        power = p.s1_P**-alpha
        x = np.exp(-gamma * p.log_lr_K)[None, :] * p.since_PxK
        inner = 1.0 + c * x
        log_inner = np.log(inner)
        tail = np.exp(-beta * log_inner)
        slope = beta * tail / inner  # dG/d(Cx)
        gain = (1.0 - tail) @ p.drop_K
        loss = base + scale * power - b * gain
        return loss, np.stack(
            [
                np.ones_like(power),
                power,
                -scale * np.log(p.s1_P) * power,
                -gain,
                -b * ((slope * x) @ p.drop_K),
                -b * ((log_inner * tail) @ p.drop_K),
                b * ((slope * c * x) @ (p.log_lr_K * p.drop_K)),
            ],
            axis=1,
        )

    def starts(self, curves: Sequence[Curve], rng: np.random.Generator, n: int) -> np.ndarray:
        """Around the published constants, B and A in the units of these curves."""
        lowest = min(float(np.min(c.loss_P)) for c in curves)
        columns = [
            lowest * rng.uniform(0.6, 1.0, n),
            rng.uniform(0.1, 1.0, n) * lowest / 3,
            rng.uniform(0.2, 0.8, n),
            10 ** rng.uniform(1.5, 3.2, n),
            10 ** rng.uniform(-0.7, 1.0, n),
            rng.uniform(0.2, 1.0, n),
            rng.uniform(0.2, 1.0, n),
        ]
        return np.stack(columns, axis=1)

    def unidentified(self, curves: Sequence[Curve], prepared: Sequence[Any]) -> str | None:
        """B, C, beta and gamma need a learning rate that falls."""
        highest = max(float(c.lr_T.max()) for c in curves)
        seen = [float(np.abs(p.drop_K[(p.since_PxK > 0).any(axis=0)]).sum()) for p in prepared]
        if max(seen, default=0.0) < 1e-3 * highest:
            why = "the learning rate is constant in all of them, so what a drop gains (B, C, beta, gamma) is unknown"
            return f"{why}; add a curve whose learning rate falls"
        return None
