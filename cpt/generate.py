"""Let a model go on with a text, for a look at what it learned.

  python -m cpt.generate --workdir=runs/demo-3f9c2a71 --prompt='def main('
  python -m cpt.generate --workdir=runs/demo-3f9c2a71 --step=300 --prompt='The king' --tokens=200 --samples=3
  python -m cpt.generate --hf=models/pythia-160m --prompt='The king' --temperature=0      # the likeliest text

The text goes to standard output while it is made, and ends with its document or after `--tokens`; how long it took goes
to standard error. Of several samples the first is shown while it is made. The same seed gives the same texts.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from absl import flags

from cpt.cli import run
from cpt.errors import ConfigError


def define_flags() -> None:
    """The command's flags; only defined when it is run, since other commands use the same names."""
    flags.DEFINE_string("workdir", None, "Run directory.")
    flags.DEFINE_integer("step", None, "Which of its checkpoints; the newest by default.", lower_bound=0)
    flags.DEFINE_string("hf", None, "Hugging Face directory, in place of a run.")
    flags.DEFINE_string("prompt", None, "The text to go on with; '' begins a document.")
    flags.DEFINE_integer("tokens", 64, "Tokens to make, at most.", lower_bound=1)
    flags.DEFINE_float("temperature", 0.8, "Divides the logits; 0 takes the likeliest token.")
    flags.DEFINE_float("top_p", 0.95, "Draw from the fewest tokens that have this probability together.")
    flags.DEFINE_integer("seed", 0, "Of the draws.")
    flags.DEFINE_integer("samples", 1, "How many texts.", lower_bound=1)
    flags.DEFINE_string("tokenizer", None, "tokenizer.json, or its folder, where that of the model is not found.")


def main(argv: list[str]) -> None:
    """Read the flags, read the model, write its texts."""
    del argv
    given = flags.FLAGS
    if (given.workdir is None) == (given.hf is None):
        raise ConfigError("--workdir, --hf: give one of them, a run or a Hugging Face directory (see --help)")
    if given.step is not None and given.hf is not None:
        raise ConfigError("--step: a Hugging Face directory has no steps; it belongs to --workdir")
    if given.prompt is None:
        raise ConfigError("--prompt: required, e.g. --prompt='The king' (see --help)")
    from cpt.models.generation import Sampling  # these start JAX, which wrong flags need not
    from cpt.training import generating

    sampling = Sampling(given.temperature, given.top_p, given.seed)
    if given.hf is not None:
        opened = generating.open_hugging_face(Path(given.hf).expanduser(), given.tokenizer)
    else:
        opened = generating.open_run(Path(given.workdir).expanduser(), given.step, given.tokenizer)
    begun = time.monotonic()
    steps = generating.continuations(opened, given.prompt, given.tokens, given.samples, sampling)
    print(f"{opened.name}: read in {time.monotonic() - begun:.1f} s", file=sys.stderr)
    _show(given.prompt, steps, given.samples)


def _show(prompt: str, steps, samples: int) -> None:
    """Write the first text as it comes and the others after it, then say how long it took."""
    begun, first, count, texts, shown = time.monotonic(), 0.0, 0, [""] * samples, 0
    print(prompt, end="", flush=True)
    for count, texts in enumerate(steps, 1):  # noqa: B007  (the last one is asked for below)
        first = first or time.monotonic() - begun
        print(texts[0][shown:], end="", flush=True)
        shown = max(shown, len(texts[0]))
    print()
    for i, text in enumerate(texts[1:], 2):
        print(f"\n--- sample {i}\n{prompt}{text}")
    rest = time.monotonic() - begun - first
    rate = f", then {(count - 1) / rest:,.0f} per second" if count > 1 else ""
    each = " of each" if samples > 1 else ""
    print(f"{count} tokens{each}: the first after {first:.1f} s{rate}", file=sys.stderr)


if __name__ == "__main__":
    define_flags()
    run(main)
