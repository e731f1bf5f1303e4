"""Everything between a plan and a trained run: check the backend, open the data, train, note the environment."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import jax
from rich.console import Console

from cpt.data.preparing import open_sources
from cpt.evaluators.overlap import overlap_lines
from cpt.evaluators.rows import write_atomic
from cpt.plan import RunPlan
from cpt.training.accounting import Account
from cpt.training.branches import branch_plans, finished
from cpt.training.feed import Data
from cpt.training.loggers import check_loggers
from cpt.training.loop import Outcome, train
from cpt.training.processes import here
from cpt.training.selfcheck import selfcheck
from cpt.training.workdir import prepare_workdir

PACKAGES = ("cpt", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "tokenizers")


def run_training(plan: RunPlan, workdir: Path, console: Console) -> Outcome:
    """Train `plan` in `workdir`, then its annealed branches; see `cpt.training.loop.train` for what it raises."""
    with Account().watching() as account:
        return _run(plan, workdir, console, account)


def _run(plan: RunPlan, workdir: Path, console: Console, account: Account) -> Outcome:
    started = time.time()
    say = lambda line: console.print(line, highlight=False)  # noqa: E731
    if here().first:
        check_loggers(plan.spec.loggers)
    selfcheck()
    data = open_data(plan, say)
    sources, tokenizer = data.sources, data.tokenizer
    for line in overlap_lines(plan, sources):
        console.print(line, style="yellow", highlight=False, soft_wrap=True)
    before = seconds_before(workdir)
    which = None if tokenizer is None else tokenizer.hash
    write_environment(workdir, started, 0.0, 0, before, which)
    outcome = train(plan, data, workdir, console, account)
    busy_s = {k: v + before.get(k, 0.0) for k, v in account.seconds().items()}
    write_environment(workdir, started, time.time() - started, outcome.step, busy_s, which)
    for folder, child in branch_plans(plan, workdir).items():
        if outcome.stopped_by is None and not here().decide(partial(finished, child, folder)):
            say(f"branch at step {child.spec.branch.at}: {child.phases[-1].schedule.describe()}")
            if here().first:
                prepare_workdir(folder)
            stopped_by = train(child, data, folder, console).stopped_by
            outcome = replace(outcome, stopped_by=stopped_by)
    return outcome


def open_data(plan: RunPlan, say: Callable[[str], None]) -> Data:
    """The data of a run. Of several processes the first one makes the stores that are not there yet."""
    asked = plan.spec.sources, plan.spec.tokenizer, Path(plan.spec.stores)
    opened = open_sources(*asked, say) if here().first else None
    here().meet()
    return Data(*(opened or open_sources(*asked, say)))


def devices_text() -> str:
    """`jax 0.10.1 · 8 x cpu · 4 processes`; starts the backend."""
    processes = f" · {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"jax {jax.__version__} · {jax.device_count()} x {jax.devices()[0].device_kind}{processes}"


def seconds_before(workdir: Path) -> dict[str, float]:
    """Seconds by activity of the launches before this one, as far as they ended in order."""
    try:
        facts = json.loads((workdir / "environment.json").read_text())
    except (OSError, ValueError):
        return {}
    return {k.removeprefix("seconds/"): v for k, v in facts.items() if k.startswith("seconds/")}


def write_environment(
    workdir: Path, started: float, wall_s: float, step: int, busy_s: dict | None = None, tokenizer: str | None = None
) -> None:
    """`environment.json`: versions, devices, command and time of the last launch, seconds by activity of all."""
    if not here().first:
        return
    facts = {
        **{f"version/{name}": version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": devices_text(),
        "processes": jax.process_count(),
        "command": " ".join(sys.argv),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "wall_s": round(wall_s, 3),
        "reached_step": step,
        "tokenizer": tokenizer,
        **{f"seconds/{k}": round(v, 3) for k, v in (busy_s or {}).items()},
    }
    write_atomic(workdir / "environment.json", json.dumps(facts, indent=1))
