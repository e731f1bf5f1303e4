"""The runs beside a reference that was trained on everything at once: what each failed to learn."""

from __future__ import annotations

from cpt.evaluators import formatting as fmt
from cpt.evaluators.intransigence import intransigence
from cpt.reports.comparison import Comparison
from cpt.reports.section import Section, table


def reference(comparison: Comparison) -> Section | None:
    """Intransigence and the distance at the end, per run and set; nothing without a reference."""
    if comparison.reference is None:
        return None
    rows = []
    for name, run in comparison.runs.items():
        for r in intransigence(run, comparison.reference):
            change = fmt.change(r["distance"], r["distance_ci95"])
            rows.append([name, r["set"], fmt.signed(r["intransigence"]), change, r["why"]])
    heads = ["run", "set", "intransigence", "distance at the end", ""]
    lead = (
        f"Against {comparison.reference.name}, in {comparison.unit}: intransigence is the loss right after the phase "
        "that learned the set, less the reference's last one; higher is worse."
    )
    return Section("Beside the reference", lead, (table(heads, rows, "Intransigence", text_columns=2),))
