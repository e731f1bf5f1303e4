"""TensorBoard event files in `tensorboard/` of the run directory: `tensorboard --logdir=runs`."""

from __future__ import annotations

from cpt.training.loggers._base import LoggerFacts
from cpt.training.logs import Board


def tensorboard(facts: LoggerFacts) -> Board:
    """Raises OSError where the files cannot be written: they are the run's own, and a full disk must be told."""
    return Board(facts.workdir / "tensorboard", facts.step)
