"""What the data room offers: readers of text, tokenizers, mixers.

python -m cpt.data --list
"""

from __future__ import annotations

from absl import flags

from cpt import cli
from cpt.errors import ConfigError
from cpt.rooms import show_rooms

ROOMS = {
    "sources.<name>.corpus": "cpt.data.corpora",
    "tokenizer.kind": "cpt.data.tokenizers",
    "phases.<name>.mixer.kind": "cpt.data.mixers",
}


def main(argv: list[str]) -> None:
    """The command."""
    del argv
    if not flags.FLAGS.list:
        raise ConfigError(
            "--list: shows corpora, tokenizers and mixers; to make a store see `python -m cpt.prepare --help`"
        )
    show_rooms(ROOMS)


if __name__ == "__main__":
    flags.DEFINE_bool("list", False, "Show every corpus, tokenizer and mixer with a line on each.")
    cli.run(main)
