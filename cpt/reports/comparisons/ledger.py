"""What the runs cost, side by side: tokens, replay, repeats, FLOPs, and what each spent on evaluation."""

from __future__ import annotations

from cpt.evaluators import formatting as fmt
from cpt.reports.comparison import Comparison
from cpt.reports.section import Section, table
from cpt.units import human


def ledger(comparison: Comparison) -> Section | None:
    """A row per run, from its ledger."""
    rows = []
    for name, run in comparison.runs.items():
        totals = run.summary.get("ledger") or {}
        if not totals:
            continue
        replayed = sum(p["replay_tokens"] for p in totals["phases"])
        unique = sum(p["unique_replay_tokens"] for p in totals["phases"])
        replay_flops = totals.get("replay_flops")
        rows.append(
            [
                name,
                f"{totals['tokens_consumed']:,}",
                f"{replayed:,}",
                f"{replayed - unique:,}",
                human(totals["flops"]),
                fmt.DASH if replay_flops is None else human(replay_flops),
                "exact" if totals["exact"] else "NOT exact",
                fmt.percent(run.summary.get("eval_share")),
            ]
        )
    if not rows:
        return None
    heads = ["run", "tokens", "replayed", "repeats", "FLOPs", "FLOPs of replay", "ledger", "time on evaluation"]
    return Section("Cost", "", (table(heads, rows, "Tokens trained on and compute", text_columns=1),))
