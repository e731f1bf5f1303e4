"""Benchmarks: what training costs here, and what the trainer adds to it.

    python -m cpt.bench                                  # the tiny recipe
    python -m cpt.bench --config=FILE.py --out=bench/    # another one; writes bench/step.json

Two things run in turn, several times over, on the same model and the same tokens: our trainer, and a plain jitted loop
with the same model that does nothing else. Machines are noisy, so the figure to trust is their ratio within one run.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path

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
SUITE = flags.DEFINE_enum("suite", "step", ["step"], "What to measure.")
STEPS = flags.DEFINE_integer("steps", 60, "Updates per round.", lower_bound=10)
ROUNDS = flags.DEFINE_integer("rounds", 4, "Rounds; each times both loops once.", lower_bound=1)
OUT = flags.DEFINE_string("out", None, "Folder for step.json.")


def main(argv: list[str]) -> int:
    """The command; returns its exit code."""
    if CONFIG.value is None:
        raise ConfigError("--config: required, e.g. --config=configs/pile_to_slimpajama.py")
    from cpt.bench.step import bench_step

    console = Console()
    plan = resolve(load(CONFIG.value, config_flags.get_override_values(flags.FLAGS["config"])))
    result = bench_step(plan, STEPS.value, ROUNDS.value, lambda line: console.print(line, highlight=False))
    result["machine"] = f"{platform.processor() or platform.machine()}, Python {platform.python_version()}"
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
    console.print(
        f"matmul peak, same run: {result['peak_gflops_per_second']:.0f} GFLOP/s · "
        f"trainer/plain: {result['ratio']:.3f}, the median of {ROUNDS.value} rounds ({rounds})",
        highlight=False,
    )
    if OUT.value:
        Path(OUT.value).mkdir(parents=True, exist_ok=True)
        console.print(
            f"wrote {write_atomic(Path(OUT.value) / 'step.json', json.dumps(result, indent=1))}", highlight=False
        )
    return 0


if __name__ == "__main__":
    cli.run(main)
