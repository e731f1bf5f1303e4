"""Refined schedule: what the gradient norms of an earlier run say the learning rate should have been."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from cpt.errors import ConfigError
from cpt.schedules.segments import Segment, Tabulated
from cpt.schedules.spec import LRSpec, Span

POINTS = 4096  # of the table; longer runs are averaged to so many


def refined(spec: LRSpec, span: Span, start: float, where: str) -> list[Segment]:
    """Refinement of linear decay (Defazio et al. 2023, arXiv 2310.07831, algorithm of the refined schedule).

        w_t = G_t**-options.exponent,    lr_t proportional to w_t * sum_{p > t} w_p,    lr_n = 0, its maximum = peak

    where G are the gradient norms of `options.run` (its `metrics.jsonl`), smoothed by a median filter over
    `options.smoothing` of the run. Constant norms give linear decay exactly; norms that fall early give a warm-up.
    The exponent is 2 for SGD with L2 norms; for Adam the paper uses 1 with L1 norms. A run logs L2 norms, so 1 (the
    default) is the nearest there is.

    Uses: peak, options.run, options.phase (that phase only), options.exponent (1.0), options.smoothing (0.1).

    Raises:
      ConfigError: no such run, too few gradient norms in it, peak missing, smoothing outside of [0, 1], an exponent
        below 0, an open-ended phase.
    """
    if span.open_ended:
        raise ConfigError(f"{where}.kind: refined is laid over the whole phase, but the phase is open-ended")
    options = spec.given(where, run="", phase="", exponent=1.0, smoothing=0.1)
    if not 0 <= options["smoothing"] <= 1:
        raise ConfigError(f"{where}.options.smoothing: must lie in [0, 1], got {options['smoothing']:g}")
    if not options["exponent"] >= 0:
        raise ConfigError(f"{where}.options.exponent: must be at least 0, got {options['exponent']:g}")
    peak, _ = spec.levels(span, where)
    if not options["run"]:
        raise ConfigError(f"{where}.options.run: name the run whose gradient norms it follows")
    norms_T = gradient_norms(Path(options["run"]), options["phase"], f"{where}.options")
    values = refine(smoothed(norms_T, options["smoothing"]), options["exponent"])
    return [Tabulated(peak * values / values.max(), span.steps, jump=True)]


def gradient_norms(run: Path, phase: str, where: str) -> np.ndarray:
    """The `grad_norm` column of a run's `metrics.jsonl`, in order; skipped updates have none."""
    path = run / "metrics.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as e:
        raise ConfigError(f"{where}.run: {path} cannot be read ({e})") from e
    norms = [r["grad_norm"] for r in rows if r.get("grad_norm") and phase in ("", r.get("phase"))]
    if len(norms) < 3:
        of = f" of phase {phase}" if phase else ""
        raise ConfigError(f"{where}.run: {path} holds {len(norms)} gradient norms{of}, too few to refine a schedule")
    norms_T = np.asarray(norms, np.float64)
    block = math.ceil(len(norms_T) / POINTS)
    usable = len(norms_T) // block * block
    return norms_T[:usable].reshape(-1, block).mean(1)


def smoothed(norms_T: np.ndarray, share: float) -> np.ndarray:
    """Median filter of width `2 * floor(share * T / 2) + 1`; mirrored at the right end, cut off at the left."""
    half = math.floor(share * len(norms_T) / 2)
    padded = np.concatenate([norms_T, norms_T[::-1][:half]])
    return np.array([np.median(padded[max(0, t - half) : t + half + 1]) for t in range(len(norms_T))])


def refine(norms_T: np.ndarray, exponent: float) -> np.ndarray:
    """[T + 1] relative learning rates of T updates from their gradient norms, and 0 at the end."""
    weights_T = norms_T**-exponent
    # Summed from the end: a difference of sums could be below 0 where a weight is small.
    from_T = np.cumsum(weights_T[::-1])[::-1]
    values = np.append(weights_T * np.append(from_T[1:], 0.0), 0.0)
    return values / values.max()
