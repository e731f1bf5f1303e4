"""What the schedules room offers.

python -m cpt.schedules --list
"""

from __future__ import annotations

from absl import flags

from cpt import cli
from cpt.errors import ConfigError
from cpt.rooms import show_rooms


def main(argv: list[str]) -> None:
    """The command."""
    del argv
    if not flags.FLAGS.list:
        raise ConfigError(
            "--list: shows the schedules; `python -m cpt.main --config=... --dry_run` prints a plan's own"
        )
    show_rooms({"phases.<name>.lr.kind": "cpt.schedules.library"})


if __name__ == "__main__":
    flags.DEFINE_bool("list", False, "Show every named schedule with a line on it.")
    cli.run(main)
