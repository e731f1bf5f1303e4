"""What every command shares: absl flags in, one clear line and exit code 2 when the user can mend it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from absl import flags

from cpt.errors import ConfigError, UserError

Main = Callable[[list[str]], int | None]


def run(main: Main) -> None:
    """Run `main` as a command and leave the process with its exit code."""
    sys.exit(call(main, sys.argv))


def call(main: Main, argv: list[str]) -> int:
    """Parse the flags in `argv`, call `main` with what is left, and turn a `UserError` into a line and a 2."""
    if any(re.fullmatch(r"--?(help|h|helpfull|helpshort)", a) for a in argv[1:]):
        print((sys.modules["__main__"].__doc__ or "").strip())
        print(f"\nFlags:\n{flags.FLAGS.main_module_help()}")
        return 0
    try:
        rest = parse_flags(argv)
        if len(rest) > 1:
            raise ConfigError(f"{rest[1]}: not understood; flags look like --name=value (see --help)")
        return main(rest) or 0
    except UserError as e:
        print(e, file=sys.stderr)
        return 2


def parse_flags(argv: list[str]) -> list[str]:
    """`flags.FLAGS(argv)` whose every failure is one `ConfigError` line."""
    _check_config_file(argv)
    try:
        return flags.FLAGS(argv)
    except UserError:
        raise
    except flags.Error as e:
        raise ConfigError(_one_line(str(e))) from e
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        # ml_collections reports a bad override or a failing get_config() with these.
        raise ConfigError(_one_line(str(e))) from e


def _check_config_file(argv: list[str]) -> None:
    """A missing config file would otherwise only show on first access, as a traceback."""
    for i, arg in enumerate(argv):
        if m := re.fullmatch(r"--?config(?:=(.*))?", arg):
            value = m.group(1) if m.group(1) is not None else (argv[i + 1] if i + 1 < len(argv) else "")
            path = Path(value.split(":", 1)[0])
            if not path.is_file():
                raise ConfigError(f"--config={value}: no such file (looked in {Path.cwd()})")


def _one_line(message: str) -> str:
    """The part of an absl or ml_collections message that a person needs."""
    if m := re.match(r"flag --config\.(\S+?)=(.*?): (.*)", message, re.DOTALL):
        return f"{m.group(1)}: cannot read '{m.group(2)}' ({_last_line(m.group(3))})"
    return _last_line(message)


def _last_line(message: str) -> str:
    lines = [line.strip() for line in message.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "unknown flag error"
