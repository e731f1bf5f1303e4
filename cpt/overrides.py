"""What may follow `--config.a.b=` on the command line, and what to say when it, or the config file itself, fails.

`ml_collections` reads numbers strictly and reports mistakes as whatever exception came up, with the text of a traceback
inside. Here numbers may be written as in a recipe (`300e9` tokens), `None` empties a field, and every failure becomes
one line that names the field or the line of the config file.
"""

from __future__ import annotations

import math
import re
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from cpt.errors import ConfigError


class OrNone(flags.ArgumentParser):
    """Reads `None` as None and everything else as `kind` does; whether a field may be None is the schema's business."""

    def __init__(self, kind: type):
        self.kind = kind

    def parse(self, argument: Any) -> Any:
        if argument is None or argument == "None":
            return None
        if self.kind is int and isinstance(argument, str) and not re.fullmatch(r"\s*[+-]?[\d_]+\s*", argument):
            return _whole(argument)
        return self.kind(argument)

    def flag_type(self) -> str:
        return self.kind.__name__


for _kind in (int, float, str):
    config_flags.register_flag_parser_for_type(_kind, OrNone(_kind))


def _whole(argument: str) -> int:
    """`300e9` -> 300000000000."""
    try:
        number = float(argument)
    except ValueError:
        number = math.nan
    if not number.is_integer():
        raise ValueError("not a whole number")
    return int(number)


def config_argument(argv: list[str]) -> str | None:
    """What `argv` gives as `--config`, None if it does not."""
    for i, arg in enumerate(argv):
        if m := re.fullmatch(r"--?config(?:=(.*))?", arg):
            return m.group(1) if m.group(1) is not None else (argv[i + 1] if i + 1 < len(argv) else "")
    return None


def config_files(argument: str) -> list[str]:
    """The recipes `FILE.py[:ARGUMENT]` in a list of them; an ARGUMENT may hold commas of its own."""
    return re.split(r",(?=[^,:]*\.py(?:[,:]|$))", argument)


def check_loaded(config: Any, argument: str) -> None:
    """Raise what `ml_collections` put off when it loaded the config file.

    Raises:
      ConfigError: `get_config()` returned something else than a config.
      OSError: it could not open a file; kept back by the library until a field is first asked for.
    """
    if not hasattr(config, "to_dict") and not isinstance(config, Mapping):
        kind = type(config).__name__
        raise ConfigError(f"--config={argument}: get_config() returned {kind}; end it with `return c.run(...)`")


def explain(error: Exception, argv: list[str]) -> str | None:
    """One line for an exception out of reading the flags in `argv`; None if neither config file nor override is to
    blame.
    """
    argument = config_argument(argv)
    if argument is None:
        return None
    path = Path(argument.split(":", 1)[0])
    for e in _chain(error):
        if line := _line_in(path, e):
            return line
    if isinstance(error, AttributeError) and "'get_config'" in str(error):
        return f"{path}: has no function get_config(); a recipe defines one that returns c.run(...)"
    overrides = _overrides(argv)
    for override in overrides:
        if line := _wrong_override(override, error):
            return line
    if overrides and isinstance(error, AttributeError | LookupError | TypeError):
        return f"{_text(error)} (while reading {', '.join(f'--config.{o}' for o in overrides)})"
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exceptions behind `error`, the first cause first."""
    cause = error.__cause__ or error.__context__
    if cause is not None:
        yield from _chain(cause)
    yield error


def _line_in(path: Path, e: BaseException) -> str | None:
    """`file:line: what` if `e` was raised by, or on behalf of, a line of the config file `path`."""
    if isinstance(e, SyntaxError) and e.filename:
        return f"{e.filename}:{e.lineno}: {e.msg}"
    here = path.resolve()
    lines = [f.lineno for f in traceback.extract_tb(e.__traceback__) if Path(f.filename).resolve() == here]
    return f"{path}:{lines[-1]}: {type(e).__name__}: {_text(e)}" if lines else None


def _text(e: BaseException) -> str:
    """The message on one line (`str` of a KeyError would add quotation marks)."""
    return " ".join(str(e.args[0] if len(e.args) == 1 else e).split()) or "no message"


def _overrides(argv: list[str]) -> list[str]:
    return [m.group(1) for a in argv if (m := re.match(r"--?(?:no)?config\.([^=]+)", a))]


def _wrong_override(override: str, error: Exception) -> str | None:
    """The line for `error` if it is about the field path `override`."""
    if not re.fullmatch(r"\w+(\.\w+|\['[^']*'\])*", override):
        return f"--config.{override}: not the path of a field; write a.b, or a['b'] where b holds other signs"
    if isinstance(error, TypeError) and "string indices" in str(error):
        parent = override.rpartition(".")[0]
        return f"--config.{override}: --config.{parent} is one value in this recipe, without entries of its own"
    if not isinstance(error, AttributeError | KeyError):
        return None
    text = _text(error)
    missing = re.search(r"\.(\w+) does not exist", text) or re.search(r"'(\w+)'", text)
    name = missing and missing.group(1)
    if name not in override.split("."):
        return None
    close = re.search(r'Did you mean "(\w+)"', text)
    return f"--config.{override}: no such field '{name}'" + (f"; did you mean '{close.group(1)}'?" if close else "")
