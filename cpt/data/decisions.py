"""What mixers with feedback decided: a log beside the run that makes it resumable, and replayable, exactly.

Such a mixer sets its shares anew every so many steps, from the losses of the evaluation sets. The data of a run is then
a function of plan, decisions and step; with the log it is as random-access as any other. Between two decisions the
shares are constant and the counts of rows exact; what was read before a decision never depends on it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from cpt.data.allocation import Allocation, check_steps
from cpt.errors import RunError

LOG = "decisions.jsonl"


@dataclass(frozen=True)
class Decision:
    """From `step_in_phase` of `phase` on (update `step` of the run) the new tokens have these `shares`.

    `losses` are those it was made from, nats per token by evaluation set.
    """

    step: int
    phase: str
    step_in_phase: int
    losses: Mapping[str, float]
    shares: Mapping[str, float]


@dataclass
class Decisions:
    """All decisions of a run so far, in order."""

    made: list[Decision] = field(default_factory=list)

    def of(self, phase: str) -> list[Decision]:
        """Those of a phase."""
        return [d for d in self.made if d.phase == phase]

    def shares(self, phase: str, step_in_phase: int) -> Mapping[str, float] | None:
        """The shares decided last for a step of a phase; None before the first decision."""
        before = [d for d in self.of(phase) if d.step_in_phase <= step_in_phase]
        return before[-1].shares if before else None

    def load(self, workdir: Path, step: int, cut: bool = True) -> None:
        """Take up what the log in `workdir` says up to `step`, and `cut` off what a run gone back on said later.

        Raises:
          RunError: the log is damaged.
        """
        path = workdir / LOG
        self.made = [d for d in read_decisions(path) if d.step <= step]
        if cut and path.is_file():
            path.write_text("".join(json.dumps(asdict(d)) + "\n" for d in self.made))

    def add(self, decision: Decision, workdir: Path | None) -> None:
        """Note a decision, in the log of `workdir` first; of several processes one has it."""
        if workdir is not None:
            with (workdir / LOG).open("a") as f:
                f.write(json.dumps(asdict(decision)) + "\n")
        self.made.append(decision)


def read_decisions(path: Path) -> list[Decision]:
    """The decisions in a log; none where there is no file. A last line that was cut off is left out.

    Raises:
      RunError: another line is none.
    """
    if not path.is_file():
        return []
    lines = path.read_text().splitlines()
    out = []
    for number, line in enumerate(lines, 1):
        try:
            out.append(Decision(**json.loads(line)))
        except (ValueError, TypeError) as e:
            if number < len(lines):
                raise RunError(f"{path}:{number}: not a decision ({e}); bring the file back from a copy") from e
    return out


class Rounds:
    """Rows per source of a phase whose shares are decided in rounds: each an `Allocation` of its own.

    Args:
      first_S: the steps at which rounds begin, the first one 0.
      shares: constant shares of each round, `[K]`.
      batch: rows per step.
      steps: of the phase.
      where: config path, for errors.
    """

    def __init__(self, first_S: list[int], shares: list[np.ndarray], batch: int, steps: int, where: str):
        self.first_S, self.steps = first_S, steps
        ends = [*first_S[1:], steps]
        self._rounds = [
            Allocation(q, batch, steps=end - first, where=where)
            for q, first, end in zip(shares, first_S, ends, strict=True)
        ]
        totals = [np.zeros(len(shares[0]), np.int64)]
        for round_ in self._rounds:
            totals.append(totals[-1] + round_.counts_before(round_.steps))
        self._before = totals

    def counts_before(self, step: int | np.ndarray) -> np.ndarray:
        """As `Allocation.counts_before`."""
        check_steps(step, self.steps)
        if isinstance(step, np.ndarray):
            return np.stack([self.counts_before(int(s)) for s in step])
        i = int(np.searchsorted(self.first_S, step, side="right")) - 1
        return self._before[i] + self._rounds[i].counts_before(step - self.first_S[i])

    def counts_at(self, step: int | np.ndarray) -> np.ndarray:
        """As `Allocation.counts_at`."""
        check_steps(step, self.steps - 1)
        return self.counts_before(step + 1) - self.counts_before(step)


def rounds(every: int, steps: int) -> Iterator[int]:
    """The steps of a phase at which rounds begin: 0 and every decision."""
    yield from range(0, steps, every)
