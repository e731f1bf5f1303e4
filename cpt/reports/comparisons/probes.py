"""What else was measured on the models, a column per number, yours among them."""

from __future__ import annotations

from cpt.evaluators import formatting as fmt
from cpt.reports.comparison import Comparison
from cpt.reports.section import Section, table


def probes(comparison: Comparison) -> Section | None:
    """The last value of every probe of every run."""
    found = {name: run.summary.get("probes") or {} for name, run in comparison.runs.items()}
    names = list(dict.fromkeys(n for values in found.values() for n in values))
    if not names:
        return None
    rows = [[run, *(fmt.value((values.get(n) or {}).get("last")) for n in names)] for run, values in found.items()]
    return Section("Probes", "", (table(["run", *names], rows, "At the last step where each was asked"),))
