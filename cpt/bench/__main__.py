"""Benchmarks: what training costs here, and what the trainer and the data room add to it.

    python -m cpt.bench                                  # the tiny recipe
    python -m cpt.bench --config=FILE.py --out=bench/    # another one; writes bench/step.json
    python -m cpt.bench --suite=loader                   # batches out of token stores
    python -m cpt.bench --suite=prepare --megabytes=1000 # text into token stores, with kills on the way
    python -m cpt.bench --suite=checkpoint --rounds=10   # what a checkpoint every 20 updates costs
    python -m cpt.bench --suite=resume                   # from the start of a process to its first update

Of the step, two things run in turn, several times over, on the same model and the same tokens: our trainer, and a plain
jitted loop with the same model that does nothing else. Machines are noisy, so the figure to trust is their ratio within
one run; so it is with preparing, beside the tokenizer alone.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags
from rich.console import Console
from rich.table import Table

from cpt import cli
from cpt.config import load
from cpt.errors import ConfigError
from cpt.evaluators.rows import write_atomic
from cpt.plan import resolve

CONFIG = config_flags.DEFINE_config_file(
    "config", "configs/pile_to_slimpajama.py", "Recipe to time.", lock_config=False, accept_new_attributes=True
)
SUITE = flags.DEFINE_enum("suite", "step", ["step", "loader", "prepare", "checkpoint", "resume"], "What to measure.")
STEPS = flags.DEFINE_integer("steps", 60, "Updates per round (step).", lower_bound=10)
ROUNDS = flags.DEFINE_integer("rounds", 4, "Rounds; each times everything once (all but prepare).", lower_bound=1)
SECONDS = flags.DEFINE_float("seconds", 5.0, "Measured per round (loader).", lower_bound=0.1)
MEGABYTES = flags.DEFINE_integer("megabytes", 100, "Text to prepare (prepare).", lower_bound=1)
KILLS = flags.DEFINE_integer("kills", 5, "SIGKILLs on the way (prepare).", lower_bound=0)
WORKERS = flags.DEFINE_list("workers", ["2", "1", "4"], "Numbers of processes, each in turn (prepare).")
OUT = flags.DEFINE_string("out", None, "Folder for <suite>.json.")


def main(argv: list[str]) -> int:
    """The command; returns its exit code."""
    del argv
    console = Console()
    say = lambda line: console.print(line, highlight=False, soft_wrap=True)  # noqa: E731
    suites = {"step": _step, "loader": _loader, "prepare": _prepare, "checkpoint": _checkpoint, "resume": _resume}
    result = suites[SUITE.value](say, console)
    result["machine"] = f"{platform.processor() or platform.machine()}, Python {platform.python_version()}"
    if OUT.value:
        Path(OUT.value).mkdir(parents=True, exist_ok=True)
        say(f"wrote {write_atomic(Path(OUT.value) / f'{SUITE.value}.json', json.dumps(result, indent=1))}")
    return 0


def _step(say: Callable[[str], None], console: Console) -> dict[str, Any]:
    if CONFIG.value is None:
        raise ConfigError("--config: required, e.g. --config=configs/pile_to_slimpajama.py")
    from cpt.bench.step import bench_step

    plan = resolve(load(CONFIG.value, config_flags.get_override_values(flags.FLAGS["config"])))
    result = bench_step(plan, STEPS.value, ROUNDS.value, say)
    table = Table(box=None, header_style="bold")
    for title in ("loop", "ms/step median", "p95", "tokens/s", "GFLOP/s", "share of matmul peak"):
        table.add_column(title, justify="right" if title != "loop" else "left")
    for name in ("trainer", "plain"):
        r = result[name]
        table.add_row(
            name,
            f"{r['median_ms']:.1f}",
            f"{r['p95_ms']:.1f}",
            f"{r['tokens_per_second']:,.0f}",
            f"{r['gflops_per_second']:.1f}",
            f"{100 * r['share_of_peak']:.0f} %",
        )
    console.print(table)
    rounds = ", ".join(f"{r:.3f}" for r in result["ratios"])
    say(
        f"matmul peak, same run: {result['peak_gflops_per_second']:.0f} GFLOP/s · "
        f"trainer/plain: {result['ratio']:.3f}, the median of {ROUNDS.value} rounds ({rounds})"
    )
    return result


def _checkpoint(say: Callable[[str], None], console: Console) -> dict[str, Any]:
    del console
    from cpt.bench.checkpoint import bench_checkpoint, show

    plan = resolve(load(CONFIG.value, config_flags.get_override_values(flags.FLAGS["config"])))
    result = bench_checkpoint(plan, ROUNDS.value, say)
    show(result, say)
    return result


def _resume(say: Callable[[str], None], console: Console) -> dict[str, Any]:
    del console
    from cpt.bench.resume import bench_resume

    arguments = [a for a in sys.argv[1:] if a.startswith(("--config=", "--config."))]
    if not any(a.startswith("--config=") for a in arguments):
        arguments.insert(0, "--config=configs/pile_to_slimpajama.py")
    result = bench_resume(arguments, ROUNDS.value, say)
    new_s, resumed_s = result["new_s"], result["resumed_s"]
    say(f"from the start of the process to the first update: new {new_s:.1f} s, resumed {resumed_s:.1f} s")
    return result


def _loader(say: Callable[[str], None], console: Console) -> dict[str, Any]:
    from cpt.bench.loader import bench_loader

    result = bench_loader(SECONDS.value, ROUNDS.value, say)
    rounds = ", ".join(f"{r / 1e6:.1f}" for r in result["rounds"])
    say(
        f"three sources and replay, rows of {result['sequence_length']:,} tokens: "
        f"{result['tokens_per_second'] / 1e6:.1f} M tokens/s in one process ({rounds})"
    )
    say(
        f"first batch: {result['first_batch_s']:.3f} s at step 0, {result['first_batch_far_s']:.3f} s at "
        f"step {result['far_step']:,}"
    )
    return result


def _prepare(say: Callable[[str], None], console: Console) -> dict[str, Any]:
    from cpt.bench.prepare import bench_prepare

    try:
        workers = [int(n) for n in WORKERS.value]
    except ValueError as e:
        raise ConfigError(f"--workers: numbers separated by commas, got {','.join(WORKERS.value)}") from e
    result = bench_prepare(MEGABYTES.value, KILLS.value, workers, say)
    table = Table(box=None, header_style="bold")
    for title in ("", "seconds", "MB/s", "peak memory"):
        table.add_column(title, justify="right" if title else "left")
    rate = lambda seconds: f"{result['text_bytes'] / seconds / 1e6:.1f}"  # noqa: E731
    alone = result["encode_batch_s"]
    table.add_row("encode_batch alone", f"{alone:.1f}", rate(alone), "")
    for run in result["runs"]:
        seconds, memory = run["seconds"], f"{run['peak_memory_mb']:.0f} MB"
        table.add_row(f"cpt.prepare, {run['workers']} workers", f"{seconds:.1f}", rate(seconds), memory)
    killed = result["killed"]
    table.add_row(f"killed at {', '.join(map(str, killed['kills_at_s']))} s", f"{killed['seconds']:.1f}", "", "")
    console.print(table)
    same = "the same bytes every time" if result["identical"] else "DIFFERENT BYTES"
    say(f"speed beside encode_batch, same run: {result['ratio']:.2f} · {same}")
    return result


if __name__ == "__main__":
    cli.run(main)
