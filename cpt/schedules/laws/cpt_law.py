"""The law of continual pre-training: annealing in both phases, and a term for the shift between their data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cpt.schedules.laws.curves import Curve
from cpt.schedules.laws.features import annealing_area, area, drops
from cpt.schedules.laws.law import Options


class ContinualPretraining:
    """`L = L0 + A (S1pt + S1cpt)**-alpha - C1 S2pt - C2 S2cpt + B (1 - (1 + E S1cpt)**-beta)`.

    Wang et al. 2025 (arXiv 2505.07796, eq. 6), fitted for one validation set at a time: B is above 0 on the data of
    before and below 0 on the new. S2pt is the annealing of the drops before the switch, S2cpt of those after it. One
    share of replay has one B and beta; the paper's formula over shares contradicts itself, so fit each share alone.
    """

    names = ("L0", "A", "alpha", "C1", "C2", "B", "E", "beta")
    positive = (True, True, True, True, True, False, True, True)
    prior = (None,) * 8

    def prepare(self, curve: Curve, options: Options) -> tuple[np.ndarray, ...]:
        """(S1, S1cpt, S2pt, S2cpt) at the points."""
        at, switch = curve.steps_P - 1, curve.switch
        s1_T = area(curve.lr_T)
        fallen_T = drops(curve.lr_T, 0 if options.warmup_in_s2 else curve.warmup)
        before_T, after_T = fallen_T.copy(), fallen_T.copy()
        before_T[switch:], after_T[:switch] = 0.0, 0.0
        since = np.maximum(s1_T[at] - (s1_T[switch - 1] if switch else 0.0), 0.0)
        s2 = [annealing_area(x_T, options.decay)[at] for x_T in (before_T, after_T)]
        return s1_T[at], since, *s2

    def loss(self, parameters_U: np.ndarray, prepared: Any) -> tuple[np.ndarray, np.ndarray]:
        """See `Law.loss`."""
        base, scale, alpha, c1, c2, b, e, beta = parameters_U
        s1, since, s2_pt, s2_cpt = prepared
        power, inner = s1**-alpha, 1.0 + e * since
        tail = inner**-beta
        loss = base + scale * power - c1 * s2_pt - c2 * s2_cpt + b * (1.0 - tail)
        return loss, np.stack(
            [
                np.ones_like(s1),
                power,
                -scale * np.log(s1) * power,
                -s2_pt,
                -s2_cpt,
                1.0 - tail,
                b * beta * since * tail / inner,
                b * np.log(inner) * tail,
            ],
            axis=1,
        )

    def starts(self, curves: Sequence[Curve], rng: np.random.Generator, n: int) -> np.ndarray:
        """Around the published constants, with the shift in both directions."""
        lowest = min(float(np.min(c.loss_P)) for c in curves)
        columns = [
            lowest * rng.uniform(0.6, 1.05, n),
            rng.uniform(0.1, 1.0, n) * lowest / 3,
            rng.uniform(0.2, 0.9, n),
            rng.uniform(0.05, 0.6, n),
            rng.uniform(0.05, 0.6, n),
            rng.choice([-1.0, 1.0], n) * rng.uniform(0.1, 1.5, n),
            10 ** rng.uniform(0.5, 3.5, n),
            rng.uniform(0.1, 0.6, n),
        ]
        return np.stack(columns, axis=1)

    def unidentified(self, curves: Sequence[Curve], prepared: Sequence[Any]) -> str | None:
        """Both phases must be seen, and the rate must fall in each."""
        highest = max(float(c.lr_T.max()) for c in curves)
        if not any((c.steps_P > c.switch).sum() >= 3 for c in curves):
            return (
                "none has three points after a switch of data, so the shift (B, E, beta) cannot be told; "
                "say where the data of the tables changes with --switch, or add a run of two phases"
            )
        for i, (phase, name) in enumerate((("before", "C1"), ("after", "C2"))):
            if max(float(np.ptp(p[2 + i])) for p in prepared) < 1e-3 * highest:
                why = f"the learning rate never falls {phase} the switch, so what that gains ({name}) is unknown"
                return f"{why}; add a curve in which it does"
        return None
