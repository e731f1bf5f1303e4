"""What every command shares: absl flags in, one clear line and exit code 2 when the user can mend it."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from cpt.backend import COMPILER
from cpt.config import load
from cpt.errors import ConfigError, UserError, nearest
from cpt.overrides import check_loaded, config_argument, config_files, explain
from cpt.plan import RunPlan, resolve

Main = Callable[[list[str]], int | None]


def run(main: Main, verbs: Sequence[str] = ()) -> None:
    """Run `main` as a command and leave the process with its exit code; `verbs`: see `call`."""
    try:
        code = call(main, sys.argv, verbs=verbs)
    except Exception:
        sys.excepthook(*sys.exc_info())
        code = 1
    if code and any(thread.name == COMPILER for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # an orderly exit would wait until what nobody will call is compiled
    sys.exit(code)


def call(main: Main, argv: list[str], help_of: ModuleType | None = None, verbs: Sequence[str] = ()) -> int:
    """Parse the flags in `argv`, call `main` with what is left, and turn a `UserError` into a line and a 2.

    Args:
      help_of: the module whose docstring and flags `--help` shows; the one that is run by default.
      verbs: words of which the command needs one before its flags; `main` finds it in `argv[1]`.
    """
    try:
        code = _call(main, argv, help_of, verbs)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read our output has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _call(main: Main, argv: list[str], help_of: ModuleType | None, verbs: Sequence[str]) -> int:
    if any(re.fullmatch(r"--?(help|h|helpfull|helpshort)", a) for a in argv[1:]):
        module = help_of or sys.modules["__main__"]
        print((module.__doc__ or "").strip())
        shown = flags.FLAGS.get_key_flags_for_module(module.__name__)
        print("\nFlags:")
        for flag in shown:
            told = flag.default not in (None, [], False) and not isinstance(flag.default, ConfigDict)
            default = f" (default: {flag.default})" if told else ""
            print(f"  --{flag.name}: {flag.help}{default}")
        return 0
    try:
        rest = parse_flags(argv)
        if verbs and (len(rest) < 2 or rest[1] not in verbs):
            word = rest[1] if len(rest) > 1 else ""
            said = f"'{word}' is none of them{nearest(word, verbs)}" if word else "none was given"
            raise ConfigError(f"one of {', '.join(verbs)} comes first; {said} (see --help)")
        if len(rest) > 1 + bool(verbs):
            raise ConfigError(f"{rest[-1]}: not understood; flags look like --name=value (see --help)")
        return main(rest) or 0
    except UserError as e:
        print(e, file=sys.stderr)
        return 2


def parse_flags(argv: list[str], values: flags.FlagValues | None = None) -> list[str]:
    """`values(argv)` whose every failure is one `ConfigError` line; the global flags by default."""
    values = flags.FLAGS if values is None else values
    config = config_argument(argv)
    # A missing file would otherwise only show on first access, as a traceback.
    for file in config_files(config) if config is not None else ():
        if not Path(file.split(":", 1)[0]).is_file():
            raise ConfigError(f"--config={file}: no such file (looked in {Path.cwd()})")
    try:
        rest = values(argv)
        if config is not None and "config" in values and not isinstance(values["config"].value, str):
            check_loaded(values["config"].value, config)
        return rest
    except UserError:
        raise
    except Exception as e:
        # A config file is a program: it, and an override of what it returns, can fail in any way there is. What neither
        # of them explains is a mistake of ours and keeps its traceback.
        if line := explain(e, argv):
            raise ConfigError(line) from e
        if isinstance(e, flags.Error | TypeError | ValueError):
            raise ConfigError(_one_line(str(e))) from e
        raise


class OptionalValue(flags.ArgumentParser):
    """Parses a flag that may stand alone (`--flag` is ""), be denied (`--noflag` is None), or have a value.

    To be defined with `boolean=True`, which is what lets it stand alone.
    """

    def parse(self, argument: Any) -> str | None:
        said = str(argument)
        return {"true": "", "false": None}.get(said.lower(), said)


def read_plan(file: str, overrides: list[str]) -> RunPlan:
    """The plan of the recipe `FILE.py` or `FILE.py:ARGUMENT`, for commands that read several.

    Args:
      overrides: `--config.a.b=value`, as on the command line.

    Raises:
      ConfigError: as `cpt.main` would.
    """
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "", flag_values=values, lock_config=False, accept_new_attributes=True
    )
    argv, ours = ["", f"--config={file}", *overrides], sys.argv
    try:
        sys.argv = argv  # where ml_collections looks for overrides, whatever it is given
        parse_flags(argv, values)
    finally:
        sys.argv = ours
    return resolve(load(values["config"].value, config_flags.get_override_values(values["config"])))


def _one_line(message: str) -> str:
    """The part of an absl or ml_collections message that a person needs."""
    if m := re.match(r"flag --config\.(\S+?)=(.*?): (.*)", message, re.DOTALL):
        if "as a ConfigDict" in m.group(3):
            return f"{m.group(1)}: '{m.group(2)}' is one value, named entries are needed there, e.g. {{'name': 1.0}}"
        return f"{m.group(1)}: cannot read '{m.group(2)}' ({_last_line(m.group(3))})"
    return _last_line(message)


def _last_line(message: str) -> str:
    lines = [line.strip() for line in message.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "unknown flag error"
