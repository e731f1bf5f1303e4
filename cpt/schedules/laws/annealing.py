"""The annealing law: loss falls with the area under the learning rate, and with how much of it was annealed away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cpt.schedules.laws.curves import Curve
from cpt.schedules.laws.features import annealing_area, area, drops
from cpt.schedules.laws.law import Options


class Annealing:
    """`L(t) = L0 + A * S1(t)**-alpha - C * S2(t)` (Tissue et al. 2024, arXiv 2408.11029, eq. 1)."""

    names = ("L0", "A", "alpha", "C")
    positive = (True, True, True, True)
    prior = (None,) * 4

    def prepare(self, curve: Curve, options: Options) -> tuple[np.ndarray, np.ndarray]:
        """(S1, S2) at the points."""
        at = curve.steps_P - 1
        fallen_T = drops(curve.lr_T, 0 if options.warmup_in_s2 else curve.warmup)
        return area(curve.lr_T)[at], annealing_area(fallen_T, options.decay)[at]

    def loss(self, parameters_U: np.ndarray, prepared: Any) -> tuple[np.ndarray, np.ndarray]:
        """See `Law.loss`."""
        base, scale, alpha, c = parameters_U
        s1, s2 = prepared
        power = s1**-alpha
        loss = base + scale * power - c * s2
        return loss, np.stack([np.ones_like(s1), power, -scale * np.log(s1) * power, -s2], axis=1)

    def starts(self, curves: Sequence[Curve], rng: np.random.Generator, n: int) -> np.ndarray:
        """Around the lowest loss, with the exponent and the annealing gain of published fits."""
        lowest = min(float(np.min(c.loss_P)) for c in curves)
        base = lowest * rng.uniform(0.6, 1.0, n)
        scale, alpha, c = rng.uniform(0.1, 1.0, n) * lowest / 3, rng.uniform(0.2, 0.9, n), rng.uniform(0.05, 1.0, n)
        return np.stack([base, scale, alpha, c], axis=1)

    def unidentified(self, curves: Sequence[Curve], prepared: Sequence[Any]) -> str | None:
        """C needs a learning rate that falls."""
        highest = max(float(c.lr_T.max()) for c in curves)
        if max(float(np.ptp(s2)) for _, s2 in prepared) < 1e-3 * highest:
            why = "the learning rate is constant in all of them, so the gain from annealing (C) cannot be told"
            return f"{why}; add a curve whose learning rate falls"
        return None
