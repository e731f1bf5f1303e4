"""Loss potential: how far from annealed each phase was left, as a share of its peak learning rate.

The final over the peak learning rate of a phase (arXiv 2505.07796, section 5): a phase that is left at a high rate has
much loss still to be annealed away, and its model learns the next data better; one that decayed to 0 has none.
"""

from __future__ import annotations

from typing import Any

from cpt.evaluators.rows import RunFiles


def loss_potential(run: RunFiles) -> list[dict[str, Any]]:
    """A row per phase that has begun: `phase`, `peak_lr`, `end_lr`, `loss_potential` (None where the peak is 0)."""
    rows = []
    for phase in run.phases:
        first, last = phase["first_step"], phase["first_step"] + phase["steps"]
        rates = [r["lr"] for r in run.metrics if first < r["step"] <= last and r.get("lr") is not None]
        if rates:
            peak, end = max(rates), rates[-1]
            share = end / peak if peak else None
            rows.append({"phase": phase["name"], "peak_lr": peak, "end_lr": end, "loss_potential": share})
    return rows
