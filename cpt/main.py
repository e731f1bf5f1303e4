"""Continual pre-training, from a config to a report.

    python -m cpt.main --config=configs/pile_to_slimpajama.py
    python -m cpt.main --config=configs/pile_to_slimpajama.py --config.phases.slimpajama.replay.share=0.25
    python -m cpt.main --config=configs/pile_to_slimpajama.py:410m --dry_run

Typing the command again goes on where the run stopped, or says that it is done. Ctrl-C saves first.
"""

from __future__ import annotations

import os
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
from cpt.reports.console import show_launch, show_result
from cpt.training import workdir as workdirs
from cpt.training.branches import finished
from cpt.training.signals import STOPPED_BY_SIGNAL

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
    if DRY_RUN.value:
        show_launch(console, plan, workdir)
        return 0
    workdirs.prepare_workdir(workdir)
    try:
        return launch(console, plan, workdir)
    except KeyboardInterrupt:
        stopped(console, "stopped; what was saved before stays")
        sys.stdout.flush()
        os._exit(STOPPED_BY_SIGNAL)  # JAX, interrupted while it starts or compiles, can crash an orderly exit


def launch(console: Console, plan: RunPlan, workdir: Path) -> int:
    """Train, or only report on a run that is complete, while no other process may."""
    with workdirs.lock(workdir, console.print):
        standing = workdirs.newest_step(workdir)
        workdirs.check(workdir, plan, standing)
        if standing >= plan.total_steps and finished(plan, workdir):
            show_launch(console, plan, workdir)
            workdirs.claim(workdir, plan, standing)
            console.print(f"done: all {plan.total_steps} steps are trained; nothing left to do but the report")
            show_result(console, workdir)
            return 0
        return train(console, plan, workdir)


def train(console: Console, plan: RunPlan, workdir: Path) -> int:
    """Train, then report; 75 where a signal stopped it."""
    from cpt.training.run import devices_text, run_training  # starts JAX; a dry run and a finished run need none

    started = time.monotonic()
    show_launch(console, plan, workdir, devices_text())
    outcome = run_training(plan, workdir, console)
    if outcome.stopped_by:
        saved = f"saved at step {outcome.step} of {plan.total_steps}"
        return stopped(console, f"{outcome.stopped_by}: {saved if outcome.step else 'before the first update'}")
    console.print(f"trained {outcome.step} steps; {time.monotonic() - started:.0f} s in all")
    show_result(console, workdir)
    return 0


def stopped(console: Console, what: str) -> int:
    """Say what happened and how to go on."""
    console.print(f"{what}; go on with: python -m cpt.main {shlex.join(sys.argv[1:])}", soft_wrap=True, markup=False)
    return STOPPED_BY_SIGNAL


if __name__ == "__main__":
    cli.run(main)
