"""The ledger: tokens and FLOPs of every source in every phase, planned and consumed. They must be equal, always.

`planned` follows from the mix plan; `consumed` is counted on the device from the batches that were trained on. A
difference means that the data is not what the plan says, so the run stops rather than report numbers about something
else.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cpt.columns import Column
from cpt.data.mix import MixPlan
from cpt.errors import RunError


class Ledger:
    """Counts of a run from `step` on; what was consumed before equals the plan, because it was checked then.

    Args:
      mix: the data plan.
      flops_per_token: training FLOPs of one token.
      step: the step the run starts or resumes at.
    """

    def __init__(self, mix: MixPlan, flops_per_token: float, step: int = 0):
        self.mix, self.flops_per_token, self.step = mix, flops_per_token, step
        # Lists: between two updates of a small model, NumPy costs more than it adds up.
        self.consumed = [self._planned(p.index, step).tolist() for p in mix.plan.phases]

    def add(self, step: int, tokens_K: np.ndarray) -> None:
        """Count the tokens per column that update `step` trained on."""
        phase = self.mix.plan.phase_at(step)
        consumed = self.consumed[phase.index]
        for k, tokens in enumerate(np.asarray(tokens_K[: len(phase.columns)]).tolist()):
            consumed[k] += tokens
        self.step = step + 1

    def check(self) -> None:
        """Raises RunError with phase, source and both numbers if consumed and planned tokens differ."""
        for phase in self.mix.plan.phases:
            planned = self._planned(phase.index, self.step)
            for column, want, got in zip(phase.columns, planned, self.consumed[phase.index], strict=True):
                if want != got:
                    raise RunError(
                        f"ledger: at step {self.step}, phase {phase.name}: {column.name} consumed {got:,} tokens, "
                        f"planned {want:,}; the data is not what the plan says (was a store changed?)"
                    )

    def to_json(self) -> dict[str, Any]:
        """What `ledger.json` holds; `tokens_planned` is for the whole phase, the other counts up to `step`.

        `unique_tokens` are those that the run read for the first time there: as new data, or as replay of a range in
        one order (in another order it is counted anew); `repeats` are the others; `epochs` are passes over the range in
        this phase.
        """
        length, rows, exact = self.mix.plan.spec.batch.length, [], True
        for phase in self.mix.plan.phases:
            whole = self._planned(phase.index, phase.end)
            so_far = self._planned(phase.index, self.step)
            exact &= bool(np.array_equal(so_far, self.consumed[phase.index]))
            for k, column in enumerate(phase.columns):
                consumed = int(self.consumed[phase.index][k])
                size = self.mix.range_size(phase, column) * length
                unique = self.mix.first_reads(phase, column, consumed // length) * length
                rows.append(
                    {
                        "phase": phase.name,
                        "source": column.name,
                        "role": column.role,
                        "domain": self._domain(column),
                        "tokens_planned": int(whole[k]),
                        "tokens_consumed": consumed,
                        "unique_tokens": unique,
                        "repeats": consumed - unique,
                        "epochs": consumed / size if size else 0.0,
                        "flops": consumed * self.flops_per_token,
                    }
                )
        return {"exact": exact, "step": self.step, "phases": rows, "totals": _totals(rows)}

    def _domain(self, column: Column) -> str | None:
        """The domain that a column reads, where its source is one of a store's domains."""
        return None if column.source is None else self.mix.plan.spec.sources[column.source].domain

    def _planned(self, index: int, step: int) -> np.ndarray:
        """Tokens per column that the plan gives phase `index` before global step `step`."""
        phase = self.mix.plan.phases[index]
        inside = min(max(step - phase.first_step, 0), phase.steps)
        return self.mix.counts(phase, inside).astype(np.int64) * self.mix.plan.spec.batch.length


def _totals(rows: list[dict[str, Any]]) -> dict[str, Any]:
    def total(key: str, role: str | None = None):
        return sum(r[key] for r in rows if role in (None, r["role"]))

    consumed = total("tokens_consumed")
    return {
        "tokens_planned": total("tokens_planned"),
        "tokens_consumed": consumed,
        "new_tokens": total("tokens_consumed", "new"),
        "replay_tokens": total("tokens_consumed", "replay"),
        "unique_replay_tokens": total("unique_tokens", "replay"),
        "replay_share": total("tokens_consumed", "replay") / consumed if consumed else 0.0,
        "replay_repeats": total("repeats", "replay"),
        "flops": total("flops"),
        "replay_flops": total("flops", "replay"),
    }
