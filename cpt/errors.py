"""What a user can mend: one line that says what, where and what to do; exit code 2, no traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake the user can mend. `str(error)` is the whole line that is printed."""

    room = "error"

    def __init__(self, message: str):
        super().__init__(f"{self.room}: {message}")


class ConfigError(UserError):
    """A config, flag or plan that contradicts itself or names something that does not exist."""

    room = "config error"


class DataError(UserError):
    """A corpus, tokenizer or token store that is missing, empty, damaged or does not fit."""

    room = "data error"


class RunError(UserError):
    """A run directory, checkpoint or machine that stops the run; says what is safe on disk."""

    room = "run error"


def nearest(word: str, choices: Iterable[str]) -> str:
    """`"; did you mean 'share'?"` for the choice closest to `word`, or an empty string."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""
