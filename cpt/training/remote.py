"""A run directory in remote storage: its small files live in a local folder and are copied there and back.

Storage of objects cannot append to a file, so rows are written locally and the files that changed are pushed whole,
before each checkpoint becomes visible and at the end. A checkpoint in the storage is then never newer than the rows
there, and a run that goes on elsewhere pulls them first. Checkpoints do not pass through here: Orbax writes them to the
URL itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec

from cpt.errors import ConfigError, RunError, UserError
from cpt.evaluators.rows import write_atomic
from cpt.training.faults import is_storage_fault, reason
from cpt.training.preservation import MARK, is_remote, staged
from cpt.training.processes import here
from cpt.training.workdir import lock

SCHEMES = ("gs",)  # where Orbax writes arrays, besides directories
EXTRAS = {"gs": "gcs", "gcs": "gcs"}
LOCK, COPY = ".staged", ".copy"
NOT_COPIED = ("checkpoints", ".lock", ".evaluating", ".writable", LOCK, COPY, MARK)
VERSIONS = ("generation", "etag", "ETag", "mtime", "created", "LastModified")  # what drivers call it
Known = dict[str, tuple[int, int, str]]


class Remote:
    """The files of a run at `url`, but for its checkpoints, and their copies in `local`.

    `local/.remote` notes what was copied: of each file its bytes and time here, and its version there.

    Args:
      url: `gs://bucket/run`, or any other that fsspec opens.
      local: the folder of the copies.

    Raises:
      ConfigError: there is no driver for such a URL, or it is not installed; says which.
    """

    def __init__(self, url: str, local: Path):
        self.url, self.local = url.rstrip("/"), local
        with explained(f"--workdir={url}"):
            self.files, self.root = fsspec.core.url_to_fs(self.url)

    def pull(self) -> list[str]:
        """Make `local` what is there, unless nobody wrote there since it was pushed: then it is as new, or newer.

        Returns:
          The names of the files that were copied, sorted.

        Raises:
          RunError: the storage cannot be read.
        """
        self.local.mkdir(parents=True, exist_ok=True)
        known = self._known()
        try:
            self.files.invalidate_cache()
            there = {self._name(info["name"]): _version(info) for info in self._listing()}
            if there == {name: version for name, (_, _, version) in known.items()}:
                self._note(known)
                return []
            known = {}
            for name, version in sorted(there.items()):
                target = self.local / name
                target.parent.mkdir(parents=True, exist_ok=True)
                self.files.get_file(f"{self.root}/{name}", str(self.local / COPY))
                (self.local / COPY).replace(target)
                known[name] = (*_stamp(target), version)
        except Exception as e:  # every driver has errors of its own
            raise RunError(f"{self.url}: cannot be read ({_said(e)}); nothing was changed there") from e
        for name in set(_files(self.local)) - set(there):  # of a history that went on elsewhere
            (self.local / name).unlink()
        self._note(known)
        return sorted(there)

    def push(self) -> list[str]:
        """Copy what changed in `local` since it was pulled or pushed last; returns the names, sorted.

        Raises:
          RunError: the storage cannot be written; what was not copied is copied the next time.
        """
        known, changed, name = self._known(), [], ""
        try:
            for name in sorted(_files(self.local)):
                # Stamped before it is read: what is appended meanwhile is pushed the next time.
                stamp = _stamp(self.local / name)
                if known.get(name, ())[:2] == stamp:
                    continue
                known[name] = (*stamp, self._put(name))
                changed.append(name)
        except Exception as e:  # every driver has errors of its own
            raise RunError(f"{self.url}: {name} cannot be written ({_said(e)}); it is safe in {self.local}") from e
        finally:
            if changed:
                self._note(known)
        return changed

    def check_writable(self) -> None:
        """Raises RunError where nothing can be written or removed: there is no such bucket, or no right to."""
        probe = f"{self.root}/.writable"
        try:
            self.files.makedirs(self.root, exist_ok=True)
            self.files.pipe_file(probe, b"cpt")
            self.files.rm_file(probe)
        except Exception as e:  # every driver has errors of its own
            raise RunError(f"{self.url}: cannot write there ({_said(e)}); give another --workdir") from e

    def _put(self, name: str) -> str:
        """Copy one file; returns its version there. What is still written to is copied as far as its last line."""
        copy, target = self.local / COPY, f"{self.root}/{name}"
        shutil.copyfile(self.local / name, copy)
        if name.endswith(".jsonl"):
            os.truncate(copy, copy.read_bytes().rfind(b"\n") + 1)
        self.files.makedirs(target.rpartition("/")[0], exist_ok=True)
        self.files.put_file(str(copy), target)
        copy.unlink()
        self.files.invalidate_cache(target.rpartition("/")[0])
        return _version(self.files.info(target))

    def _listing(self) -> Iterator[dict[str, Any]]:
        folders = [self.root]
        while folders:
            try:
                found = self.files.ls(folders.pop(), detail=True)
            except FileNotFoundError:
                continue
            for info in found:
                if (name := self._name(info["name"])) and _is_copied(name):
                    if info["type"] == "directory":
                        folders.append(info["name"])
                    else:
                        yield info

    def _name(self, path: str) -> str:
        return path.strip("/").removeprefix(self.root.strip("/")).strip("/")

    def _known(self) -> Known:
        try:
            return {k: tuple(v) for k, v in json.loads((self.local / MARK).read_text())["files"].items()}
        except (OSError, ValueError, KeyError):
            return {}

    def _note(self, known: Known) -> None:
        write_atomic(self.local / MARK, json.dumps({"url": self.url, "files": known}))


def staging_folder(url: str, process: int = 0) -> Path:
    """Where the small files of the run at `url` lie on this machine: in the user's cache folder, named from the URL."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cpt" / "runs"
    url = url.rstrip("/")
    name = f"{url.rpartition('/')[2]}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
    return root / (f"{name}-process{process}" if process else name)


@contextlib.contextmanager
def opened(workdir: str | Path, say: Callable[[str], None]) -> Iterator[Path]:
    """The local folder of a run directory: itself, or that of a URL, pulled before and by the first process pushed
    after; every process of a run calls this.

    Raises:
      ConfigError: there is no driver for such a URL, or Orbax writes nothing there.
      RunError: the storage cannot be read or written, or another process of this machine has the run open.
    """
    if not is_remote(workdir):
        yield Path(workdir)
        return
    url = str(workdir).rstrip("/")
    if (scheme := url.partition("://")[0]) not in SCHEMES:
        raise ConfigError(
            f"--workdir={url}: checkpoints cannot be written to {scheme}://, only to directories and to gs://; use "
            "one of these, or mount the bucket and give its path"
        )
    remote = Remote(url, staging_folder(url, here().index))
    remote.local.mkdir(parents=True, exist_ok=True)
    with explained(url), lock(remote.local, say, LOCK, f"has {url} open"):
        if here().first:
            remote.check_writable()
        remote.pull()
        here().meet()  # nobody writes before all have read
        say(f"{url}: checkpoints are written there; rows and reports to {remote.local}, and copied")
        try:
            yield remote.local
        except BaseException:
            if here().first:
                try:
                    remote.push()
                except UserError as e:  # what happened first is what has to be told
                    say(str(e))
            raise
        if here().first:
            remote.push()


def pusher(workdir: Path) -> Callable[[], Any]:
    """What copies the small files of the run in `workdir` to where its checkpoints go; does nothing for a local one."""
    if (found := staged(workdir)) is None:
        return lambda: None
    root, url = found
    return Remote(url, root).push


@contextlib.contextmanager
def explained(place: str) -> Iterator[None]:
    """Turn what a storage's driver raises into one line."""
    try:
        yield
    except (ImportError, ValueError) as e:
        scheme = place.partition("=")[2].partition("://")[0] or place.partition("://")[0]
        if isinstance(e, ValueError) and "rotocol" not in str(e):
            raise
        extra = f": pip install 'cpt[{EXTRAS[scheme]}]'" if scheme in EXTRAS else ""
        raise ConfigError(f"{place}: {reason(e)}; install its driver{extra}, or give a local directory") from e
    except Exception as e:
        if not is_storage_fault(e):
            raise
        raise RunError(f"{place}: {reason(e)}; what was saved before stays; run the same command again") from e


def _files(local: Path) -> list[str]:
    names = (p.relative_to(local).as_posix() for p in local.rglob("*") if p.is_file())
    return [name for name in names if _is_copied(name)]


def _is_copied(name: str) -> bool:
    return not set(name.split("/")) & set(NOT_COPIED)


def _stamp(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns


def _version(info: dict[str, Any]) -> str:
    found = next((info[key] for key in VERSIONS if info.get(key)), info.get("size"))
    return str(found.timestamp() if isinstance(found, datetime) else found)


def _said(error: Exception) -> str:
    return "no such bucket" if isinstance(error, FileNotFoundError) and not error.errno else reason(error)
