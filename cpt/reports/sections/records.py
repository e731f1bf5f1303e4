"""Config and environment, as searchable plain text: what one needs to run it again."""

from __future__ import annotations

from cpt.evaluators.naming import flatten
from cpt.evaluators.rows import RunFiles
from cpt.reports.section import Section
from cpt.reports.section import records as folded


def records(run: RunFiles) -> Section | None:
    """One folded list per file."""
    found = [(name, flatten(data)) for name, data in (("config", run.config), ("environment", run.environment))]
    blocks = tuple(folded(name, [f"{k} = {v}" for k, v in rows.items()]) for name, rows in found if rows)
    return Section("Config and environment", "", blocks) if blocks else None
