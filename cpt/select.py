"""Make a store of the best documents of another one: the quality subset of "Mitigating the Stability Gap" (2406.14833).

Example:
  python -m cpt.select --store=stores/new --reference=stores/wiki --keep_tokens=5e9 --out=stores/new_hq
  python -m cpt.select --store=stores/new --scorer=checkpoint --workdir=runs/base --keep_tokens=5e9 --out=stores/easy

Documents are scored by their mean nats per token, lower being better: under an n-gram model of the reference store, a
KenLM model of your own, or a checkpoint. The scores stay beside the result, so another budget takes seconds.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from cpt.cli import run
from cpt.data.scorers._base import ScorerSpec
from cpt.data.selecting import SCORES, select
from cpt.data.store import TokenStore
from cpt.data.tokenizers._base import load
from cpt.errors import ConfigError
from cpt.registry import available, find


def define_flags() -> None:
    """A function, so that importing this module leaves other commands' flags of the same names alone."""
    scorers = ", ".join(available("cpt.data.scorers"))
    flags.DEFINE_string("store", None, "folder of the store to select from")
    flags.DEFINE_string("out", None, "folder of the new store")
    flags.DEFINE_float("keep_tokens", None, "budget of tokens of its training split")
    flags.DEFINE_string("scorer", "ngram", f"one of {scorers}, or package.module:name")
    flags.DEFINE_string("reference", None, "store of what documents should be like (ngram)")
    flags.DEFINE_float("reference_tokens", 100e6, "how much of it is read (ngram)")
    flags.DEFINE_integer("order", 3, "order of the n-gram model (ngram)")
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
    store, out = Path(given.store).expanduser(), Path(given.out).expanduser()
    train = TokenStore.open(store)
    if not train.manifest:
        raise ConfigError(f"--store={given.store}: not a store of `python -m cpt.prepare`, so it knows no documents")
    spec = ScorerSpec(
        kind=given.scorer,
        tokenizer=load(store, train.manifest["tokenizer"]["eod_token"]),
        reference=TokenStore.open(Path(given.reference).expanduser()) if given.reference else None,
        reference_tokens=int(given.reference_tokens),
        order=given.order,
        model=Path(given.model).expanduser() if given.model else None,
        workdir=Path(given.workdir).expanduser() if given.workdir else None,
        step=given.step,
    )
    make = find("cpt.data.scorers", spec.kind, "--scorer")
    words = [a for a in sys.argv[1:] if a.startswith("--")]
    command = shlex.join(["python", "-m", "cpt.select", *words])
    budget = int(given.keep_tokens)
    manifest = _with_progress(
        lambda progress: select(
            store, lambda: make(spec), spec.identity(), out, budget, given.worst, given.min_tokens, command, progress
        )
    )
    _show(train, manifest, out)


def _with_progress(work: Any) -> dict[str, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(file=sys.stderr)
    columns = TextColumn("scoring"), BarColumn(), TextColumn("{task.completed:,} of {task.total:,} documents")
    bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True,
                   disable=not console.is_terminal)  # fmt: skip
    with bar:
        task = bar.add_task("scoring", total=0)
        return work(lambda done, of: bar.update(task, completed=done, total=of))


def _show(train: TokenStore, manifest: dict[str, Any], out: Path) -> None:
    """Histogram of the scores with what was taken of each bin, by domain below."""
    from rich.console import Console
    from rich.table import Table

    kept = manifest["selection"]
    scores = np.fromfile(out / SCORES, "<f4")
    console = Console(highlight=False)
    finite = scores[np.isfinite(scores)]
    counts, edges = np.histogram(finite, bins=16, range=tuple(np.quantile(finite, (0.002, 0.998))))
    for n, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        taken = low >= kept["threshold"] if kept["worst"] else low <= kept["threshold"]
        bar = "█" * round(40 * n / max(1, counts.max()))
        console.print(f"{low:7.3f} to {high:7.3f}  {n:>9,}  [{'green' if taken else 'dim'}]{bar}[/]")
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("domain", "documents", "tokens", "taken", "of its tokens"):
        table.add_column(title, justify="left" if title == "domain" else "right")
    new = manifest["splits"]["train"]["domains"]
    for domain, old in train.manifest["splits"]["train"]["domains"].items():
        taken = new.get(domain, {}).get("tokens", 0)
        row = (
            f"{old['documents']:,}",
            f"{old['tokens']:,}",
            f"{taken:,}",
            f"{100 * taken / max(1, old['tokens']):.1f} %",
        )
        table.add_row(domain or "(all)", *row)
    console.print(table)
    side = "above" if kept["worst"] else "below"
    console.print(
        f"{out}: {kept['documents']:,} documents, {kept['tokens']:,} tokens, their score {side} "
        f"{kept['threshold']:.4f} nats per token",
        soft_wrap=True,
    )


if __name__ == "__main__":
    define_flags()
    run(main)
