"""Evaluate the checkpoints of a run after the fact: every set and probe, only what is missing.

  python -m cpt.evaluate --workdir=runs/demo-3f9c2a71
  python -m cpt.evaluate --workdir=runs/demo-3f9c2a71 --steps=every:100 --sets=pile
  python -m cpt.evaluate --workdir=runs/demo-3f9c2a71 --config=more_sets.py       # sets and probes of another recipe
  python -m cpt.evaluate --workdir=runs/demo-3f9c2a71 --again                     # does it give the loop's digits?
  python -m cpt.evaluate --workdir=runs/demo-3f9c2a71 --harness=lambada_openai,sciq --steps=0,600
  python -m cpt.evaluate --models='pythia-160m-step*' --config=sets.py --out=evaluated/pythia
  python -m cpt.evaluate --list                                                   # the probes that there are

Stopped and run again it goes on where it was. The rows go to the run's eval.jsonl and probes.jsonl, beside those of the
loop and with the name of their checkpoint, and its report is made again. Hugging Face directories are evaluated on the
sets of a recipe, into a folder that is reported on like a run. Tasks of lm-evaluation-harness need the extra `harness`.
"""

from __future__ import annotations

import glob
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import config_flags
from rich.console import Console

from cpt import cli
from cpt.backend import prepare_backend
from cpt.config import RunSpec, load
from cpt.errors import ConfigError, RunError
from cpt.rooms import show_rooms
from cpt.training.remote import opened

if TYPE_CHECKING:
    from cpt.training.evaluation_rows import Done


def define_flags() -> None:
    """The command's flags; only defined when it is run, since other commands use the same names."""
    flags.DEFINE_string("workdir", None, "Run directory, or gs://bucket/run.")
    flags.DEFINE_string("steps", "all", "Which checkpoints: all, every:N, or steps separated by commas.")
    flags.DEFINE_list("sets", [], "Sets and probes, separated by commas; all by default.")
    config_flags.DEFINE_config_file(
        "config", None, "Recipe with further sets, probes and sources.", lock_config=False, accept_new_attributes=True
    )
    flags.DEFINE_list("models", [], "Hugging Face directories, separated by commas, or with * and ?.")
    flags.DEFINE_string("out", None, "Folder for the rows of --models.")
    flags.DEFINE_integer("tokens_per_step", 1, "Tokens per step of --models, whose step is the number in their name.")
    flags.DEFINE_list("harness", [], "Tasks of lm-evaluation-harness; sets and probes are then only those of --sets.")
    flags.DEFINE_string("tasks", None, "Folder of further task files (YAML).")
    flags.DEFINE_integer("num_fewshot", None, "Solved examples in each prompt; what each task says by default.")
    flags.DEFINE_integer("limit", None, "Ask only the first so many documents of each task.", lower_bound=1)
    flags.DEFINE_bool("again", False, "Also what the loop evaluated, and say whether the digits are the same.")
    flags.DEFINE_bool("list", False, "Show the probes that there are.")


def main(argv: list[str]) -> None:
    """Read the flags, evaluate, make the report again, say what came of it."""
    del argv
    given = flags.FLAGS
    if given.list:
        show_rooms({"evaluation.probes.<name>.kind": "cpt.evaluators.probes"})
        return
    recipe: RunSpec | None = None
    if given.config is not None:
        recipe = load(given.config, config_flags.get_override_values(given["config"]))
    if bool(given.workdir) == bool(given.models):
        raise ConfigError("--workdir or --models: give one, e.g. --workdir=runs/demo-3f9c2a71 (see --help)")
    if given.models and (recipe is None or not given.out):
        raise ConfigError("--models: needs --config, a recipe with the sets, and --out, a folder for the rows")
    wanted, models = steps_of(given.steps), [path for entry in given.models for path in _expand(entry)]
    prepare_backend()
    from cpt.reports.page import write_report
    from cpt.training.benchmarks import Benchmarks  # starts JAX
    from cpt.training.evaluating import evaluate_run
    from cpt.training.evaluating_models import evaluate_models

    names = given.sets or None
    tasks_folder = Path(given.tasks) if given.tasks else None
    benchmarks = Benchmarks(tuple(given.harness), tasks_folder, given.num_fewshot, given.limit)
    asked = benchmarks if given.harness else None
    console = Console(highlight=False)
    say = lambda line: console.print(line, soft_wrap=True, markup=False)  # noqa: E731
    with opened(given.workdir or given.out, say) as folder:
        with _bar(console) as progress:
            if given.models:
                done = evaluate_models(models, recipe, folder, names, say, asked, given.tokens_per_step, progress)
            else:
                done = evaluate_run(folder, wanted, names, recipe, given.again, say, asked, progress)
        for line in told(done):
            say(line)
        say(f"report: {write_report(folder)}")
    if done.unequal:
        raise RunError(f"{folder}: {len(done.unequal)} rows differ from the loop's; first {done.unequal[0]}")


def _expand(entry: str) -> list[Path]:
    """A pattern stands for the directories it matches."""
    if Path(entry).exists() or not glob.has_magic(entry):
        return [Path(entry)]
    if not (found := [Path(p) for p in sorted(glob.glob(entry)) if Path(p).is_dir()]):
        raise RunError(f"--models={entry}: matches no directory")
    return found


def steps_of(text: str) -> Callable[[list[int]], list[int]]:
    """What `--steps` picks from the steps that have a checkpoint.

    Raises:
      ConfigError: it is not understood. The function raises RunError for a step without a checkpoint.
    """
    kind, _, number = text.partition(":")
    if text == "all":
        return lambda there: there
    if kind == "every" and number.isdigit() and int(number):
        return lambda there: [s for s in there if s % int(number) == 0]
    parts = text.split(",")
    if not all(p.strip().isdigit() for p in parts):
        raise ConfigError(f"--steps={text}: not understood; say all, every:N, or steps separated by commas")
    asked = sorted({int(p) for p in parts})

    def listed(there: list[int]) -> list[int]:
        for step in asked:
            if step not in there:
                near = sorted(there, key=lambda s: (abs(s - step), s))[:6]
                raise RunError(f"--steps: no checkpoint of step {step}; nearest: {', '.join(map(str, sorted(near)))}")
        return asked

    return listed


def told(done: Done) -> list[str]:
    """What came of it, in words."""
    if not done.checkpoints and not done.skipped:
        return ["nothing is missing: every checkpoint has its rows"]
    each, restoring, evaluating = (t / max(done.checkpoints, 1) for t in (done.wall_s, done.restore_s, done.forward_s))
    lines = [
        f"{done.rows} rows of {done.checkpoints} checkpoints in {done.wall_s:.1f} s: {each:.2f} s each, with "
        f"{restoring:.2f} s of restoring and {evaluating:.2f} s of evaluating, one behind the other"
    ]
    if done.compared:
        same = done.compared - len(done.unequal)
        lines.append(f"{same} of {done.compared} rows equal those of the loop bit for bit")
    if done.skipped:
        lines.append(f"damaged and left out: {', '.join(done.skipped)}")
    return lines


def _bar(console: Console):
    """Progress in a terminal, a line now and then elsewhere; gives a function of (done, all)."""
    import contextlib

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    @contextlib.contextmanager
    def shown():
        bar = Progress(
            TextColumn("checkpoints"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(), console=console,
            disable=not console.is_terminal,
        )  # fmt: skip
        with bar:
            task = bar.add_task("", total=None)
            yield lambda done, of: bar.update(task, completed=done, total=of)

    return shown()


if __name__ == "__main__":
    define_flags()
    cli.run(main)
