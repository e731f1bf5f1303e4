"""Every run in a row: where it ended, what changed since the switch, and the config fields that differ."""

from __future__ import annotations

from collections.abc import Iterable

from cpt.evaluators import formatting as fmt
from cpt.evaluators.rows import RunFiles
from cpt.evaluators.summary import gap_cells
from cpt.reports.comparison import Comparison
from cpt.reports.section import Html, Section, table


def runs(comparison: Comparison) -> Section | None:
    """A table per set."""
    lead = "" if comparison.sort is None else f"Sorted by {comparison.sort}, smallest first."
    if not comparison.one_tokenizer:
        lead += " Runs have different tokenizers: compare bits per byte only."
    return Section("Runs", lead.strip(), tuple(_table(name, comparison) for name in comparison.sets))


def _table(set_name: str, comparison: Comparison) -> Html:
    annealed = {name: _annealed(run, set_name) for name, run in comparison.runs.items()}
    with_annealed, fields = any(annealed.values()), comparison.fields
    # The numbers first: recipes may differ in more fields than a page is wide.
    heads = ["run", "final", *(["annealed"] if with_annealed else []), "change", "gap depth", "peak at"]
    heads += ["recovered", "area", "bits per byte", *fields]
    rows: list[Iterable[object]] = []
    for name, run in comparison.runs.items():
        if s := run.summary["sets"].get(set_name):
            final = [fmt.nats(s["final"]), *([fmt.nats(annealed[name])] if with_annealed else [])]
            change = fmt.change(s["forgetting"], s["forgetting_ci95"])
            bits = fmt.nats(s["bits_per_byte"]["final"])
            rows.append([name, *final, change, *gap_cells(s["gap"]), bits, *(fields[f][name] for f in fields)])
    return table(heads, rows, f"{set_name}, nats per token; change since the switch", text_columns=1)


def _annealed(run: RunFiles, set_name: str) -> float | None:
    """Loss at the end of the run's last annealed branch; None if it has none."""
    ends = [b["annealed"] for b in run.summary.get("branches") or [] if b["set"] == set_name]
    return ends[-1] if ends else None
