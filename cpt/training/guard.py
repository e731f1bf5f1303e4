"""Updates that go wrong: what is not finite, and what is a spike; what was done about each is on record.

An update is judged before it is applied, on the devices, against limits that follow from the updates before it: so the
same run takes the same decisions again, after a resume and on any number of hosts. What is acted on at a step is known
from two updates earlier at the latest, because results are fetched one update late.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cpt.errors import ConfigError
from cpt.plan import RunPlan

LAG = 2  # at the beginning of step t the results of the updates up to t - LAG are there, whatever else happened


@dataclass(frozen=True)
class Incident:
    """An update that was not applied, as `ledger.json` lists it under `guard`.

    Attributes:
      step: of the update (0-based).
      why: `not finite` or `spike`.
      loss, grad_norm: of its batch, None where not finite.
      limits: loss and gradient norm above which an update was a spike then; None where nothing was judged.
      rewound_to: step whose state the run went back to, None where the update was only skipped.
    """

    step: int
    why: str
    loss: float | None
    grad_norm: float | None
    limits: tuple[float, float] | None = None
    rewound_to: int | None = None


class Guard:
    """What is known of the updates so far, and what follows.

    Args:
      plan: whose `guard` section says what to do.
      past: of a checkpoint (`to_json`), None for a new run.

    Raises:
      ConfigError: the decisions that are to be replayed cannot be read.
    """

    def __init__(self, plan: RunPlan, past: dict[str, Any] | None = None):
        self.plan, self.spec = plan, plan.spec.guard
        past = past or {}
        self.incidents = [Incident(**row) for row in past.get("incidents", [])]
        self.in_a_row: int = past.get("in_a_row", 0)
        self._recent: list[tuple[int, float, float]] = [tuple(row) for row in past.get("recent", [])]
        self._replayed = None if self.spec.replay is None else read_incidents(Path(self.spec.replay))

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a resumed run decides as this one would have."""
        incidents = [asdict(i) for i in self.incidents]
        return {"incidents": incidents, "in_a_row": self.in_a_row, "recent": [list(r) for r in self._recent]}

    def limits(self, step: int) -> tuple[float, float] | None:
        """Loss and gradient norm above which update `step` is a spike; infinite where nothing can be said yet.

        None where updates are not judged.

        Mean plus `deviations` standard deviations of the last `window` applied updates of the phase, once it has half
        as many: a new phase has another loss, and that is no spike.
        """
        if self._replayed is not None:
            bad = any(i.step == step for i in self._replayed)
            return (-math.inf, -math.inf) if bad else (math.inf, math.inf)
        if self.spec.spike == "off":
            return None
        first = self.plan.phase_at(step).first_step
        known = [r for r in self._recent if first <= r[0] <= step - LAG][-self.spec.window :]
        if 2 * len(known) < self.spec.window:
            return math.inf, math.inf
        values_Nx2 = np.array(known, np.float64)[:, 1:]
        loss, norm = values_Nx2.mean(axis=0) + self.spec.deviations * values_Nx2.std(axis=0)
        return float(loss), float(norm)

    def saw(self, step: int, loss: float, grad_norm: float, finite: bool, spike: bool) -> Incident | None:
        """Note the result of update `step`; returns the incident if it was not applied."""
        self.in_a_row = 0 if finite and not spike else self.in_a_row + 1
        if finite and not spike:
            self._recent.append((step, loss, grad_norm))
            del self._recent[: -self.spec.window - LAG]
            return None
        limits = self.limits(step) if spike else None
        numbers = (loss, grad_norm) if finite else (None, None)
        incident = Incident(step, "spike" if finite else "not finite", *numbers, limits if _finite(limits) else None)
        self.incidents.append(incident)
        return incident

    def due(self, step: int) -> Incident | None:
        """The spike that the run has to go back for before it does update `step`."""
        for incident in self.incidents:
            if incident.step == step - LAG and incident.why == "spike" and incident.rewound_to is None:
                if self._replayed is not None:
                    back = any(i.step == incident.step and i.rewound_to is not None for i in self._replayed)
                else:
                    back = self.spec.spike == "rewind"
                if back:
                    return incident
        return None

    def wanted(self, incident: Incident) -> int:
        """The step to go back to: `back` updates before the spike, or where the replayed run went."""
        for replayed in self._replayed or ():
            if replayed.step == incident.step:
                return replayed.rewound_to
        return incident.step - self.spec.back

    def rewound(self, incident: Incident, to: int) -> None:
        """The run went back to the state of step `to`."""
        at = self.incidents.index(incident)
        self.incidents[at] = Incident(**{**asdict(incident), "rewound_to": to})
        self._recent = [r for r in self._recent if r[0] < to]

    def may_use(self, step: int) -> bool:
        """Whether a run may go back to this step: only where it saves a full checkpoint however often it is stopped."""
        kinds = self.plan.checkpoints_at(step)
        failing = any(i.step == step - 1 for i in self.incidents)  # then no rolling one is saved
        return "anchor" in kinds or ("rolling" in kinds and not failing) or self.needed_at(step)

    def needed_at(self, step: int) -> bool:
        """Whether a replayed run will go back to this step."""
        return any(i.rewound_to == step for i in self._replayed or ())

    def not_learned(self, tokens_per_step: int) -> dict[str, int]:
        """Tokens that were read and computed but left no trace: `tokens_skipped`, and `tokens_undone` by going back."""
        undone = sum(i.step + LAG - i.rewound_to for i in self.incidents if i.rewound_to is not None)
        skipped = sum(i.rewound_to is None for i in self.incidents)
        return {"tokens_skipped": skipped * tokens_per_step, "tokens_undone": undone * tokens_per_step}


def _finite(limits: tuple[float, float] | None) -> bool:
    return limits is not None and all(map(math.isfinite, limits))


def read_incidents(ledger: Path) -> list[Incident]:
    """What `ledger.json` says of a run's incidents.

    Raises:
      ConfigError: there is no such file, or none of ours.
    """
    try:
        rows = json.loads(ledger.read_text())["guard"]
        return [Incident(**row) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ConfigError(f"guard.replay: {ledger}: no ledger of a run that lists its incidents ({e})") from e
