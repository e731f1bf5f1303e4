"""The checkpoints of a run: which there are, whether they are sound, and which may go.

    python -m cpt.checkpoints ls --workdir=runs/demo-3f9c2a71
    python -m cpt.checkpoints verify --workdir=runs/demo-3f9c2a71
    python -m cpt.checkpoints prune --workdir=runs/demo-3f9c2a71 --keep_rolling=1 --keep_grid_every=1000 --dry_run

`verify` reads every array on this machine, whatever the run was trained on, and ends with code 2 if one is damaged.
`prune` keeps the newest full checkpoint that is sound, and every anchor unless `--drop_anchors`; nothing goes without a
rule that says so, and nothing while a run trains there.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cpt.cli import run
from cpt.errors import ConfigError, RunError
from cpt.training.preservation import (
    FULL_KINDS,
    KINDS,
    Saved,
    bytes_of,
    checkpoints_of,
    directory_of,
    facts_of,
    finished,
    is_remote,
    remove,
    set_aside_in,
    superfluous,
    unfinished,
)
from cpt.training.remote import explained
from cpt.training.workdir import is_training, lock
from cpt.units import human

VERBS = ("ls", "verify", "prune")


def define_flags() -> None:
    """The command's flags; only defined when it is run, since other commands use the same names."""
    flags.DEFINE_string("workdir", None, "Run directory, a path or a URL.")
    flags.DEFINE_integer("keep_rolling", None, "prune: how many of the newest rolling checkpoints stay.", lower_bound=0)
    flags.DEFINE_integer(
        "keep_grid_every", None, "prune: grid checkpoints stay at multiples of so many steps, and the newest.",
        lower_bound=1,
    )  # fmt: skip
    flags.DEFINE_bool("drop_anchors", False, "prune: anchors go as well.")
    flags.DEFINE_bool("drop_damaged", False, "prune: what was moved to checkpoints/damaged goes.")
    flags.DEFINE_bool("dry_run", False, "prune: only say what would go.")


def main(argv: list[str]) -> int:
    """The command; returns its exit code."""
    given = flags.FLAGS
    if not given.workdir:
        raise ConfigError("--workdir: required (see --help)")
    console = Console(width=None if Console().is_terminal else 160)
    say = lambda line: console.print(line, highlight=False, soft_wrap=True, markup=False)  # noqa: E731
    with explained(f"--workdir={given.workdir}"):
        root = directory_of(given.workdir)
        directory = checkpoints_of(root)
        if not directory.is_dir():
            raise RunError(f"{given.workdir}: no checkpoints in it; give the directory of a run")
        if argv[1] == "ls":
            console.print(table_of(root))
        elif argv[1] == "verify":
            verify(finished(directory, KINDS), say)
        else:
            rules = {name: getattr(given, name) for name in ("keep_rolling", "keep_grid_every")}
            prune(root, rules, given.drop_anchors, given.drop_damaged, given.dry_run, say)
    return 0


def table_of(root: Any) -> Table:
    """A row per checkpoint, newest first: kind, step, tokens, phase, bytes, age, plan; and what is no checkpoint."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for head in ("checkpoint", "step", "tokens", "phase", "size", "age", "state", "plan"):
        table.add_column(head, justify="left" if head in ("checkpoint", "phase", "state", "plan") else "right")
    ends = _phase_ends(root)
    directory = checkpoints_of(root)
    for saved in finished(directory, KINDS):
        facts = facts_of(saved)
        state = Text("finished") if facts else Text("unreadable", "red")
        phase = next((name for name, end in ends if saved.step <= end), "")
        tokens = human(facts["tokens"]) if "tokens" in facts else ""
        cells = [tokens, phase, _size(bytes_of(saved.path)), _age(saved, facts), state, facts.get("plan_hash", "")[:8]]
        table.add_row(saved.kind, f"{saved.step:,}", *cells)
    for path in unfinished(directory):
        table.add_row(path.parent.name, "", "", "", _size(bytes_of(path)), "", Text("unfinished", "yellow"), "")
    for path in set_aside_in(directory):
        table.add_row(path.name, "", "", "", _size(bytes_of(path)), "", Text("set aside as damaged", "red"), "")
    return table


def verify(found: Sequence[Saved], say: Callable[[str], None]) -> None:
    """Read every checkpoint, one line each.

    Raises:
      RunError: one of them is damaged, or cannot be read now.
    """
    bad = []
    for saved in found:
        begun = time.monotonic()
        why = _damage(saved)
        if why and not saved.path.is_dir():
            say(f"{saved}: gone meanwhile; a run trains there")
            continue
        if why:
            bad.append(saved)
        took = f"{_size(bytes_of(saved.path))}, {time.monotonic() - begun:.1f} s"
        say(f"{saved}: {f'DAMAGED ({why})' if why else 'sound'}  {took}")
    if bad:
        raise RunError(
            f"{len(bad)} of {len(found)} checkpoints are damaged: {', '.join(map(str, bad))}; a run goes on from "
            "the one before; bring them back from a copy, or leave them to it"
        )
    say(f"{len(found)} checkpoints, all sound")


def prune(
    root: Any, rules: dict[str, int | None], anchors: bool, damaged: bool, dry_run: bool, say: Callable[[str], None]
) -> None:
    """Remove what the rules let go, or only say what that would be.

    Raises:
      ConfigError: no rule is given.
      RunError: a run trains there, or none of its full checkpoints is sound.
    """
    if not (anchors or damaged or any(n is not None for n in rules.values())):
        raise ConfigError("prune: needs a rule: --keep_rolling, --keep_grid_every, --drop_anchors or --drop_damaged")
    directory = checkpoints_of(root)
    with _alone(root, say, dry_run):
        found = finished(directory, KINDS)
        going = superfluous(found, **rules, anchors=anchors)
        if going and (sound := _newest_sound(found)):
            going = [saved for saved in going if saved != sound]
            say(f"{sound} is the newest full checkpoint that is sound; it stays")
        aside = set_aside_in(directory) if damaged else []
        does, total = "would remove" if dry_run else "removing", 0
        doomed = [(str(s), s.path, partial(remove, s)) for s in going] + [(str(p), p, p.rmtree) for p in aside]
        for name, path, let_go in doomed:
            size = bytes_of(path)
            total += size
            say(f"{does} {name}  {_size(size)}")
            if not dry_run:
                let_go()
        went = "would go" if dry_run else "gone"
        say(f"{len(doomed)} {went}, {_size(total)}; {len(found) - len(going)} checkpoints stay")


@contextlib.contextmanager
def _alone(root: Any, say: Callable[[str], None], dry_run: bool) -> Any:
    """While no run trains there."""
    if is_remote(root):
        say(f"{root}: whether a run trains there cannot be seen from here; do not prune while one does")
        yield
    elif dry_run:
        if is_training(Path(root)):
            say(f"{root}: a run trains there; without --dry_run this would be refused")
        yield
    else:
        with lock(Path(root), say):
            yield


def _newest_sound(found: Sequence[Saved]) -> Saved | None:
    full = [s for s in found if s.kind in FULL_KINDS]
    for saved in full:
        if not _damage(saved):
            return saved
    if full:
        raise RunError(f"{full[0].path.parent.parent}: none of its full checkpoints is sound; nothing was removed")
    return None


def _damage(saved: Saved) -> str:
    from cpt.training.verifying import damage  # starts JAX, which a listing does without

    return damage(saved)


def _phase_ends(root: Any) -> list[tuple[str, int]]:
    try:
        phases = json.loads((root / "plan.json").read_text())["phases"]
        return [(p["name"], p["first_step"] + p["steps"]) for p in phases]
    except (OSError, ValueError, KeyError, TypeError):  # a directory of checkpoints alone is worth a listing too
        return []


def _size(length: int) -> str:
    return f"{human(length)}B"


def _age(saved: Saved, facts: dict[str, Any]) -> str:
    seconds = time.time() - facts.get("saved", saved.path.stat().mtime)
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


if __name__ == "__main__":
    define_flags()
    run(main, VERBS)
