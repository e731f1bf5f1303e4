"""Learning rates before any training: draw them, list them, predict what they lead to.

python -m cpt.schedules --config=configs/pile_to_slimpajama.py                       # in the terminal
python -m cpt.schedules --config=a.py,b.py --out=lr.png                              # over each other; .html, .csv
python -m cpt.schedules --config=a.py --config.phases.slimpajama.lr.kind=wsd         # what if
python -m cpt.schedules --list                                                       # what there is
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from absl import flags

from cpt import cli
from cpt.errors import ConfigError, nearest
from cpt.overrides import config_files
from cpt.rooms import show_rooms
from cpt.schedules.laws import command
from cpt.schedules.picture import terminal_picture, trajectory, write_picture


def define_flags() -> None:
    """The command's flags; only defined when it is run, since other commands use the same names."""
    flags.DEFINE_string("config", None, "Recipe FILE.py or FILE.py:ARGUMENT; several, separated by commas, to compare.")
    flags.DEFINE_string("out", None, "Where to draw: a .png, a .html, or a .csv with every step.")
    flags.DEFINE_bool("list", False, "Show every named schedule with a line on it.")


def main(overrides: list[str]) -> None:
    """The command; `overrides` are its `--config.a.b=value`."""
    given = flags.FLAGS
    if given.list:
        show_rooms({"phases.<name>.lr.kind": "cpt.schedules.library"})
        return
    if not given.config:
        raise ConfigError("--config: required, e.g. --config=configs/pile_to_slimpajama.py (see --help); or --list")
    plans = {file: cli.read_plan(file, overrides) for file in config_files(given.config)}
    named = [trajectory(name, plan) for name, plan in _short(plans).items()]
    if given.out:
        print(f"wrote {write_picture(named, Path(given.out))}")
    else:
        print(terminal_picture(named))


def _short(plans: dict[str, object]) -> dict[str, object]:
    """Names for the legend: the recipe's own where they differ, else the file as it was given."""
    own = [plan.name for plan in plans.values()]
    return {plan.name if len(set(own)) == len(own) else file: plan for file, plan in plans.items()}


def run() -> int:
    """The command line; `fit`, `predict` and `rank` are commands of their own."""
    is_override = re.compile(r"--?config\.").match
    overrides = [a for a in sys.argv[1:] if is_override(a)]
    argv = [a for a in sys.argv if not is_override(a)]
    if len(argv) < 2 or argv[1].startswith("-"):
        define_flags()
        return cli.call(lambda _: main(overrides), argv)
    name = argv.pop(1)
    if name not in command.COMMANDS:
        offered = f"(there are: {', '.join(command.COMMANDS)}; without one: the picture)"
        print(ConfigError(f"{name}: no such command{nearest(name, command.COMMANDS)}  {offered}"), file=sys.stderr)
        return 2
    command.define_flags(name)
    return cli.call(lambda _: command.main(name, overrides), argv, help_of=command)


if __name__ == "__main__":
    sys.exit(run())
