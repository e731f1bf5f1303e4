"""What the training command prints before and after it trains."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from cpt import __version__
from cpt.evaluators.summary import summary_table, write_summary
from cpt.plan import RunPlan
from cpt.reports.ledger_table import closing_lines
from cpt.reports.plan_table import branch_lines, cost_line, plan_table, replay_lines


def show_launch(console: Console, plan: RunPlan, workdir: Path, devices: str = "", *used: str) -> None:
    """Banner, plan table, cost, and where there are devices the lines on how they are used."""
    new = "resuming" if (workdir / "plan.json").exists() else "new"
    banner = [f"cpt {__version__}", devices, f"run {workdir} ({new})"]
    console.print(" · ".join(filter(None, banner)), highlight=False, soft_wrap=True)
    if plan.spec.notice:
        console.print(plan.spec.notice, style="yellow", highlight=False)
    console.print()
    console.print(plan_table(plan))
    for line in filter(None, [cost_line(plan), *replay_lines(plan), *branch_lines(plan), *used]):
        console.print(line, highlight=False)
    console.print()


def show_result(console: Console, workdir: Path) -> None:
    """Derive summary and report from the rows on disk and show the closing table."""
    from cpt.reports.page import write_report  # plotly takes its time, which a dry run need not

    summary = write_summary(workdir)
    console.print(summary_table(summary))
    for line in closing_lines(summary):
        console.print(line, highlight=False)
    console.print(f"report: {write_report(workdir, summary=summary)}", highlight=False, soft_wrap=True)
