"""Continual pre-training, from a config to a report.

    python -m cpt.main --config=configs/pile_to_slimpajama.py
    python -m cpt.main --config=configs/pile_to_slimpajama.py --config.phases.slimpajama.replay.share=0.25
    python -m cpt.main --config=configs/pile_to_slimpajama.py:410m --dry_run
    python -m cpt.main --config=configs/pile_to_slimpajama.py:410m --dry_run=v5p-64
    python -m cpt.main --config=F --coordinator=host0:8476 --processes=4 --process=0      # on each of four machines

Typing the command again goes on where the run stopped, or says that it is done. Ctrl-C saves first. Under SLURM, Open
MPI and on TPU pods the environment says which processes there are. Exit codes: 0 done; 2 a mistake to mend; 75 saved,
start the same command again.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from functools import partial
from pathlib import Path

from absl import flags
from ml_collections import config_flags
from rich.console import Console

from cpt import cli
from cpt.backend import prepare_backend
from cpt.config import load
from cpt.errors import ConfigError
from cpt.plan import RunPlan, resolve
from cpt.reports.console import show_launch, show_result
from cpt.training import cluster
from cpt.training import workdir as workdirs
from cpt.training.branches import finished
from cpt.training.dry_run import topology_lines
from cpt.training.preservation import is_remote
from cpt.training.processes import Processes, here, joined
from cpt.training.remote import opened, staging_folder
from cpt.training.signals import STOPPED_BY_SIGNAL, at_once

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Recipe: FILE.py or FILE.py:ARGUMENT.", lock_config=False, accept_new_attributes=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "Run directory, or gs://bucket/run; default runs/<name>-<hash>.")
DRY_RUN = flags.DEFINE(
    cli.OptionalValue(),
    "dry_run",
    None,
    "Print the plan and its cost, and stop; needs no data and no accelerator. With a machine's name (v5p-64, v5e-16, "
    "h100-8, cpu-8, ...) also the mesh and the memory per device there, compiled where the installed JAX can.",
    boolean=True,
)
for flag in cluster.FLAGS:
    flags.declare_key_flag(flag)


def main(argv: list[str]) -> int:
    """The command; returns its exit code."""
    prepare_backend()
    if CONFIG.value is None:
        raise ConfigError("--config: required, e.g. --config=configs/pile_to_slimpajama.py (see --help)")
    plan = resolve(load(CONFIG.value, config_flags.get_override_values(flags.FLAGS["config"])))
    workdir = WORKDIR.value or str(workdirs.default_workdir(plan))
    if DRY_RUN.value is not None:
        folder = staging_folder(workdir) if is_remote(workdir) else workdirs.local(workdir, "--workdir")
        return dry_run(console_of(here()), plan, folder, DRY_RUN.value)
    found = cluster.of_flags(os.environ)
    with at_once(interrupted), joined(found, cluster.CONNECT_SECONDS.value) as processes:
        console = console_of(processes)
        with opened(workdir, partial(console.print, highlight=False, soft_wrap=True)) as folder:
            return launch(console, plan, folder)


def interrupted(signal_name: str) -> None:
    """End at once: no training is under way that could be saved first."""
    line = f"{signal_name}: stopped; what was saved before stays; go on with: {same_command()}\n"
    with contextlib.suppress(RuntimeError):  # the signal came while something was printed
        sys.stdout.flush()
    if here().first:
        os.write(sys.stdout.fileno(), line.encode())
    here().fail(line.strip(), STOPPED_BY_SIGNAL)
    os._exit(STOPPED_BY_SIGNAL)  # JAX, interrupted while it starts or compiles, can crash an orderly exit


def console_of(processes: Processes) -> Console:
    """Where this process prints: one of several does, the others have only errors to tell."""
    return Console(width=None if sys.stdout.isatty() else 160, quiet=not processes.first)


def dry_run(console: Console, plan: RunPlan, workdir: Path, machine: str) -> int:
    """Show the plan, and what it would take on a machine where one is named."""
    show_launch(console, plan, workdir)
    for line in topology_lines(plan, machine) if machine else ():
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    return 0


def launch(console: Console, plan: RunPlan, workdir: Path) -> int:
    """Train, or only report on a run that is complete, while no other process may."""
    if here().decide(lambda: plan.hash) != plan.hash:
        raise ConfigError(f"process {here().index}: its plan is not that of process 0; give all the same flags")
    if not here().first:
        return train(console, plan, workdir) if here().decide(lambda: True) else 0
    workdirs.prepare_workdir(workdir)
    with workdirs.lock(workdir, console.print):
        standing = workdirs.newest_step(workdir)
        workdirs.check(workdir, plan, standing)
        complete = standing >= plan.total_steps and finished(plan, workdir)
        if here().decide(lambda: not complete):
            return train(console, plan, workdir)
        show_launch(console, plan, workdir)
        workdirs.claim(workdir, plan, standing)
        console.print(f"done: all {plan.total_steps} steps are trained; nothing left to do but the report")
        show_result(console, workdir)
        return 0


def train(console: Console, plan: RunPlan, workdir: Path) -> int:
    """Train, then report; 75 where a signal stopped it."""
    from cpt.training.run import devices_text, run_training  # starts JAX; a dry run and a finished run need none
    from cpt.training.sharding import run_attention_line, run_mesh_line

    started = time.monotonic()
    used = run_mesh_line(plan.spec), run_attention_line(plan.spec)
    show_launch(console, plan, workdir, devices_text(), *used)
    outcome = run_training(plan, workdir, console)
    if outcome.stopped_by:
        saved = f"saved at step {outcome.step} of {plan.total_steps}"
        return stopped(console, f"{outcome.stopped_by}: {saved if outcome.step else 'before the first update'}")
    console.print(f"trained {outcome.step} steps; {time.monotonic() - started:.0f} s in all")
    if here().first:
        show_result(console, workdir)
    return 0


def stopped(console: Console, what: str) -> int:
    """Say what happened and how to go on."""
    console.print(f"{what}; go on with: {same_command()}", soft_wrap=True, markup=False)
    return STOPPED_BY_SIGNAL


def same_command() -> str:
    """What to type to go on."""
    return f"python -m cpt.main {shlex.join(sys.argv[1:])}"


if __name__ == "__main__":
    cli.run(main)
