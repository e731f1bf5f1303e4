"""Hyper-parameters of the optimizer that change with the phase: AdamW's beta2 and its weight decay.

A higher beta2 in the cooldown lowers the final loss as much as the shape of the cooldown does (Dremov et al. 2025,
arXiv 2508.01483: .95 to .99 and above). Like the learning rate, such a value is a pure function of the plan and the
step; the optimizer is given it at each update.
"""

from __future__ import annotations

from dataclasses import dataclass

from cpt.errors import ConfigError
from cpt.schedules.composer import Schedule


@dataclass(frozen=True)
class FollowSpec:
    """How one value goes through a phase.

    Attributes:
      value: at the start of the phase; None = the optimizer's own.
      to: where a straight line leads it at the end of the phase; None = it stays.
      cooldown: from the first step of the phase's last decay on, instead; None = no change there.
    """

    value: float | None = None
    to: float | None = None
    cooldown: float | None = None

    @property
    def given(self) -> bool:
        """Whether the phase says anything about it."""
        return (self.value, self.to, self.cooldown) != (None, None, None)

    def at(self, step: int, schedule: Schedule, own: float) -> float:
        """The value of update `step` of a phase with this schedule; `own` is the optimizer's."""
        if self.cooldown is not None and step >= schedule.last_fall:
            return self.cooldown
        start = own if self.value is None else self.value
        return start if self.to is None else start + (self.to - start) * step / schedule.steps

    def check(self, low: float, high: float, where: str) -> None:
        """Raises ConfigError for a value outside of [low, high)."""
        for name in ("value", "to", "cooldown"):
            number = getattr(self, name)
            if number is not None and not low <= number < high:
                raise ConfigError(f"{where}.{name}: must lie in [{low:g}, {high:g}), got {number:g}")
