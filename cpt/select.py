"""Make a store of the best documents of another one: the quality subset of "Mitigating the Stability Gap" (2406.14833).

Example:
  python -m cpt.select --store=stores/new --reference=stores/wiki --keep_tokens=5e9 --out=stores/new_hq
  python -m cpt.select --store=stores/new --reference=stores/wiki --keep_tokens=1e9 --out=stores/new_1b \\
      --scores=stores/new_hq
  python -m cpt.select --store=stores/new --scorer=checkpoint --workdir=runs/base --keep_tokens=5e9 --out=stores/easy

Documents are scored by their mean nats per token, lower being better: under an n-gram model of the reference store, a
KenLM model of your own, or a checkpoint. The scores stay beside the result: stopped and run again it goes on where it
was, and another budget takes them from there with --scores.
"""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from cpt.cli import run
from cpt.data.scorers._base import ScorerSpec, scorer_of
from cpt.data.selecting import SCORES, select
from cpt.data.store import TokenStore
from cpt.data.tokenizers._base import load
from cpt.errors import ConfigError
from cpt.registry import available

BARS = " ▁▂▃▄▅▆▇█"


def define_flags() -> None:
    """A function, so that importing this module leaves other commands' flags of the same names alone."""
    scorers = ", ".join(available("cpt.data.scorers"))
    flags.DEFINE_string("store", None, "folder of the store to select from")
    flags.DEFINE_string("out", None, "folder of the new store")
    flags.DEFINE_float("keep_tokens", None, "budget of tokens of its training split")
    flags.DEFINE_string("scorer", "ngram", f"one of {scorers}, or package.module:name")
    flags.DEFINE_string("scores", None, "folder where the scores are kept, for several budgets (default: --out)")
    flags.DEFINE_string("reference", None, "store of what documents should be like (ngram)")
    flags.DEFINE_float("reference_tokens", 100e6, "how much of it is read, spread over all of it (ngram)")
    flags.DEFINE_integer("order", 3, "order of the n-gram model (ngram)")
    flags.DEFINE_integer("max_ngrams", 1 << 24, "of one order that are kept, the commonest: bounds the memory (ngram)")
    flags.DEFINE_string("model", None, "a .arpa or .binary file (kenlm)")
    flags.DEFINE_string("workdir", None, "directory of a run (checkpoint)")
    flags.DEFINE_integer("step", None, "which of its checkpoints; the newest by default (checkpoint)")
    flags.DEFINE_bool("worst", False, "take the highest scores instead, as a control")
    flags.DEFINE_integer("min_tokens", 32, "shorter documents are not taken: a mean of a few tokens says little")


def main(argv: list[str]) -> None:
    """Select what the flags say, then show what was taken."""
    given = flags.FLAGS
    for name in ("store", "out", "keep_tokens"):
        if getattr(given, name) is None:
            raise ConfigError(f"--{name}: required (see --help)")
    budget, reference_tokens = _tokens("keep_tokens"), _tokens("reference_tokens")
    store, out, scores = _folder("store"), _folder("out"), _folder("scores")
    train = TokenStore.open(store)
    if not train.manifest:
        raise ConfigError(f"--store={given.store}: not a store of `python -m cpt.prepare`, so it knows no documents")
    spec = ScorerSpec(
        kind=given.scorer,
        tokenizer=load(store, train.manifest["tokenizer"]["eod_token"]),
        reference=TokenStore.open(_folder("reference")) if given.reference else None,
        reference_tokens=reference_tokens,
        order=given.order,
        max_ngrams=given.max_ngrams,
        model=_folder("model"),
        workdir=_folder("workdir"),
        step=given.step,
    )
    scorer, command = scorer_of(spec), shlex.join(["python", "-m", "cpt.select", *sys.argv[1:]])
    work = lambda progress: select(  # noqa: E731
        store, scorer, out, budget, given.worst, given.min_tokens, scores, command, progress
    )
    _show(train, _with_progress(work), out, (scores or out) / SCORES)


def _tokens(flag: str) -> int:
    """A number of tokens that may be written 5e9."""
    value = getattr(flags.FLAGS, flag)
    if not (math.isfinite(value) and value >= 1):
        raise ConfigError(f"--{flag}: {value:g} is out of range (>= 1)")
    return int(value)


def _folder(flag: str) -> Path | None:
    value = getattr(flags.FLAGS, flag)
    return Path(value).expanduser() if value else None


def _with_progress(work: Callable[[Callable[[int, int], None]], dict[str, Any]]) -> dict[str, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(file=sys.stderr)
    columns = TextColumn("scoring"), BarColumn(), TextColumn("{task.completed:,} of {task.total:,} documents")
    bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True,
                   disable=not console.is_terminal)  # fmt: skip
    with bar:
        task = bar.add_task("scoring", total=0)
        return work(lambda done, of: bar.update(task, completed=done, total=of))


def _show(train: TokenStore, manifest: dict[str, Any], out: Path, file: Path) -> None:
    """Histogram of the scores, what is taken in green; below it by domain; then one line that says it all."""
    from rich.console import Console
    from rich.table import Table

    kept, console = manifest["selection"], Console(highlight=False)
    domain_bins: dict[str, np.ndarray] = {}
    if file.is_file():  # somebody may have made room
        counts, edges, domain_bins = _histogram(train, np.load(file))
        colours = _colours(edges, kept)
        for n, low, high, colour in zip(counts, edges[:-1], edges[1:], colours, strict=True):
            bar = "█" * round(40 * n / max(1, counts.max()))
            console.print(f"{low:7.3f} to {high:7.3f}  {n:>9,}  [{colour}]{bar}[/]")
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("domain", "documents", "tokens", "taken", "of its tokens"):
        table.add_column(title, justify="left" if title == "domain" else "right")
    if domain_bins:
        table.add_column("scores, low to high")
    new = manifest["splits"]["train"]["domains"]
    for domain, old in train.manifest["splits"]["train"]["domains"].items():
        taken = new.get(domain, {}).get("tokens", 0)
        share = f"{100 * taken / max(1, old['tokens']):.1f} %"
        bars = [_bars(domain_bins[domain], colours)] if domain_bins else []
        table.add_row(domain or "(all)", f"{old['documents']:,}", f"{old['tokens']:,}", f"{taken:,}", share, *bars)
    console.print(table)
    side = "at or above" if kept["worst"] else "at or below"
    console.print(
        f"{out}: {kept['documents']:,} documents, {kept['tokens']:,} tokens, their score {side} "
        f"{kept['threshold']:.4f} nats per token",
        soft_wrap=True,
    )


def _histogram(train: TokenStore, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """(documents in each bin, edges of the bins, documents in each bin by domain); the outermost bins are open."""
    finite = scores[np.isfinite(scores)]
    edges = np.histogram_bin_edges(finite, bins=16, range=tuple(np.quantile(finite, (0.002, 0.998))))
    bins: dict[str, np.ndarray] = {}
    before = 0
    for shard in train.shards:
        mine = scores[before : before + shard.n_documents]
        mine = np.clip(mine[np.isfinite(mine)], edges[0], edges[-1])
        bins[shard.domain] = bins.get(shard.domain, 0) + np.histogram(mine, edges)[0]
        before += shard.n_documents
    return sum(bins.values()), edges, bins


def _colours(edges: np.ndarray, kept: dict[str, Any]) -> list[str]:
    """Of the bins: green where documents are taken."""
    threshold = np.clip(kept["threshold"], edges[0], edges[-1])  # the outermost bins are open
    taken = edges[1:] >= threshold if kept["worst"] else edges[:-1] <= threshold
    return ["green" if t else "dim" for t in taken]


def _bars(counts: np.ndarray, colours: list[str]) -> str:
    heights = np.ceil(8 * counts / max(1, counts.max())).astype(int)
    return "".join(f"[{colour}]{BARS[height]}[/]" for height, colour in zip(heights, colours, strict=True))


if __name__ == "__main__":
    define_flags()
    run(main)
