"""Where the scalars of a run go besides its own files: TensorBoard, Weights & Biases, MLflow, or one of your own.

`loggers=("tensorboard", "wandb")` in a config names files of this folder (or `package.module:name`). The run's files
are the record, and a logger is a view of it: a service that fails says so once, and the run goes on.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence

from cpt.errors import ConfigError
from cpt.registry import check, find
from cpt.training.loggers._base import Logger, LoggerFacts

ROOM = "cpt.training.loggers"


class Loggers:
    """All loggers of a run as one."""

    def __init__(self, loggers: Sequence[Logger]):
        self._loggers = loggers

    def scalar(self, name: str, value: float, step: int) -> None:
        """One point of the curve `name`, for every logger. Raises OSError if an own file cannot be written."""
        for logger in self._loggers:
            logger.scalar(name, value, step)

    def flush(self) -> None:
        """A checkpoint is saved: a run that goes on from it does not log again what came before."""
        for logger in self._loggers:
            if flush := getattr(logger, "flush", None):
                flush()

    def close(self) -> None:
        for logger in self._loggers:
            logger.close()


def check_loggers(kinds: Sequence[str], where: str = "loggers") -> None:
    """That every logger of a config can be made on this machine; to be asked before anything expensive begins.

    Raises:
      ConfigError: there is no such logger, one is named twice, or its package is not installed (with the command that
        installs it).
    """
    for kind in kinds:
        if list(kinds).count(kind) > 1:
            raise ConfigError(f"{where}: '{kind}' is named twice")
        check(ROOM, kind, where)
        module = importlib.import_module(kind.split(":")[0] if ":" in kind else f"{ROOM}.{kind}")
        package, command = getattr(module, "NEEDS", (None, None))
        if package and not _importable(package):
            raise ConfigError(f"{where}: '{kind}' needs the package {package}; install it: {command}")


def open_loggers(kinds: Sequence[str], facts: LoggerFacts, where: str = "loggers") -> Loggers:
    """The loggers of a run. On several hosts only one of them makes them.

    Raises:
      ConfigError: as `check_loggers`.
      OSError: a logger's own file cannot be written.
    """
    check_loggers(kinds, where)
    return Loggers([find(ROOM, kind, where)(facts) for kind in kinds])


def _importable(package: str) -> bool:
    try:
        importlib.import_module(package)
    except ImportError:
        return False
    return True
