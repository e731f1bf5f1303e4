"""Whose run directory this is, and whether the plan may go on in it.

The past of a run cannot be edited: what was trained on was trained on. Its future can: more tokens, another schedule
from here on, a further phase. So a plan that differs from the one on disk is compared step by step up to where the run
stands.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cpt.config import RunSpec
from cpt.data.mix import row_counts
from cpt.errors import ConfigError, RunError, UserError
from cpt.evaluators.rows import write_atomic
from cpt.identity import identity
from cpt.plan import Phase, RunPlan, resolve
from cpt.sections import parse, to_dict
from cpt.training.preservation import checkpoints_of, finished, move

# Changing these does not touch what was learned so far.
FUTURE_FIELDS = ("order", "phases", "sources", "evaluation", "checkpoints", "guard", "branch", "anneal", "name")


def default_workdir(plan: RunPlan) -> Path:
    return Path("runs") / f"{plan.name}-{plan.hash[:8]}"


def local(given: str, field: str) -> Path:
    """`given` as a path.

    Raises:
      ConfigError: it is a URL; as a path it would be a folder of that name on this machine, lost with it.
    """
    if "://" in given:
        raise ConfigError(
            f"{field}={given}: a run directory is a path, not a URL; give one on a disk that all hosts share (NFS, "
            "Filestore, Lustre), or a mount that can rename directories"
        )
    return Path(given)


def prepare_workdir(workdir: Path) -> None:
    """Create the directory and make sure that it can be written.

    Raises:
      RunError: it cannot.
    """
    probe = workdir / ".writable"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as e:
        raise RunError(f"{workdir}: cannot write there ({e.strerror}); give another --workdir") from e


@contextlib.contextmanager
def lock(
    workdir: Path, say: Callable[[str], None] = lambda line: None, name: str = ".lock", does: str = "trains"
) -> Iterator[None]:
    """Hold the directory against other processes; the system lets go of it however this one ends.

    Args:
      say: receives a warning where the file system has no locks.
      name, does: the file that is held, and what whoever holds it does there.

    Raises:
      RunError: another process does that there.
    """
    # Without a buffer, so that a full disk cannot fail when the file is closed.
    with (workdir / name).open("ab+", buffering=0) as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            f.seek(0)
            raise RunError(
                f"{workdir}: another process {does} there ({f.read().decode().strip() or 'unknown'}); "
                "wait for it, or give another --workdir"
            ) from e
        except OSError as e:
            say(f"{workdir}: cannot be locked there ({e.strerror}); do not use it from two processes at a time")
        with contextlib.suppress(OSError):  # who holds it is for the other's message only
            f.truncate(0)
            f.write(f"process {os.getpid()} on {platform.node()}".encode())
        yield


def is_training(workdir: Path) -> bool:
    """Whether a process holds the run's lock; asking neither makes nor keeps it."""
    try:
        handle = os.open(workdir / ".lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


def stored_plan(workdir: Path) -> tuple[RunPlan, dict[str, Any]] | None:
    """The plan that `workdir` belongs to and its `plan.json`, or None.

    Raises:
      RunError: there is a plan.json that this version cannot read.
    """
    path = workdir / "plan.json"
    if not path.exists():
        if workdir.is_dir() and checkpoints_of(workdir).exists():
            raise RunError(
                f"{workdir}: holds checkpoints but no plan.json; it is not a run of ours, give another --workdir"
            )
        return None
    try:
        stored = json.loads(path.read_text())
        return resolve(parse(RunSpec, stored["spec"])), stored
    except (ValueError, KeyError, TypeError, UserError) as e:
        raise RunError(f"{path}: not a plan that this version reads ({e}); give another --workdir") from e


def check(workdir: Path, plan: RunPlan, step: int) -> list[dict[str, Any]]:
    """Whether the run in `workdir` may go on with `plan` from `step`; writes nothing.

    Returns:
      The plans it had before, as `plan.json` keeps them under `history`.

    Raises:
      ConfigError: the plan differs from the stored one before `step`; names phase and field.
    """
    if not (stored := stored_plan(workdir)):
        return []
    old, raw = stored
    history = raw.get("history", [])
    # A mistake that stopped the run before it recorded anything can be mended in place.
    if old.hash == plan.hash or not (step or _recorded(workdir)):
        return history
    # A child's past is checked against its parent's; under which path the parent was found is no part of it.
    if difference := changed_past(old, plan, step, child=plan.spec.init.what == "all"):
        raise ConfigError(
            f"{workdir} belongs to another plan: {difference}; give another --workdir, "
            "or leave what was trained as it was"
        )
    return [*history, {"hash": old.hash, "until_step": step}]


def claim(workdir: Path, plan: RunPlan, step: int) -> None:
    """Write the plan into `workdir`, from `step` on the one that is trained there. Raises what `check` does."""
    history = check(workdir, plan, step)
    if (stored := stored_plan(workdir)) and stored[0].hash != plan.hash:
        _set_aside(workdir, step, stored[0].hash)
    text = {**plan.to_json(), "history": history}
    write_atomic(workdir / "plan.json", json.dumps(text, indent=1))
    write_atomic(workdir / "config.json", json.dumps(to_dict(plan.spec), indent=1))


def inherit(parent: Path, workdir: Path, plan: RunPlan, step: int) -> None:
    """Make `workdir` a child of the run in `parent`: its rows up to `step` are the child's past as well.

    Raises:
      RunError: `parent` holds no run.
      ConfigError: the plan's past is another than that of `parent`.
    """
    if (stored := stored_plan(parent)) is None:
        raise RunError(f"init.from_run: {parent} holds no plan.json; give the directory of a run")
    if difference := changed_past(stored[0], plan, step, child=True):
        raise ConfigError(f"init.what=all: {parent} has another past: {difference}; a child shares it up to its branch")
    if (parent / "eval_sets.json").exists() and not (workdir / "eval_sets.json").exists():
        write_atomic(workdir / "eval_sets.json", (parent / "eval_sets.json").read_text())
    # Without a checkpoint of its own the child begins at the parent's, which may be further by now than the first time.
    begins = newest_step(workdir) == 0
    for name in ("metrics.jsonl", "eval.jsonl", "eval_sequences.jsonl", "probes.jsonl"):
        if (parent / name).exists() and (begins or not (workdir / name).exists()):
            *lines, _unfinished = (parent / name).read_text().split("\n")
            rows = [line for line in lines if json.loads(line)["step"] <= step]
            write_atomic(workdir / name, "".join(line + "\n" for line in rows))


def _recorded(workdir: Path) -> bool:
    """Whether the run wrote a result; its files are made, empty, when it starts."""
    files = [workdir / name for name in ("metrics.jsonl", "eval.jsonl")]
    return any(f.exists() and f.stat().st_size > 0 for f in files)


def _set_aside(workdir: Path, step: int, plan_hash: str) -> None:
    """Move the parameter-only checkpoints beyond `step`, which the old plan trained, out of the new plan's way.

    What was evaluated of them goes too: rows of two plans in one curve would be nobody's.
    """
    for name in ("eval.jsonl", "eval_sequences.jsonl", "probes.jsonl"):
        if (file := workdir / name).exists():
            *lines, _unfinished = file.read_text().split("\n")
            kept = [line for line in lines if json.loads(line)["step"] <= step]
            write_atomic(file, "".join(line + "\n" for line in kept))
    checkpoints = checkpoints_of(workdir)
    for saved in finished(checkpoints, ("grid",)):
        if saved.step > step:
            move(saved, checkpoints / "superseded" / plan_hash[:8] / f"grid-{saved.step}")


def changed_past(old: RunPlan, new: RunPlan, step: int, child: bool = False) -> str | None:
    """The first field in which two plans differ before `step`, as `phases.pile.lr: ...`; None if only later ones do.

    Args:
      child: `new` branches off `old`, so where they were initialised from may differ.
    """
    a, b = identity(old.spec), identity(new.spec)
    for field in a:
        if field not in (*FUTURE_FIELDS, *(("init",) if child else ())) and a[field] != b[field]:
            return _difference(field, a[field], b[field])
    for name, was in a["evaluation"]["sets"].items():
        now = b["evaluation"]["sets"].get(name, was)
        if step > 0 and {**was, "tags": None} != {**now, "tags": None}:
            return _difference(f"evaluation.sets.{name}", was, now)
    for name, was in a["evaluation"]["probes"].items():
        now = b["evaluation"]["probes"].get(name, was)
        if step > 0 and any(was[key] != now[key] for key in ("kind", "options")):
            return _difference(f"evaluation.probes.{name}", was, now)
    for name in {c.source for p in old.phases if p.first_step < max(step, 1) for c in p.columns if c.source}:
        # How many epochs are allowed decides nothing about the rows read so far.
        was_source, now_source = ({**c["sources"].get(name, {}), "epochs": None} for c in (a, b))
        if was_source != now_source:
            return _difference(f"sources.{name}", was_source, now_source)
    if step and old.varies != new.varies:
        return "phases.*.b2 and weight_decay: the optimizer's state was made for values that do or do not change"
    for was in old.phases:
        if was.first_step >= step:
            return None
        if was.index >= len(new.phases) or new.phases[was.index].name != was.name:
            return f"phases.{was.name}: the run trained it already, the new plan does not have it there"
        if found := _changed_phase(was, new.phases[was.index], step, a["optimizer"]):
            return found
    return None


def _changed_phase(was: Phase, now: Phase, step: int, own: Mapping[str, float]) -> str | None:
    """As `changed_past`, for a phase; `own` are the optimizer's beta2 and weight decay."""
    where = f"phases.{was.name}"
    # At its very end a phase can still grow; one step into the next, its length is history.
    if was.end < step and now.steps != was.steps:
        return f"{where}.tokens: {was.tokens:,} were trained, the new plan says {now.tokens:,}"
    if now.end < min(step, was.end):
        return f"{where}.tokens: the run is at step {step}, the new plan ends the phase at {now.end}"
    a, b = to_dict(was.spec), to_dict(now.spec)
    for field in ("weights", "optimizer"):
        if a[field] != b[field]:
            return _difference(f"{where}.{field}", a[field], b[field])
    if _replay_data(was) != _replay_data(now):
        return _difference(f"{where}.replay", a["replay"], b["replay"])
    if was.columns != now.columns:
        return _difference(f"{where}.mix", a["mix"], b["mix"])
    for s in range(min(was.steps, step - was.first_step)):
        if was.schedule(s) != now.schedule(s):
            at = was.first_step + s
            return f"{where}.lr: at step {at} it was {was.schedule(s):g}, the new plan says {now.schedule(s):g}"
        for field in ("b2", "weight_decay"):
            x, y = (getattr(p.spec, field).at(s, p.schedule, own[field]) for p in (was, now))
            if x != y:
                return f"{where}.{field}: at step {was.first_step + s} it was {x:g}, the new plan says {y:g}"
        if was.shares(s) != now.shares(s):
            return (
                f"{where}.mix: at step {was.first_step + s} it was {was.shares(s)}, the new plan says {now.shares(s)}"
            )
    # Where shares vary, exact allocation may settle a remainder earlier in view of later shares.
    old, new = row_counts(was), row_counts(now)
    for s in range(min(was.steps, step - was.first_step) + 1):
        if (old.counts_before(s) != new.counts_before(s)).any():
            at = was.first_step + s
            return f"{where}.mix: the new shares would have moved rows before step {at}; change them in a new phase"
    return None


def _replay_data(phase: Phase) -> tuple | None:
    """What decides the rows that are replayed, besides the share; None where nothing is."""
    replay = phase.spec.replay
    parts = tuple((c.name, c.part) for c in phase.columns if c.role == "replay")
    return (parts, replay.range, replay.order, replay.reservoir) if replay.active else None


def _difference(path: str, a: Any, b: Any) -> str:
    """The innermost field in which two sections differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted({*a, *b}):
            if a.get(key) != b.get(key):
                return _difference(f"{path}.{key}", a.get(key), b.get(key))
    return f"{path}: it was {a!r}, the new plan says {b!r}"


def newest_step(workdir: Path) -> int:
    """Step of the newest full checkpoint; 0 if there is none."""
    return max((saved.step for saved in finished(checkpoints_of(workdir))), default=0)
