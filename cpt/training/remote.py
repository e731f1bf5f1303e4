"""A run directory in remote storage: its small files live in a local folder and are copied there and back.

Storage of objects cannot append to a file, so rows are written locally and the files that changed are pushed whole,
after each checkpoint and at the end. What the storage holds is then never newer than its newest checkpoint needs, and a
run that goes on elsewhere pulls it first. Checkpoints do not pass through here: Orbax writes them to the URL itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import fsspec

from cpt.errors import ConfigError, RunError
from cpt.training.faults import reason

NOT_COPIED = ("checkpoints", ".lock", ".writable")


class Remote:
    """The files of a run at `url`, but for its checkpoints.

    Args:
      url: `gs://bucket/run`, `s3://bucket/run`, or any other that fsspec opens.

    Raises:
      ConfigError: there is no driver for such a URL, or it is not installed; says which.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        try:
            self.files, self.root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as e:
            raise ConfigError(f"--workdir={url}: {reason(e)}; install its driver, or give a local directory") from e
        self._pushed: dict[str, tuple[int, int]] = {}

    def pull(self, local: Path) -> list[str]:
        """Copy every file to `local`, which is made if need be; returns their names, sorted.

        Raises:
          RunError: the storage cannot be read.
        """
        local.mkdir(parents=True, exist_ok=True)
        try:
            self.files.invalidate_cache()
            found = self.files.find(self.root) if self.files.exists(self.root) else []
            names = sorted(n for path in found if _is_copied(n := self._name(path)))
            for name in names:
                target = local / name
                target.parent.mkdir(parents=True, exist_ok=True)
                beside = target.with_name(f"{target.name}.pulled")
                self.files.get_file(f"{self.root}/{name}", str(beside))
                beside.replace(target)
                self._pushed[name] = _stamp(target)
        except Exception as e:  # every driver has errors of its own
            raise RunError(f"{self.url}: cannot be read ({reason(e)}); nothing was changed") from e
        return names

    def push(self, local: Path) -> list[str]:
        """Copy what changed in `local` since it was pulled or pushed last; returns the names, sorted.

        Raises:
          RunError: the storage cannot be written; what was not copied is copied the next time.
        """
        changed = []
        for name in sorted(_files(local)):
            stamp = _stamp(local / name)
            if self._pushed.get(name) == stamp:
                continue
            try:
                self.files.makedirs(f"{self.root}/{name}".rpartition("/")[0], exist_ok=True)
                self.files.put_file(str(local / name), f"{self.root}/{name}")
            except Exception as e:  # every driver has errors of its own
                raise RunError(f"{self.url}: {name} cannot be written ({reason(e)}); it is safe in {local}") from e
            # Stamped before it was read: what was appended meanwhile is pushed the next time.
            self._pushed[name] = stamp
            changed.append(name)
        return changed

    def _name(self, path: str) -> str:
        return path.strip("/").removeprefix(self.root.strip("/")).strip("/")


def _files(local: Path) -> Iterable[str]:
    names = (p.relative_to(local).as_posix() for p in local.rglob("*") if p.is_file())
    return (name for name in names if _is_copied(name))


def _is_copied(name: str) -> bool:
    return name.split("/")[0] not in NOT_COPIED and not name.endswith(".pulled")


def _stamp(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns
