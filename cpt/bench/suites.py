"""The suites: what each is given, what it says, and the table that it ends with."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cpt.errors import ConfigError
from cpt.plan import RunPlan

DEFAULT_STEPS = {"step": 60, "eval": 60, "peers": 20}


@dataclass(frozen=True)
class Ask:
    """What the command was given.

    Attributes:
      console: to print on.
      plan: reads the recipe.
      config: `--config` and its overrides, as they were typed.
      steps: updates, or turns; None is what `DEFAULT_STEPS` says.
      out: folder for results.
      small: toy sizes.
    """

    console: Console
    plan: Callable[[], RunPlan]
    config: list[str]
    steps: int | None = None
    rounds: int = 4
    seconds: float = 5.0
    megabytes: int = 100
    kills: int = 5
    workers: Sequence[str] = ("2", "1", "4")
    checkpoints: int = 40
    peer_python: str | None = None
    minutes: float = 9.0
    out: Path | None = None
    small: bool = False

    def say(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True, markup=False)

    def steps_of(self, suite: str) -> int:
        return self.steps or DEFAULT_STEPS[suite]

    def table(self, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """The first column names, the others are numbers."""
        table = Table(box=None, header_style="bold")
        for i, title in enumerate(titles):
            table.add_column(title, justify="right" if i else "left")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)


def step(ask: Ask) -> dict[str, Any]:
    """The trainer beside its bare update and a plain loop."""
    from cpt.bench.step import bench_step

    result = bench_step(ask.plan(), ask.steps_of("step"), ask.rounds, ask.say)
    peak = result["stated_peak_gflops_per_second"]
    titles = ("loop", "ms/step median", "p95", "tokens/s", "GFLOP/s", "of matmul rate: PaLM", "causal", "contended")
    rows = []
    for name in ("trainer", "bare", "plain"):
        r = result[name]
        shares = [f"{100 * r[f'of_matmul_{k}']:.0f} %" for k in ("palm", "causal")]
        times = [f"{1e3 * r[k]:.1f}" for k in ("median_s", "p95_s")]
        rates = f"{r['tokens_per_second']:,.0f}", f"{r['gflops_per_second']:.1f}"
        rows.append((name, *times, *rates, *shares, contended(r)))
    ask.table(titles, rows)
    if peak:
        mfu = ", ".join(f"{k} {100 * result['trainer'][f'mfu_{k}']:.1f} %" for k in ("palm", "causal"))
        ask.say(f"MFU of the stated {peak / 1e3:,.0f} TFLOP/s: {mfu}")
    seconds = dict(result["buckets"])
    wall = seconds.pop("wall")
    ask.say(
        f"matmul rate, same run: {result['matmul_gflops_per_second']:.0f} GFLOP/s · "
        + " · ".join(f"trainer/{n}: {_with_interval(result, n)}" for n in result["ratio"])
    )
    ask.say(
        f"data stall {100 * result['data_stall']:.2f} % · peak memory {result['peak_memory_bytes'] / 1e6:,.0f} MB · "
        f"buckets {', '.join(f'{k} {v:.2f}' for k, v in seconds.items())} s: "
        f"{100 * sum(seconds.values()) / wall:.2f} % of {wall:.2f} s"
    )
    return result


def contended(figures: dict[str, Any]) -> str:
    """`3 of 40`; with a * where disturbed steps had to be counted."""
    said = f"{figures['contended']} of {figures['counted'] + figures['contended'] * (not figures['all_contended'])}"
    return f"{said}*" if figures["all_contended"] else said


def checkpoint(ask: Ask) -> dict[str, Any]:
    """What a checkpoint every 20 updates costs."""
    from cpt.bench.checkpoint import bench_checkpoint, show

    result = bench_checkpoint(ask.plan(), ask.rounds, ask.say)
    show(result, ask.say)
    return result


def resume(ask: Ask) -> dict[str, Any]:
    """From the start of a process to its first update."""
    from cpt.bench.resume import bench_resume

    result = bench_resume(ask.config, ask.rounds, ask.say)
    new_s, resumed_s = result["new_s"], result["resumed_s"]
    ask.say(f"from the start of the process to the first update: new {new_s:.1f} s, resumed {resumed_s:.1f} s")
    return result


def sweep(ask: Ask) -> dict[str, Any]:
    """What a sweep adds to each of its runs."""
    from cpt.bench.sweep import bench_sweep

    result = bench_sweep(ask.plan(), ask.config, ask.rounds, ask.say)
    ask.say(
        f"{result['runs']} runs of {sum(result['alone_s']) / result['runs']:.2f} s: as a sweep of one worker "
        f"{result['ratio']:.2f} of their time ({result['each_s']:+.2f} s each); the finished sweep again: "
        f"{result['again_s']:.2f} s"
    )
    return result


def loader(ask: Ask) -> dict[str, Any]:
    """Batches out of token stores."""
    from cpt.bench.loader import bench_loader

    result = bench_loader(ask.seconds, ask.rounds, ask.say)
    rounds = ", ".join(f"{r / 1e6:.1f}" for r in result["rounds"])
    ask.say(
        f"three sources and replay, rows of {result['sequence_length']:,} tokens: "
        f"{result['tokens_per_second'] / 1e6:.1f} M tokens/s in one process ({rounds})"
    )
    ask.say(
        f"first batch: {result['first_batch_s']:.3f} s at step 0, {result['first_batch_far_s']:.3f} s at "
        f"step {result['far_step']:,}"
    )
    return result


def prepare(ask: Ask) -> dict[str, Any]:
    """Text into token stores, with kills on the way."""
    from cpt.bench.prepare import bench_prepare

    try:
        workers = [int(n) for n in ask.workers]
    except ValueError as e:
        raise ConfigError(f"--workers: numbers separated by commas, got {','.join(ask.workers)}") from e
    result = bench_prepare(ask.megabytes, ask.kills, workers, ask.say)
    rate = lambda seconds: f"{result['text_bytes'] / seconds / 1e6:.1f}"  # noqa: E731
    alone = result["encode_batch_s"]
    rows = [("encode_batch alone", f"{alone:.1f}", rate(alone), "")]
    for run in result["runs"]:
        seconds, memory = run["seconds"], f"{run['peak_memory_mb']:.0f} MB"
        rows.append((f"cpt.prepare, {run['workers']} workers", f"{seconds:.1f}", rate(seconds), memory))
    killed = result["killed"]
    rows.append((f"killed at {', '.join(map(str, killed['kills_at_s']))} s", f"{killed['seconds']:.1f}", "", ""))
    ask.table(("", "seconds", "MB/s", "peak memory"), rows)
    same = "the same bytes every time" if result["identical"] else "DIFFERENT BYTES"
    ask.say(f"speed beside encode_batch, same run: {result['ratio']:.2f} · {same}")
    return result


def evaluation(ask: Ask) -> dict[str, Any]:
    """Evaluations in the loop and of checkpoints, beside what they must cost."""
    from cpt.bench.evaluation import bench_evaluation

    result = bench_evaluation(ask.plan(), ask.steps_of("eval"), ask.checkpoints, ask.say)
    dense, later = result["dense"], result["checkpoints"]
    ask.say(
        f"an evaluation of {dense['evaluated_tokens']:,} tokens before an update on {dense['tokens_per_step']:,}: "
        f"{1e3 * dense['cost_s']:.1f} ms, {dense['over_model']:.2f} of E/(3B) of the {1e3 * dense['without_s']:.1f} ms"
        f" that an update takes · contended: {dense['contended']}{'*' if dense['all_contended'] else ''}"
    )
    ask.say(
        f"{later['checkpoints']} checkpoints: {1e3 * later['each_s']:.0f} ms each, {later['over_alone']:.2f} of "
        f"restoring ({1e3 * later['alone_restore_s']:.0f} ms) and scoring ({1e3 * later['alone_forward_s']:.0f} ms) "
        f"one after the other; {later['first_s']:.1f} s until the first was done"
    )
    return result


def peers(ask: Ask) -> dict[str, Any]:
    """Ours beside plain Flax and Hugging Face on PyTorch."""
    from cpt.bench.peers import suite

    shape = suite.SMALL if ask.small else suite.CPU
    result = suite.bench_peers(shape, ask.steps_of("peers"), ask.peer_python, ask.out, ask.say)
    rows = []
    for name, said in result["peers"].items():
        for what in ("step", "evaluate"):
            r, beside = said[what], [result[k].get(what, {}).get(name) for k in ("ratio", "ratio_cpu")]
            times = [f"{1e3 * r[k]:.1f}" for k in ("median_s", "p95_s")]
            rates = f"{r['tokens_per_second']:,.0f}", f"{r['gflops_per_second']:.1f}"
            rows.append((f"{name}: {what}", *times, *rates, contended(r), *(f"{b:.2f}" if b else "" for b in beside)))
    ask.table(("", "ms median", "p95", "tokens/s", "GFLOP/s", "contended", "over ours", "in processor time"), rows)
    for name, said in result["loss"].items():
        ask.say(f"loss at the same weights, {name}: {said['evaluation']:.6f} and {said['first_step']:.6f}")
    ask.say(f"largest relative difference from ours: {max(s['apart'] for s in result['loss'].values()):.1e}")
    return result


def growth(ask: Ask) -> dict[str, Any]:
    """How costs grow with sizes."""
    from cpt.bench.growth import bench_growth

    result = bench_growth(ask.small, ask.out, ask.say)
    rows = []
    for name, said in result["axes"].items():
        first, last = (f"{said['sizes'][i]:,}: {1e3 * said['seconds'][i]:.3g} ms" for i in (0, -1))
        found = [f"{said[k]:.2f}" for k in ("exponent", "exponent_upper", "arithmetic_upper")]
        rows.append((name, first, last, *found))
    ask.table(("", "smallest", "largest", "exponent", "of the upper half", "of the arithmetic"), rows)
    faster = result["faster_than_arithmetic"]
    ask.say(f"grow faster than their arithmetic: {', '.join(faster) if faster else 'none'}")
    return result


def gpu(ask: Ask) -> dict[str, Any]:
    """The plan for one GPU."""
    from cpt.bench.gpu import bench_gpu

    return bench_gpu(ask.small, ask.minutes, ask.peer_python, ask.out, ask.say)


SUITES: dict[str, Callable[[Ask], dict[str, Any]]] = {
    "step": step,
    "loader": loader,
    "prepare": prepare,
    "eval": evaluation,
    "checkpoint": checkpoint,
    "resume": resume,
    "sweep": sweep,
    "peers": peers,
    "growth": growth,
    "gpu": gpu,
}


def every(ask: Ask, arguments: list[str]) -> dict[str, Any]:
    """All suites but that of the GPU, each in a process of its own, so that none finds what another one left.

    Args:
      arguments: of this command, without `--suite`.
    """
    codes = {}
    for name in [n for n in SUITES if n != "gpu"]:
        ask.say(f"---- {name}")
        codes[name] = subprocess.run([sys.executable, "-m", "cpt.bench", *arguments, f"--suite={name}"]).returncode
    return {"exit_codes": codes}


def _with_interval(result: dict[str, Any], name: str) -> str:
    interval, rounds = result["ratio_ci95"][name], result["ratios"][name]
    within = f"95 % {interval[0]:.3f} to {interval[1]:.3f}, " if interval else ""
    of = f"{len(rounds)} rounds of {len(rounds[0])} turns; of all turns {result['ratio_of_all'][name]:.3f}"
    return f"{result['ratio'][name]:.3f} ({within}{of})"
