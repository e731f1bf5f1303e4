"""Merge checkpoints of a run into one, in place of a cooldown (WSM, arXiv 2507.17634).

  python -m cpt.merge --workdir=runs/demo-3f9c2a71 --steps=400,450,500,550,600 --weights=1-sqrt --out=runs/merged
  python -m cpt.main --config=... --config.init.from_run=runs/merged

A weighted average of checkpoints of a constant learning rate is about the model that a cooldown over them would have
given: `uniform` is a linear one. The result is an ordinary checkpoint in a run directory of its own.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from cpt.cli import run
from cpt.errors import ConfigError
from cpt.schedules.merging import effective_weights, named_coefficients


def define_flags() -> None:
    """The command's flags; only defined when it is run, since other commands use the same names."""
    flags.DEFINE_string("workdir", None, "Run directory.")
    flags.DEFINE_list("steps", [], "Steps of the checkpoints, separated by commas.")
    flags.DEFINE_string("weights", "uniform", "uniform, linear, 1-sqrt, cosine, exp, ema:DECAY or a JSON file.")
    flags.DEFINE_string("out", None, "Folder for the merged checkpoint.")
    flags.DEFINE_bool("evaluate", True, "Also evaluate the average, and the last checkpoint for comparison.")


def main(argv: list[str]) -> None:
    """Read the flags, merge, say where it is."""
    del argv
    given = flags.FLAGS
    for name in ("workdir", "steps", "out"):
        if not getattr(given, name):
            raise ConfigError(f"--{name}: required (see --help)")
    try:
        steps = sorted({int(s) for s in given.steps})
    except ValueError as e:
        raise ConfigError(f"--steps: whole numbers separated by commas, got {','.join(given.steps)}") from e
    weights = named_coefficients(given.weights, len(steps))
    from cpt.training.merging import find_checkpoints, merge

    find_checkpoints(Path(given.workdir), steps)
    updates = ", ".join(f"{w:.3f}" for w in effective_weights(weights))
    print(f"averaging {len(steps)} checkpoints; the updates between them count {updates}")
    print(f"wrote {merge(Path(given.workdir), steps, weights, Path(given.out), given.evaluate, print)}")


if __name__ == "__main__":
    define_flags()
    run(main)
