"""The runs of a folder in the terminal: how far each is and what it has come to."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from cpt.errors import RunError, UserError
from cpt.evaluators import formatting as fmt
from cpt.evaluators.rows import RunFiles, is_run, read_run
from cpt.evaluators.summary import downstream, summary_of, upstream
from cpt.training.workdir import is_training

STALE_S = 120.0
"""Seconds without a new row after which a run that holds no lock counts as stopped."""


def runs_in(folder: Path) -> list[Path]:
    """The run directories in `folder`, itself included, and those of sweeps and branches below it, by name.

    Raises:
      RunError: there is no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise RunError(f"--list={folder}: no such folder")
    found, below = [folder] if is_run(folder) else [], [folder]
    for place in below:  # grows while it is read
        for path in sorted(p for p in place.iterdir() if p.is_dir() and not p.name.startswith(".")):
            if is_run(path):
                found.append(path)
                below += [path / "branches"] if (path / "branches").is_dir() else []
            elif len(path.relative_to(folder).parts) < 4:
                below.append(path)
    if not found:
        raise RunError(f"--list={folder}: no run in it; runs are in the folder that training printed as 'run'")
    return sorted(found)


def run_table(folder: Path) -> Table:
    """A row per run: state, steps, tokens, what was forgotten and learned, when it last wrote."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for head in ("run", "state", "steps", "tokens", "forgot", "learned", "last row"):
        table.add_column(head, justify="left" if head in ("run", "state") else "right", no_wrap=head == "run")
    for path in runs_in(folder):
        name = str(path.relative_to(folder))
        try:
            cells = _cells(read_run(path))
        except UserError as e:
            cells = [Text(f"unreadable: {e}", "red")]
        table.add_row(Text(name), *cells)
    return table


def state(run: RunFiles, now: float | None = None) -> str:
    """`finished`, `training`, `stopped` or `new`, by its rows and by whether a process holds its lock."""
    total = run.plan.get("total_steps")
    if total is not None and run.last_step >= total:
        return "finished"
    if is_training(run.path):
        return "training"
    written = _last_written(run.path)
    if written is None:
        return "new"
    # On a file system without locks only the rows can tell.
    return "training" if (time.time() if now is None else now) - written < STALE_S else "stopped"


def _cells(run: RunFiles) -> list[Any]:
    summary = summary_of(run)
    standing = state(run)
    total, written = run.plan.get("total_steps"), _last_written(run.path)
    steps = f"{run.last_step:,}" + (f" of {total:,}" if total else "")
    colour = {"finished": "green", "training": "cyan", "stopped": "yellow"}.get(standing, "")
    last = fmt.DASH if written is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(written))
    changes = [_mean(summary, names(summary)) for names in (upstream, downstream)]
    return [Text(standing, colour), steps, fmt.tokens(run.last_tokens), *map(fmt.signed, changes), last]


def _mean(summary: dict[str, Any], names: list[str]) -> float | None:
    values = [summary["sets"][n]["forgetting"] for n in names]
    return None if not values or None in values else sum(values) / len(values)


def _last_written(path: Path) -> float | None:
    times = []
    for name in ("metrics.jsonl", "eval.jsonl"):
        with contextlib.suppress(OSError):
            found = (path / name).stat()
            times += [found.st_mtime] if found.st_size else []
    return max(times, default=None)
