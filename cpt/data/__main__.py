"""The data of a run before it is trained on: what is read when, which documents are in a batch, what there is.

python -m cpt.data plan --config=configs/data_mixing.py:curriculum --out=mix.html     # the mix over time
python -m cpt.data show --config=configs/pile_to_slimpajama.py --step=300             # the batch of an update
python -m cpt.data overlap --config=configs/pile_to_slimpajama.py                     # held out, and trained on too?
python -m cpt.data --list                                      # corpora, tokenizers, mixers, schedules of replay
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.text import Text

from cpt import cli
from cpt.errors import ConfigError, nearest
from cpt.rooms import show_rooms

COMMANDS = ("show", "plan", "overlap")
ROOMS = {
    "sources.<name>.corpus": "cpt.data.corpora",
    "tokenizer.kind": "cpt.data.tokenizers",
    "phases.<name>.mixer.kind": "cpt.data.mixers",
    "phases.<name>.replay.schedule.kind": "cpt.data.replay_shares",
}


def define_flags(command: str | None) -> None:
    """The flags of one of the commands, or of none."""
    if command is None:
        flags.DEFINE_bool("list", False, "Show every method of the room with a line on each.")
        return
    flags.DEFINE_string("config", None, "Recipe: FILE.py or FILE.py:ARGUMENT; fields change with --config.a.b=value.")
    if command == "overlap":
        return
    if command == "plan":
        flags.DEFINE_string("out", None, "Where to draw: a .html, .png or .svg.")
        return
    flags.DEFINE_integer("step", 0, "The update whose batch is shown; 0 is the first.")
    flags.DEFINE_integer("rows", 8, "Rows of it that are shown.", lower_bound=0)
    flags.DEFINE_integer("chars", 200, "Characters of each document.", lower_bound=1)
    flags.DEFINE_bool("json", False, "All rows as JSON lines, with the whole text as it is, for scripts.")


def main(command: str | None, overrides: list[str]) -> None:
    """The command; `overrides` are its `--config.a.b=value`."""
    given = flags.FLAGS
    if command is None:
        if not given.list:
            raise ConfigError(
                "--list shows corpora, tokenizers and mixers; plan, show and overlap are commands (see --help); "
                "to make a store see `python -m cpt.prepare --help`"
            )
        show_rooms(ROOMS)
        return
    if not given.config:
        raise ConfigError("--config: required, e.g. --config=configs/pile_to_slimpajama.py (see --help)")
    plan = cli.read_plan(given.config, overrides)
    console = Console(width=None if sys.stdout.isatty() else 160)
    if command == "show":
        from cpt.data.inspecting import show

        show(plan, given.step, given.rows, given.chars, given.json, console)
        return
    if command == "overlap":
        from cpt.data.preparing import open_sources
        from cpt.evaluators.overlap import overlap_lines

        spec = plan.spec
        sources, _ = open_sources(
            spec.sources, spec.tokenizer, Path(spec.stores), lambda line: print(line, file=sys.stderr)
        )
        lines = list(overlap_lines(plan, sources, None))
        for line in lines or ["no evaluation document is in the training data"]:
            console.print(Text(line), soft_wrap=True)
        return
    from cpt.data.mix_picture import mix_table, write_mix
    from cpt.data.sizes import known_sizes

    sizes, unknown = known_sizes(plan)
    console.print(mix_table(plan, sizes))
    for name, why in unknown.items():
        console.print(Text(f"epochs of {name}: not known, {why}", "dim"), soft_wrap=True)
    if given.out:
        print(f"wrote {write_mix(plan, Path(given.out), sizes)}")


def run() -> int:
    """The command line."""
    is_override = re.compile(r"--?config\.").match
    overrides = [a for a in sys.argv[1:] if is_override(a)]
    argv = [a for a in sys.argv if not is_override(a)]
    command = argv.pop(1) if len(argv) > 1 and not argv[1].startswith("-") else None
    if command is not None and command not in COMMANDS:
        offered = f"(there are: {', '.join(COMMANDS)}; or --list)"
        print(ConfigError(f"{command}: no such command{nearest(command, COMMANDS)}  {offered}"), file=sys.stderr)
        return 2
    define_flags(command)
    return cli.call(lambda _: main(command, overrides), argv)


if __name__ == "__main__":
    sys.exit(run())
