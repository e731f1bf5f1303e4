"""Train many runs of one recipe that differ in a few fields; any number of workers, on any number of machines.

  python -m cpt.sweep --config=configs/pile_to_slimpajama.py --sweep=configs/sweeps/rewarm_peak.py --dry_run
  python -m cpt.sweep --config=configs/pile_to_slimpajama.py --sweep=configs/sweeps/rewarm_peak.py --workers=2
  python -m cpt.sweep --config=configs/pile_to_slimpajama.py --sweep=configs/sweeps/rewarm_peak.py \\
      --config.phases.slimpajama.tokens=200e3 --storage=postgresql://me@db/sweeps --out=/shared/rewarm   # each machine
  python -m cpt.report --workdir='runs/rewarm_peak/*' --out=answer.html

The same command again goes on where the sweep stopped: runs that are finished are not trained again, killed ones go on
from their checkpoint, and what was added to the sweep file is trained as well. Ctrl-C saves first. Each run is a
directory <out>/<name>-<hash of its plan> of its own, with its output in trial.log. The storage may be an SQLite file
(sqlite:///FILE), a PostgreSQL database (extra `postgres`) or a journal file (journal:FILE, the default, in --out); all
of them open in optuna-dashboard. Where CUDA_VISIBLE_DEVICES names several devices, --workers share them out.
"""

from __future__ import annotations

import os
import re
import sys

from absl import flags
from rich.console import Console

from cpt import cli
from cpt.errors import ConfigError
from cpt.sweeps.crew import run_crew
from cpt.sweeps.definition import Sweep, origin, read_sweep
from cpt.sweeps.queue import Queue
from cpt.sweeps.recipe import Candidate, Recipe
from cpt.sweeps.storage import open_storage, open_study, shown
from cpt.sweeps.table import plan_of_grid, plan_of_search, results
from cpt.sweeps.worker import Worker
from cpt.training.workdir import local


def define_flags() -> None:
    """The command's flags; only defined when it is run, since other commands use the same names."""
    flags.DEFINE_string("config", None, "Recipe that is varied: FILE.py or FILE.py:ARGUMENT.")
    flags.DEFINE_string("sweep", None, "What to vary: FILE.py or FILE.py:ARGUMENT, see configs/sweeps/.")
    flags.DEFINE_string("storage", None, "sqlite:///FILE, postgresql://USER@HOST/DATABASE or journal:FILE.")
    flags.DEFINE_integer("workers", 1, "Runs that are trained at a time on this machine.", lower_bound=1)
    flags.DEFINE_string("out", None, "Folder of the runs (default: runs/<name of the sweep>).")
    flags.DEFINE_bool("dry_run", False, "List the runs with their cost and state, and stop.")
    flags.DEFINE_bool("retry_failed", False, "Train those that failed once more.")
    flags.DEFINE_float(
        "grace", 120.0, "Seconds without a sign of life after which another worker counts as gone.", lower_bound=1.0
    )
    flags.DEFINE_integer("worker", None, "Number of this worker; set by --workers.")


def main(overrides: list[str]) -> int:
    """The command; `overrides` are its `--config.a.b=value`. Returns its exit code."""
    given = flags.FLAGS
    for name, example in (("config", "configs/pile_to_slimpajama.py"), ("sweep", "configs/sweeps/rewarm_peak.py")):
        if not given[name].value:
            raise ConfigError(f"--{name}: required, e.g. --{name}={example} (see --help)")
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    sweep = read_sweep(given.sweep)
    recipe = Recipe(given.config, tuple(overrides), local(given.out or f"runs/{sweep.name}", "--out"))
    candidates, middle = check(sweep, recipe)
    table, cost = plan_of_search(sweep, middle) if sweep.space.ranges else plan_of_grid(sweep, candidates)
    if given.dry_run:
        console.print(table)
        console.print(cost)
        return 0
    url = given.storage or f"journal:{recipe.out / 'journal.log'}"
    queue = open_queue(sweep, recipe, candidates, url, given.grace)
    say = lambda line: console.print(line, soft_wrap=True, markup=False)  # noqa: E731
    if given.worker is not None:
        return Worker(queue, say).run()
    queue.fill(given.retry_failed)
    console.print(f"sweep {sweep.name} · {cost}")
    say(f"storage {shown(url)} · runs in {recipe.out}")
    code = Worker(queue, say).run() if given.workers == 1 else run_crew(given.workers, sys.argv, say)
    return finish(console, queue, code)


def check(sweep: Sweep, recipe: Recipe) -> tuple[list[Candidate], Candidate]:
    """The runs of a grid, and one run to stand for all; every mistake in field, value, metric shows here.

    Raises:
      ConfigError: the first of them.
    """
    candidates = recipe.points(sweep)
    middle = candidates[0] if candidates else recipe.check_ranges(sweep)
    sweep.metric.check(middle.plan)
    if sweep.prune is not None:
        origin(middle.plan, sweep.prune.since)
    return candidates, middle


def open_queue(sweep: Sweep, recipe: Recipe, candidates: list[Candidate], url: str, grace_s: float) -> Queue:
    """The trials of the sweep in its storage. Raises what opening the storage does."""
    storage = open_storage(url)
    study = open_study(storage, sweep, recipe.base, url)
    return Queue(study, storage, sweep, recipe, {c.directory.name: c for c in candidates}, grace_s)


def finish(console: Console, queue: Queue, code: int) -> int:
    """Show what came of it; 2 where a trial failed, else `code`."""
    table, lines = results(queue)
    console.print()
    console.print(table)
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)
    console.print(f"compare: python -m cpt.report --workdir='{queue.recipe.out}/*' --out=answer.html", soft_wrap=True)
    failed = sum(t.state.name == "FAIL" for t in queue.trials())
    if failed:
        console.print(f"{failed} failed; mend what their lines say, then the same command with --retry_failed")
    return 2 if failed and code == 0 else code


def run() -> int:
    """The command line."""
    is_override = re.compile(r"--?(no)?config\.").match
    overrides = [a for a in sys.argv[1:] if is_override(a)]
    define_flags()
    return cli.call(lambda _: main(overrides), [a for a in sys.argv if not is_override(a)])


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(run())
