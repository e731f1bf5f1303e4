"""Several runs on one page: what each learned and forgot, and which are worth having.

The page is a list of sections, each one file of `cpt/reports/comparisons` with a function of the same name that takes a
`Comparison` and returns a `Section`, or None. A file added to that folder appears at the end of the page.
"""

from __future__ import annotations

from pathlib import Path

from cpt.evaluators.rows import write_atomic
from cpt.registry import available, find
from cpt.reports.comparison import NAMED, Comparison, compared
from cpt.reports.page import render
from cpt.reports.section import Section

ROOM = "cpt.reports.comparisons"
FIRST = ("trade_off", "seeds", "reference", "runs", "probes", "curves", "ledger")


def write_comparison(
    run_dirs: list[Path],
    out: Path,
    sort: str | None = None,
    again_s: float | None = None,
    reference: Path | None = None,
) -> Path:
    """Write the page that compares the runs to `out`. The run directories are only read.

    Args:
      sort: path in `summary.json` by which the runs are sorted, e.g. `sets.pile.forgetting`.
      again_s: seconds after which a browser loads the page again while a run is unfinished.
      reference: run directory that the others are measured against.

    Raises:
      RunError: a folder is no run directory, is named twice, or `out` cannot be written.
      ConfigError: `sort` is no number of the summaries.
    """
    comparison = compared(run_dirs, sort, reference)
    names = list(comparison.runs)
    told = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    again_s = None if all(r.summary["finished"] for r in comparison.runs.values()) else again_s
    title, sections = f"{len(names)} runs compared", sections_of(comparison)
    return write_atomic(Path(out), render(title, sections, told, again_s, comparison.unit))


def sections_of(comparison: Comparison) -> list[Section]:
    """The sections that have something to show, in the order of the page."""
    added = [name for name in available(ROOM) if name not in FIRST]
    made = (find(ROOM, name, where="report")(comparison) for name in (*FIRST, *added))
    return [section for section in made if section is not None]
