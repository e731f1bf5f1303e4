"""The replayed share of a phase by step, and how long a phase is when replay comes on top of its tokens."""

from __future__ import annotations

import math

import numpy as np

from cpt import registry
from cpt.data.spec import Replay, ReplaySpec
from cpt.errors import ConfigError
from cpt.units import Duration


def resolved(spec: ReplaySpec, steps: int, tokens_per_step: int, where: str) -> Replay:
    """The replay of a phase of `steps` steps; `where` is the config path of the phase."""
    over = spec.schedule.over or Duration(fraction=0.1)
    named = f"{where}.replay.schedule.over"
    return Replay(spec, steps, max(1, over.resolve(steps, tokens_per_step, named)))


def shares(replay: Replay, where: str, step: int | None = None) -> np.ndarray:
    """The replayed share at `step`, or float64 `[steps]` at every one of the phase.

    Raises:
      ConfigError: no such kind of schedule, a share outside [0, 1).
    """
    kind = replay.spec.schedule.kind
    schedule = registry.find("cpt.data.replay_shares", kind, f"{where}.replay.schedule.kind")
    at = np.arange(replay.steps) if step is None else np.array([step])
    share_S = np.broadcast_to(np.asarray(schedule(replay, at), np.float64), at.shape)
    wrong = np.flatnonzero(~((share_S >= 0) & (share_S < 1)))  # so that NaN is wrong too
    if len(wrong):
        raise ConfigError(f"{where}.replay.share: {share_S[wrong[0]]:g} at step {at[wrong[0]]} is not in [0, 1)")
    return share_S if step is None else share_S[0]


def steps_of_new(spec: ReplaySpec, tokens: int, tokens_per_step: int, where: str) -> int:
    """Steps whose new tokens are within a budget of `tokens`, replay coming on top, while those of one more are not.

    There may be several such numbers where a longer phase is also replayed longer (`over` is rounded to whole steps).
    """
    budget = tokens / tokens_per_step

    def fits(steps: int) -> bool:
        replayed = shares(resolved(spec, steps, tokens_per_step, where), where)
        return float(np.sum(1 - replayed)) <= budget * (1 + 1e-12) + 1e-9

    low, high = 0, max(1, math.floor(budget))
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
