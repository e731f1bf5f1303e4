"""One trajectory over several phases: the data changes, the learning rate goes on.

Infinite schedules switch data inside their constant part; Parmar et al. 2024 (arXiv 2407.07263) switch inside a decay,
where the rate has fallen to a fifth. In a config the first phase names the schedule and the ones after it say
`lr.kind = "continue"`; the schedule is then laid over all of them together and cut where each ends.
"""

from __future__ import annotations

from dataclasses import dataclass

from cpt.errors import ConfigError
from cpt.schedules.composer import Schedule

CONTINUE = "continue"


@dataclass(frozen=True)
class Share:
    """What one phase takes of a trajectory.

    Attributes:
      where: config path of the phase, for errors.
      steps: its budget; None = what is left.
      until_lr: it ends where the rate has fallen to this, whatever its budget.
    """

    where: str
    steps: int | None
    until_lr: float | None


def total_steps(shares: list[Share]) -> int:
    """Steps of the whole trajectory: the sum of the budgets that are given.

    Raises:
      ConfigError: a phase has neither a budget nor something left over by one that ends early.
    """
    left_over = False
    for share in shares:
        if share.steps is None and not left_over:
            raise ConfigError(
                f"{share.where}: give exactly one of tokens and steps, or until_lr in the phase before, whose budget "
                "then is that of both"
            )
        left_over = share.until_lr is not None
    return sum(share.steps or 0 for share in shares)


def lay(trunk: Schedule, shares: list[Share]) -> list[Schedule]:
    """The trajectory cut into the schedules of the phases, in order.

    Raises:
      ConfigError: the rate never falls to an `until_lr`, or has before the phase begins; a phase has no steps.
    """
    out, first = [], 0
    for i, share in enumerate(shares):
        if share.until_lr is not None:
            end = trunk.first_below(share.until_lr)
            field, level = f"{share.where}.until_lr", f"{share.until_lr:g}"
            if end is None:
                raise ConfigError(f"{field}: the learning rate never falls to {level}, it ends at {trunk.end:g}")
            if end <= first:
                raise ConfigError(f"{field}: the learning rate is at or below {level} before the phase begins")
        elif i == len(shares) - 1 or share.steps is None:
            end = trunk.steps
        else:
            end = first + share.steps
        if not first < end <= trunk.steps:
            raise ConfigError(f"{share.where}: no steps are left of the schedule that it continues")
        out.append(trunk.slice(first, end))
        first = end
    if first < trunk.steps:
        raise ConfigError(
            f"{shares[-1].where}.until_lr: {trunk.steps - first} steps of the schedule come after it; "
            f"let another phase continue it, with lr.kind='{CONTINUE}'"
        )
    return out
