"""Config and environment, as searchable plain text: what one needs to run it again."""

from __future__ import annotations

from typing import Any

from cpt.evaluators.rows import RunFiles
from cpt.reports.section import Section
from cpt.reports.section import records as folded


def records(run: RunFiles) -> Section | None:
    """One folded list per file."""
    found = [(name, flatten(data)) for name, data in (("config", run.config), ("environment", run.environment))]
    blocks = tuple(folded(name, [f"{k} = {v}" for k, v in rows.items()]) for name, rows in found if rows)
    return Section("Config and environment", "", blocks) if blocks else None


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested data as `dotted.path: text`, in the order of the file; an empty section keeps its line."""
    if isinstance(value, dict) and value:
        return {p: t for k, v in value.items() for p, t in flatten(v, f"{prefix}.{k}" if prefix else str(k)).items()}
    return {prefix: str(value)} if prefix else {}
