"""Where a sweep keeps its books: SQLite, PostgreSQL or a journal file, all through Optuna.

The storage says which trials there are and who has which; what was trained is in the run directories alone. So a lost
storage costs nothing: a new one finds the finished runs where they are.
"""

from __future__ import annotations

import hashlib
import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import BasePruner, NopPruner, SuccessiveHalvingPruner
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from cpt.errors import ConfigError, RunError
from cpt.plan import RunPlan
from cpt.sweeps.definition import Sweep

BUSY_S = 60
"""Seconds that a worker waits for its turn in an SQLite file."""


def open_storage(url: str) -> BaseStorage:
    """The storage of `sqlite:///FILE`, `postgresql://USER@HOST/DATABASE`, `journal:FILE` or another SQLAlchemy URL.

    Raises:
      ConfigError: no such kind, or its driver is not installed.
      RunError: it cannot be reached or written.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    kind = url.partition(":")[0]
    try:
        if kind == "journal":
            return _journal(Path(url.removeprefix("journal:").removeprefix("//")))
        return _database(url, kind)
    except ConfigError:
        raise
    except ImportError as e:
        raise ConfigError(
            f"--storage={shown(url)}: no driver for {kind} ({e}); install one, or use journal:FILE"
        ) from e
    except Exception as e:
        raise _unreachable(url, e) from e


def _journal(path: Path) -> BaseStorage:
    if not path.name:
        raise ConfigError("--storage=journal: names no file; write journal:runs/sweep/journal.log")
    path.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(path)))


def _database(url: str, kind: str) -> BaseStorage:
    if not re.match(r"\w+(\+\w+)?://", url):
        raise ConfigError(
            f"--storage={url}: not understood; sqlite:///FILE, postgresql://USER@HOST/DATABASE or journal:FILE"
        )
    if kind in ("postgresql", "postgres"):
        if find_spec("psycopg") is None:
            raise ConfigError(f"--storage={shown(url)}: no driver for PostgreSQL; pip install 'cpt[postgres]'")
        url = re.sub(r"^\w+", "postgresql+psycopg", url, count=1)
    engine: dict[str, Any] = {"pool_pre_ping": True}  # a database that was restarted in between
    if kind == "sqlite":
        Path(url.removeprefix("sqlite:///").partition("?")[0]).parent.mkdir(parents=True, exist_ok=True)
        engine["connect_args"] = {"timeout": BUSY_S}
    elif kind in ("postgresql", "postgres"):
        engine["connect_args"] = {"connect_timeout": 10}
    return RDBStorage(url, engine_kwargs=engine)


def open_study(storage: BaseStorage, sweep: Sweep, base: RunPlan, url: str) -> optuna.Study:
    """The study of a sweep, made if it is not there.

    Optuna's choices of a parameter are final, while those of a sweep may grow. So a study whose parameters are texts
    has their digest in its name, and with other texts a new study begins, which takes over what the directories hold.

    Raises:
      ConfigError: the storage has a sweep of this name of another recipe or with another metric.
    """
    about = {"sweep": sweep.name, "config": base.hash[:8], "metric": str(sweep.metric), "direction": sweep.direction}
    try:
        for study in storage.get_all_studies():
            theirs = study.user_attrs
            # Whoever made it may not have written all of this yet.
            other = [k for k in about if theirs.get(k, about[k]) != about[k]]
            if theirs.get("sweep") == sweep.name and other:
                field = other[0]
                raise ConfigError(
                    f"--storage={shown(url)}: holds a sweep '{sweep.name}' with another {field} ({theirs.get(field)}, "
                    f"here {about[field]}); give this one another name, or another --storage"
                )
        study = optuna.create_study(
            storage=storage, study_name=_study_name(sweep), direction=sweep.direction, load_if_exists=True,
            pruner=_pruner(sweep),
        )  # fmt: skip
        for key, value in about.items():
            if study.user_attrs.get(key) != value:
                study.set_user_attr(key, value)
        return study
    except ConfigError:
        raise
    except Exception as e:
        raise _unreachable(url, e) from e


def _study_name(sweep: Sweep) -> str:
    found: dict[str, list[Any]] = {}
    points = [*sweep.space.points, *({r.name: v} for r in sweep.space.ranges for v in r.options)]
    for path, value in ((p, v) for point in points for p, v in point.items()):
        found.setdefault(path, []).append(value)
    texts = {path: sorted(set(map(repr, vs))) for path, vs in found.items() if not all(map(is_number, vs))}
    if not texts:
        return sweep.name
    canonical = json.dumps(texts, sort_keys=True)
    return f"{sweep.name}-{hashlib.sha256(canonical.encode()).hexdigest()[:8]}"


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _pruner(sweep: Sweep) -> BasePruner:
    if sweep.prune is None:
        return NopPruner()
    return SuccessiveHalvingPruner(min_resource=sweep.prune.first, reduction_factor=sweep.prune.factor)


def _unreachable(url: str, e: Exception) -> RunError:
    cause = e.__cause__ or e
    text = " ".join(str(getattr(cause, "orig", None) or cause).split()).split(" (Background")[0]
    return RunError(
        f"--storage={shown(url)}: cannot be used ({type(cause).__name__}: {text}); check that it runs there"
    )


def shown(url: str) -> str:
    """A URL without its password."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", url)
