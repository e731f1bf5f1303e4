"""Benchmarks: what training costs here, and what the trainer and the data room add to it.

    python -m cpt.bench                                  # the tiny recipe
    python -m cpt.bench --config=FILE.py --out=bench/    # another one; writes bench/step.json
    python -m cpt.bench --suite=loader                   # batches out of token stores
    python -m cpt.bench --suite=prepare --megabytes=1000 # text into token stores, with kills on the way
    python -m cpt.bench --suite=eval                     # evaluations, beside what they must cost
    python -m cpt.bench --suite=checkpoint --rounds=10   # what a checkpoint every 20 updates costs
    python -m cpt.bench --suite=resume                   # from the start of a process to its first update
    python -m cpt.bench --suite=sweep                    # what a sweep adds to each of its runs
    python -m cpt.bench --suite=peers                    # beside plain Flax, and Hugging Face on PyTorch
    python -m cpt.bench --suite=growth --out=bench/      # costs by size, fitted exponents, a figure
    python -m cpt.bench --suite=gpu --out=bench/         # everything that needs a GPU, within nine minutes
    python -m cpt.bench --suite=all --out=bench/         # all of the others, one after the other

Machines are noisy. What is compared takes turns within one run, and the figure to trust is their ratio; timing starts
when three steps in a row were within 2 %, and steps during which other processes used the cores are left out and
counted (where all were such, the count has a *).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags
from rich.console import Console

from cpt import cli
from cpt.backend import keep_memory
from cpt.bench.suites import SUITES, Ask, every
from cpt.config import load
from cpt.errors import ConfigError
from cpt.evaluators.rows import write_atomic
from cpt.plan import RunPlan, resolve

RECIPE = "configs/pile_to_slimpajama.py"
CONFIG = config_flags.DEFINE_config_file(
    "config", RECIPE, "Recipe to time (step, eval, checkpoint, resume).", lock_config=False, accept_new_attributes=True
)
SUITE = flags.DEFINE_enum("suite", "step", [*SUITES, "all"], "What to measure.")
STEPS = flags.DEFINE_integer("steps", None, "Updates per round (step), in all (eval), or turns (peers).", lower_bound=4)
ROUNDS = flags.DEFINE_integer("rounds", 4, "Rounds; each times everything once (step, loader, ...).", lower_bound=1)
SECONDS = flags.DEFINE_float("seconds", 5.0, "Measured per round (loader).", lower_bound=0.1)
MEGABYTES = flags.DEFINE_integer("megabytes", 100, "Text to prepare (prepare).", lower_bound=1)
KILLS = flags.DEFINE_integer("kills", 5, "SIGKILLs on the way (prepare).", lower_bound=0)
WORKERS = flags.DEFINE_list("workers", ["2", "1", "4"], "Numbers of processes, each in turn (prepare).")
CHECKPOINTS = flags.DEFINE_integer("checkpoints", 40, "Checkpoints to evaluate (eval).", lower_bound=3)
PEER_PYTHON = flags.DEFINE_string(
    "peer_python", None, "A Python with torch and transformers; by default an environment is made (peers, gpu)."
)
MINUTES = flags.DEFINE_float("minutes", 9.0, "For all parts together (gpu).", lower_bound=0.1)
SMALL = flags.DEFINE_bool("small", False, "The same at toy sizes, on any device (peers, growth, gpu).")
OUT = flags.DEFINE_string("out", None, "Folder for <suite>.json.")


def main(argv: list[str]) -> int:
    """The command; returns its exit code."""
    del argv
    keep_memory()  # as the training command does
    out = None if OUT.value is None else Path(OUT.value)
    config = [a for a in sys.argv[1:] if a.startswith(("--config=", "--config."))]
    if not any(a.startswith("--config=") for a in config):
        config.insert(0, f"--config={RECIPE}")
    ask = Ask(
        Console(width=None if sys.stdout.isatty() else 160),
        _plan,
        config,
        steps=STEPS.value,
        rounds=ROUNDS.value,
        seconds=SECONDS.value,
        megabytes=MEGABYTES.value,
        kills=KILLS.value,
        workers=WORKERS.value,
        checkpoints=CHECKPOINTS.value,
        peer_python=PEER_PYTHON.value,
        minutes=MINUTES.value,
        out=out,
        small=SMALL.value,
    )
    if SUITE.value == "all":
        result = every(ask, [a for a in sys.argv[1:] if not a.startswith("--suite")])
    else:
        result = SUITES[SUITE.value](ask)
        from cpt.bench.facts import facts  # starts JAX, which a suite may first have to tell something

        result |= facts()
        said = ", ".join(f"{k} {v}" for k, v in result["versions"].items() if k in ("cpt", "jax"))
        ask.say(f"{result['machine']} · {result['devices']} · {said} · commit {result['commit']}")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        ask.say(f"wrote {write_atomic(out / f'{SUITE.value}.json', json.dumps(result, indent=1))}")
    return max(result.get("exit_codes", {}).values(), default=0)


def _plan() -> RunPlan:
    if CONFIG.value is None:
        raise ConfigError(f"--config: required, e.g. --config={RECIPE}")
    return resolve(load(CONFIG.value, config_flags.get_override_values(flags.FLAGS["config"])))


if __name__ == "__main__":
    cli.run(main)
