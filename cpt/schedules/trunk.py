"""One trajectory over several phases: the data changes, the learning rate goes on.

Infinite schedules switch data inside their constant part; Parmar et al. 2024 (arXiv 2407.07263) switch inside a decay,
where the rate has fallen to a fifth. In a config the first phase names the schedule and the ones after it say
`lr.kind = "continue"`; the schedule is then laid over all of them together and cut where each ends. A branch leaves the
trajectory for a cooldown, so that checkpoints of a constant learning rate can be compared.
"""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass

from cpt.errors import ConfigError
from cpt.schedules.composer import Schedule
from cpt.schedules.segments import Decay
from cpt.units import Duration

CONTINUE = "continue"


@dataclass(frozen=True)
class BranchSpec:
    """Leave the plan at step `at` and cool down: what makes a checkpoint of a constant learning rate comparable.

    With `init.from_run=RUN` the cooldown goes on from that run's checkpoint there: same data position, same ledger.

    Attributes:
      at: updates done where the branch begins; None = no branch. Its phase then ends with the cooldown, and the phases
        after it are left out; the data go on as in that phase.
      decay: length of the cooldown; a fraction is one of `at`. 10 to 20 % are enough (Hagele et al., 2405.18392).
      shape: of the cooldown; a name in `cpt.schedules.shapes.SHAPES`.
      floor: learning rate at its end; None = 0.1 of that at the branch.
    """

    at: int | None = None
    decay: Duration = Duration(fraction=0.1)
    shape: str = "1-sqrt"
    floor: float | None = None


@dataclass(frozen=True)
class AnnealSpec:
    """Annealed branches that are trained after the run itself, each a child of its checkpoint there.

    Attributes:
      at: steps to branch at.
      phase_ends: branch at the end of every phase, too.
      decay, shape, floor: as in `BranchSpec`.
    """

    at: tuple[int, ...] = ()
    phase_ends: bool = False
    decay: Duration = Duration(fraction=0.1)
    shape: str = "1-sqrt"
    floor: float | None = None


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


def branched(schedules: list[Schedule], branch: BranchSpec, tokens_per_step: int) -> list[Schedule]:
    """The schedules of a plan up to a branch, the last of them ending in its cooldown.

    Args:
      schedules: of the phases, in order.
      branch: where, and how it cools down.
      tokens_per_step: tokens of one update, for a length in tokens.

    Raises:
      ConfigError: `at` is no step of the plan, an impossible cooldown.
    """
    total = sum(s.steps for s in schedules)
    if not 0 < branch.at <= total:
        raise ConfigError(f"branch.at: {branch.at} is no step of this plan of {total} steps")
    steps = branch.decay.resolve(branch.at, tokens_per_step, "branch.decay")
    ends = list(itertools.accumulate(s.steps for s in schedules))
    i = bisect.bisect_left(ends, branch.at)  # at the end of a phase the branch belongs to it, not to the next
    schedule, at = schedules[i], branch.at - (ends[i - 1] if i else 0)
    level = schedule.slice(0, at).end
    floor = 0.1 * level if branch.floor is None else branch.floor
    if not 0 <= floor <= level:
        raise ConfigError(f"branch.floor: must lie between 0 and {level:g}, the rate at the branch; got {floor:g}")
    try:
        cooldown = Decay(floor, steps, branch.shape)
    except ValueError as e:
        raise ConfigError(f"branch.shape: {e}") from e
    return [*schedules[:i], schedule.branch(at, [cooldown], "branch")]
