"""A phase of a plan, with every duration resolved: its shares, weights and learning rates are functions of the step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from cpt import registry
from cpt.columns import Column
from cpt.config import PhaseSpec
from cpt.data import replaying
from cpt.data.decisions import Decisions, rounds
from cpt.data.spec import Replay
from cpt.errors import ConfigError
from cpt.schedules.composer import Schedule


@dataclass(frozen=True)
class Phase:
    """A phase with every duration resolved to steps.

    Attributes:
      first_step, steps: the updates `first_step .. first_step + steps - 1` belong to it.
      first_token: tokens trained on before it.
      sequences, tokens_per_step: rows of a batch; rows times their length.
      columns: where its rows come from, in a stated order.
      schedule: learning rate by step in the phase.
      replay: what its replayed share is asked with.
      eval_steps: sorted steps in the phase, 0 and `steps` included.
      eval_every: interval of the regular evaluations, in steps (0: none).
      rolling, grid: checkpoint intervals in steps (0: none).
      sources, sets: the declared sources and evaluation sets.
      decisions: what a mixer with feedback decided so far, in all phases.
    """

    name: str
    index: int
    spec: PhaseSpec
    first_step: int
    steps: int
    first_token: int
    sequences: int
    tokens_per_step: int
    columns: tuple[Column, ...]
    schedule: Schedule
    replay: Replay
    eval_steps: tuple[int, ...]
    eval_every: int
    rolling: int
    grid: int
    sources: Mapping[str, Any] = field(repr=False)
    sets: Mapping[str, Any] = field(repr=False, default_factory=dict)
    decisions: Decisions = field(repr=False, compare=False, default_factory=Decisions)

    @property
    def end(self) -> int:
        return self.first_step + self.steps

    @property
    def tokens(self) -> int:
        return self.steps * self.tokens_per_step

    def learning_rates(self) -> np.ndarray:
        """float64 `[steps]`: the learning rate of each of its updates."""
        rates = self.schedule.values(0, self.steps)
        if self.spec.optimizer.policy == "lr0_warm":
            rates[: self.spec.optimizer.steps] = 0.0
        return rates

    @cached_property
    def _mixer(self):
        return registry.find("cpt.data.mixers", self.spec.mixer.kind, f"phases.{self.name}.mixer.kind")

    @cached_property
    def decides_every(self) -> int:
        """Steps between the decisions of a mixer with feedback; 0 for others."""
        return self._mixer.every(self) if hasattr(self._mixer, "decide") else 0

    def decide(self, losses: Mapping[str, float]) -> dict[str, float]:
        """The shares that its mixer gives to the sources from now on, by the losses of the evaluation sets."""
        return self._mixer.decide(self, self.decisions.of(self.name), losses)

    @property
    def new_tokens(self) -> float:
        """What is left of `tokens` beside replay."""
        if not self.spec.replay.active:
            return float(self.tokens)
        return self.tokens_per_step * float(np.sum(1 - replaying.shares(self.replay, f"phases.{self.name}")))

    def shares(self, step: int) -> tuple[float, ...]:
        """Share of each column in the batch of `step` (in the phase); sums to 1."""
        mix = self._mix(step)
        if not self.spec.replay.active:
            return tuple(mix.get(c.source, 0.0) for c in self.columns)
        replay = float(replaying.shares(self.replay, f"phases.{self.name}", step))
        return tuple(
            (1 - replay) * mix.get(c.source, 0.0) if c.role == "new" else replay * c.part for c in self.columns
        )

    def evaluates_at(self, step: int) -> bool:
        """Whether the grid of the phase has its step `step`."""
        return step in self._evaluated

    @cached_property
    def _evaluated(self) -> frozenset[int]:
        return frozenset(self.eval_steps)

    def share_table(self) -> np.ndarray:
        """`shares` of every step, float64 `[steps, K]`; `[K]` where they never change.

        Phases have up to millions of steps: a mixer is asked once where it never changes or takes all steps at once
        (`cpt/data/mixers/_base.py`), once per round where it decides in rounds, and else at every step.
        """
        mix, never = self._mix_table(), np.zeros(1)
        of_K = [mix.get(c.source, never) if c.role == "new" else np.array([c.part]) for c in self.columns]
        table = np.stack(np.broadcast_arrays(*of_K), axis=1)
        if self.spec.replay.active:
            constant = self.spec.replay.schedule.kind == "constant"
            replay_S = replaying.shares(self.replay, f"phases.{self.name}", 0 if constant else None)
            replay_Sx1 = np.atleast_1d(replay_S)[:, None]
            table = table * np.where([c.role == "new" for c in self.columns], 1 - replay_Sx1, replay_Sx1)
        return table if len(table) > 1 else table[0]

    @cached_property
    def reads(self) -> tuple[bool, ...]:
        """Whether each column has a share at any step; as far as it is decided."""
        return tuple((np.atleast_2d(self.share_table()) > 0).any(axis=0).tolist())

    def new_mix(self) -> dict[str, float]:
        """Share of each source among all new tokens of the phase, those that it reads none of left out."""
        table = np.atleast_2d(self.share_table()).mean(axis=0).tolist()
        new = {c.source: q for c, q in zip(self.columns, table, strict=True) if c.role == "new" and q > 0}
        return {name: q / sum(new.values()) for name, q in new.items()}

    def _mix(self, step: int) -> dict[str, float]:
        """Share of each source among the new tokens of the batch of `step`."""
        mix = {name: float(q) for name, q in self._mixer(self, self.sources, step).items()}
        total = sum(mix.values())
        if not (abs(total - 1) <= 1e-6 and min(mix.values()) >= 0):  # so that NaN is wrong too
            raise self._no_mix(mix, step)
        self._check_named(mix)
        return {name: share / total for name, share in mix.items()}

    def _mix_table(self) -> dict[str, np.ndarray]:
        """`_mix` of every step, each of the shape `[steps]`; `[1]` where it never changes."""
        if getattr(self._mixer, "steady", False):
            return {name: np.array([q]) for name, q in self._mix(0).items()}
        steps = np.arange(self.steps)
        if getattr(self._mixer, "over_steps", False):
            told = self._mixer(self, self.sources, steps)
            mix = {name: np.broadcast_to(np.asarray(q, np.float64), steps.shape) for name, q in told.items()}
        else:
            at = np.array(list(rounds(self.decides_every, self.steps)) if self.decides_every else steps)
            each = [self._mixer(self, self.sources, int(s)) for s in at]
            lasts = np.diff([*at, self.steps])
            names = dict.fromkeys(name for one in each for name in one)
            mix = {n: np.repeat([float(one.get(n, 0.0)) for one in each], lasts) for n in names}
        self._check_named(mix)
        total, least = sum(mix.values()), np.min([*mix.values()], axis=0)
        wrong = np.flatnonzero(~((abs(total - 1) <= 1e-6) & (least >= 0)))
        if len(wrong):
            step = int(wrong[0])
            raise self._no_mix({name: float(q[step]) for name, q in mix.items()}, step)
        return {name: q / total for name, q in mix.items()}

    def _no_mix(self, mix: Mapping[str, float], step: int) -> ConfigError:
        """What is wrong with the shares of a step."""
        where = f"phases.{self.name}.mix"
        for name, share in mix.items():
            if not share >= 0:
                return ConfigError(f"{where}: the share of '{name}' is {share:g} at step {step}, not at least 0")
        return ConfigError(f"{where}: shares sum to {sum(mix.values()):g} at step {step}, not 1 ({dict(mix)})")

    def _check_named(self, mix: Mapping[str, Any]) -> None:
        if unknown := set(mix) - set(self.spec.mix):
            raise ConfigError(
                f"phases.{self.name}.mixer: gives a share to {sorted(unknown)}, which `mix` does not name"
            )

    def multipliers(self, step: int) -> tuple[float, ...]:
        """Loss multiplier of a token of each column: weight / share / sum of the weights; exactly 1.0 without weights.

        The sum is the plan's, not that of the rows that fell into a batch: a source that is in few batches would
        otherwise count for less than its weight.
        """
        shares, weights = self.shares(step), dict(self.spec.weights)
        if not weights and not self.spec.weights_end:
            return (1.0,) * len(shares)
        u = step / max(1, self.steps - 1)
        for name, end in self.spec.weights_end.items():
            weights[name] += (end - weights[name]) * u
        weight = [weights.get(c.name, q) if q > 0 else 0.0 for c, q in zip(self.columns, shares, strict=True)]
        total = sum(weight)
        return tuple(w / q / total if q > 0 else 1.0 for w, q in zip(weight, shares, strict=True))
