"""Continual pre-training, from a config to a report.

    python -m cpt.main --config=configs/pile_to_slimpajama.py
    python -m cpt.main --config=configs/pile_to_slimpajama.py --config.phases.slimpajama.replay.share=0.25
    python -m cpt.main --config=configs/pile_to_slimpajama.py:410m --dry_run

Typing the command again goes on where the run stopped, or says that it is done. Ctrl-C saves first.
"""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path

from absl import flags
from ml_collections import config_flags
from rich.console import Console

from cpt import cli
from cpt.config import load
from cpt.errors import ConfigError
from cpt.plan import RunPlan, resolve
from cpt.reports.plan_table import cost_line, plan_table, replay_lines
from cpt.training import workdir as workdirs

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Recipe: FILE.py or FILE.py:ARGUMENT.", lock_config=False, accept_new_attributes=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "Run directory; default runs/<name>-<hash of the plan>.")
DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print the plan and its cost, and stop; needs no data and no accelerator."
)


def main(argv: list[str]) -> int:
    """The command; returns its exit code."""
    if CONFIG.value is None:
        raise ConfigError("--config: required, e.g. --config=configs/pile_to_slimpajama.py (see --help)")
    console = Console(width=None if sys.stdout.isatty() else 160)
    plan = resolve(load(CONFIG.value, config_flags.get_override_values(flags.FLAGS["config"])))
    workdir = Path(WORKDIR.value) if WORKDIR.value else workdirs.default_workdir(plan)
    launch_text(console, plan, workdir)
    if DRY_RUN.value:
        return 0
    workdirs.prepare_workdir(workdir)
    standing = workdirs.newest_step(workdir)
    workdirs.claim(workdir, plan, standing)
    if standing >= plan.total_steps and (workdir / "checkpoints" / "anchor" / str(plan.total_steps)).is_dir():
        console.print(f"done: all {plan.total_steps} steps are trained; nothing left to do but the report")
        return finish(console, workdir)

    from cpt.training.run import run_training  # starts JAX; a dry run and a finished run do not need it

    started = time.monotonic()
    outcome = run_training(plan, workdir, console)
    if outcome.stopped_by:
        again = "python -m cpt.main " + " ".join(shlex.quote(a) for a in sys.argv[1:])
        console.print(f"{outcome.stopped_by}: saved at step {outcome.step} of {plan.total_steps}; go on with: {again}")
        return 75
    console.print(f"trained {outcome.step} steps; {time.monotonic() - started:.0f} s in all")
    return finish(console, workdir)


def launch_text(console: Console, plan: RunPlan, workdir: Path) -> None:
    """Banner, plan table and cost."""
    new = "resuming" if (workdir / "plan.json").exists() else "new"
    console.print(f"cpt · run {workdir} ({new})", highlight=False)
    if plan.spec.notice:
        console.print(plan.spec.notice, style="yellow", highlight=False)
    console.print()
    console.print(plan_table(plan))
    for line in [cost_line(plan), *replay_lines(plan)]:
        console.print(line, highlight=False)
    console.print()


def finish(console: Console, workdir: Path) -> int:
    """Derive summary and report from the rows on disk and show the closing table."""
    from cpt.evaluators.summary import summary_table, write_summary
    from cpt.reports.page import write_report

    summary = write_summary(workdir)
    console.print(summary_table(summary))
    console.print(f"report: {write_report(workdir)}", highlight=False)
    return 0


if __name__ == "__main__":
    cli.run(main)
