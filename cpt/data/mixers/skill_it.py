"""Skill-it: sources whose skills are not learned yet get more, by the losses as they are (2307.14430)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cpt.data.decisions import Decision
from cpt.errors import ConfigError


def skill_it(phase: Any, sources: Mapping[str, Any], step: int) -> Mapping[str, float]:
    """`p_{t+1}(i) ~ exp(eta * sum over the last w rounds and all sets j of A_ij L_j)` (arXiv 2307.14430, equation 3).

    Before the first decision `p_1(i) ~ exp(eta * sum_j A_ij)`. Every round starts from the uniform distribution again,
    as in the paper: nothing is compounded. L_j is the loss of evaluation set j when the round ends.

    Options:
      every: steps of a round.
      eta: how strongly losses count (0.5).
      window: rounds, each with its one evaluation, that the sum takes in (3).
      graph: for each source the effect of learning it on the loss of each set, `{"algebra": {"algebra": 1.0, "proofs":
        0.5}}`; what is not named is 0. By default 1 for the sets of that very source.
      targets: only these sets count, by the mean over the window (by default all do, by the sum).

    What was decided is in `decisions.jsonl` of the run; `mixer.kind="decided"` replays it.

    Raises:
      ConfigError: an option out of range, a source or set that is not there.
    """
    decided = phase.decisions.shares(phase.name, step)
    if decided is not None:
        return decided
    graph_IxJ = _graph(phase)[0]
    return _shares(phase, graph_IxJ.sum(axis=1))


def decide(phase: Any, earlier: Sequence[Decision], losses: Mapping[str, float]) -> dict[str, float]:
    """The shares of the next round.

    Args:
      earlier: the decisions of this phase so far.
      losses: nats per token of the evaluation sets now.
    """
    graph_IxJ, names = _graph(phase)
    window = _option(phase, "window", 3, 1)
    past = [*(d.losses for d in earlier), losses][-int(window) :]
    loss_WxJ = np.array([[row[name] for name in names] for row in past])
    loss_J = loss_WxJ.mean(axis=0) if phase.spec.mixer.options.get("targets") else loss_WxJ.sum(axis=0)
    return _shares(phase, graph_IxJ @ loss_J)


def every(phase: Any) -> int:
    """Steps between decisions."""
    return int(_option(phase, "every", None, 1))


skill_it.decide, skill_it.every = decide, every


def _shares(phase: Any, effect_I: np.ndarray) -> dict[str, float]:
    exponent = _option(phase, "eta", 0.5, 0) * effect_I
    weights = np.exp(exponent - exponent.max())
    return dict(zip(sorted(phase.spec.mix), (weights / weights.sum()).tolist(), strict=True))


def _graph(phase: Any) -> tuple[np.ndarray, list[str]]:
    """A, float64 `[sources of the mix, sets that count]`, and the names of those sets."""
    options, where = phase.spec.mixer.options, f"phases.{phase.name}.mixer.options"
    sources, sets = sorted(phase.spec.mix), phase.sets
    targets = list(options.get("targets") or sets)
    given = options.get("graph") or {s: {n: 1.0 for n, spec in sets.items() if spec.source == s} for s in sources}
    for name in (*targets, *(n for row in given.values() for n in row)):
        if name not in sets:
            raise ConfigError(f"{where}: no evaluation set '{name}'  (sets: {', '.join(sets) or 'none'})")
    if unknown := set(given) - set(sources):
        raise ConfigError(f"{where}.graph: {sorted(unknown)} are no sources of `mix`  (sources: {', '.join(sources)})")
    graph = np.array([[float(given.get(s, {}).get(n, 0.0)) for n in targets] for s in sources])
    if not graph.any():
        raise ConfigError(f"{where}.graph: no evaluation set tells of any source of `mix`; name one in evaluation.sets")
    return graph, targets


def _option(phase: Any, name: str, default: float | None, least: float) -> float:
    value = phase.spec.mixer.options.get(name, default)
    if not (isinstance(value, int | float) and value >= least):
        raise ConfigError(f"phases.{phase.name}.mixer.options.{name}: {value} is not a number of at least {least}")
    return value
