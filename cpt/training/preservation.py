"""Which checkpoints a run has, which of them stay, and how one goes: names and directories, no arrays.

    checkpoints/anchor/<step>    phase edges, always kept
    checkpoints/rolling/<step>   the newest few
    checkpoints/grid/<step>      parameters only, kept for evaluation later

Directories are local, or remote ones (`gs://`, `s3://`) that etils opens as Orbax does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etils import epath

from cpt.errors import ConfigError, RunError
from cpt.training.faults import is_storage_fault

FULL_KINDS = ("anchor", "rolling")
KINDS = (*FULL_KINDS, "grid")
# Orbax names what it has not finished so; what we are about to remove is renamed likewise, so that a process killed
# half-way through leaves nothing that looks whole.
UNFINISHED = ".orbax-checkpoint-tmp"
# Where a directory cannot be renamed at once, Orbax writes this file last.
COMMITTED = "commit_success.txt"
DAMAGED = "damaged"
MARK = ".remote"  # in the local folder of a run in remote storage: where that is, and what was copied


@dataclass(frozen=True)
class Saved:
    """A finished checkpoint directory."""

    kind: str
    step: int
    path: epath.Path

    def __str__(self) -> str:
        return f"{self.kind}/{self.step}"


def is_remote(path: epath.PathLike) -> bool:
    """Whether `path` is a URL such as `gs://bucket/run`."""
    return "://" in str(path)


def directory_of(path: epath.PathLike) -> epath.Path:
    """`path` as Orbax reads it: absolute, or a URL.

    Raises:
      ConfigError: a URL that nothing installed here opens.
    """
    if not is_remote(path):
        return epath.Path(path).absolute()
    try:
        directory = epath.Path(path)
        directory.exists()
        return directory
    except (ImportError, KeyError) as e:
        driver = {"gs": "gcsfs", "s3": "s3fs"}.get(str(path).partition("://")[0])
        what = f"install its driver: pip install {driver}" if driver else "there are gs://, s3:// and plain paths"
        raise ConfigError(f"{path}: such a URL cannot be opened here; {what}") from e


def run_at(path: str) -> Path | epath.Path:
    """The run directory that a config names."""
    return epath.Path(path) if is_remote(path) else Path(path)


def staged(workdir: Path) -> tuple[Path, str] | None:
    """The local folder of a run in remote storage, and its URL; None for a run that lies in `workdir` itself.

    Raises:
      RunError: the note that says so cannot be read.
    """
    folder = Path(workdir).absolute()
    for root in (folder, *folder.parents):  # branches lie below their trunk
        if (root / MARK).is_file():
            try:
                return root, json.loads((root / MARK).read_text())["url"]
            except (OSError, ValueError, KeyError, TypeError) as e:
                raise RunError(f"{root / MARK}: cannot be read ({e}); remove that folder, it is a copy") from e
    return None


def url_of(workdir: Path | epath.Path) -> str | None:
    """Where the run in `workdir` lies in remote storage; None for a local one."""
    if is_remote(workdir):
        return str(workdir)
    if (found := staged(workdir)) is None:
        return None
    root, url = found
    return "/".join((url, *Path(workdir).absolute().relative_to(root).parts))


def checkpoints_of(workdir: str | Path | epath.Path) -> epath.Path:
    """Where the checkpoints of a run are; of one in remote storage there, whose other files have local copies."""
    url = url_of(workdir)
    return (epath.Path(url) if url else directory_of(workdir)) / "checkpoints"


def finished(directory: epath.Path, kinds: Sequence[str] = FULL_KINDS) -> list[Saved]:
    """Finished checkpoints under `directory`, newest first; an anchor before a rolling one of the same step."""
    found = []
    for kind in kinds:
        if (folder := directory / kind).is_dir():
            found += [Saved(kind, int(p.name), p) for p in folder.iterdir() if p.name.isdigit() and _is_finished(p)]
    return newest_first(found)


def newest_first(found: Iterable[Saved]) -> list[Saved]:
    """By step, the newest first; an anchor before a rolling one of the same step."""
    return sorted(found, key=lambda s: (-s.step, s.kind))


def _is_finished(path: epath.Path) -> bool:
    return (path / COMMITTED).exists() if _ends_with_a_file(path) else path.is_dir()


def _ends_with_a_file(path: epath.Path) -> bool:
    """Whether Orbax writes `COMMITTED` there: only where it knows that renaming copies everything."""
    return str(path).startswith("gs://")


def superfluous(
    found: Iterable[Saved],
    keep_rolling: int | None = None,
    keep_grid_every: int | None = None,
    anchors: bool = False,
    planned: Callable[[int], bool] | None = None,
) -> list[Saved]:
    """Those of `found` that these rules let go, oldest first; never the newest full one.

    Args:
      keep_rolling: newest rolling checkpoints that stay; None = all.
      keep_grid_every: grid checkpoints stay at multiples of this many steps, and the newest; None = all.
      anchors: let anchors go as well.
      planned: steps whose rolling checkpoints must not be pushed out by others: as many of them stay as well.
    """
    found = newest_first(found)
    of = {kind: [s for s in found if s.kind == kind] for kind in KINDS}
    out = []
    if keep_rolling is not None:
        held = [s for s in of["rolling"] if planned is not None and planned(s.step)][:keep_rolling]
        out += [s for s in of["rolling"][keep_rolling:] if s not in held]
    if keep_grid_every is not None:
        out += [s for s in of["grid"][1:] if s.step % keep_grid_every]
    if anchors:
        out += of["anchor"]
    newest = next((s for s in found if s.kind in FULL_KINDS), None)
    return sorted((s for s in out if s != newest), key=lambda s: (s.step, s.kind))


def remove(saved: Saved) -> None:
    """Remove a checkpoint; one that is cut off in the middle of that counts as unfinished.

    Raises:
      OSError: it cannot be removed.
    """
    if is_remote(saved.path):
        if _ends_with_a_file(saved.path):
            (saved.path / COMMITTED).unlink()
        saved.path.rmtree()
        return
    doomed = saved.path.parent / f"{saved.path.name}{UNFINISHED}-removed"
    if doomed.exists():
        doomed.rmtree()
    saved.path.rename(doomed)
    doomed.rmtree()


def set_aside(saved: Saved, directory: epath.Path) -> epath.Path:
    """Move a damaged checkpoint to `directory/damaged/`, where nobody takes it for a sound one; returns where it is."""
    aside = directory / DAMAGED / f"{saved.kind}-{saved.step}"
    move(saved, aside)
    return aside


def move(saved: Saved, target: epath.Path) -> None:
    """Move a checkpoint to `target`, in the place of what is there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.rmtree()
    if is_remote(saved.path):
        _copy(saved.path, target)
        remove(saved)
    else:
        saved.path.rename(target)


def set_aside_in(directory: epath.Path) -> list[epath.Path]:
    """What `set_aside` moved."""
    return sorted((directory / DAMAGED).iterdir()) if (directory / DAMAGED).is_dir() else []


def unfinished(directory: epath.Path) -> list[epath.Path]:
    """What a killed or failed process left half-written or half-removed, or another one is writing now."""
    folders = [folder for kind in KINDS if (folder := directory / kind).is_dir()]
    return [p for folder in folders for p in folder.iterdir() if UNFINISHED in p.name or _lacks_its_end(p)]


def _lacks_its_end(path: epath.Path) -> bool:
    return _ends_with_a_file(path) and path.name.isdigit() and not _is_finished(path)


def clear_unfinished(directory: epath.Path) -> None:
    """Remove what is `unfinished`; what cannot be removed stays."""
    for path in unfinished(directory):
        try:
            path.rmtree()
        except Exception as e:
            if not (isinstance(e, OSError) or is_storage_fault(e)):
                raise
            continue  # also when a writer that gave up still had a file open there: gone the next time


def facts_of(saved: Saved) -> dict[str, Any]:
    """What a checkpoint says of itself, unverified; empty if it cannot be read."""
    try:
        facts = json.loads((saved.path / "meta" / "metadata").read_text())
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def bytes_of(path: epath.Path) -> int:
    """Bytes of all files below `path`."""
    return sum(files_under(path).values())


def files_under(path: epath.Path) -> dict[str, int]:
    """Bytes of each file below `path`, by its name relative to it."""
    found, folders = {}, [("", epath.Path(path))]
    while folders:
        prefix, folder = folders.pop()
        for child in folder.iterdir():
            name = f"{prefix}{child.name}"
            if child.is_dir():
                folders.append((f"{name}/", child))
            else:
                found[name] = child.stat().length
    return found


def _copy(source: epath.Path, target: epath.Path) -> None:
    for name in files_under(source):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).copy(target / name, overwrite=True)
