"""What a batch holds: the rows of any update with their documents and their text, as the trainer will read them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cpt.data.mix import MixPlan
from cpt.data.preparing import Source, open_sources
from cpt.data.tokenizers._base import Tokenizer
from cpt.errors import ConfigError
from cpt.plan import RunPlan

END = "⏹"  # stands for the id that ends a document


@dataclass(frozen=True)
class ShownDocument:
    """The part of a document that lies in a row: its number in the store, its domain, its tokens there, their text."""

    number: int
    domain: str
    tokens: int
    text: str


@dataclass(frozen=True)
class ShownRow:
    """A row of a batch: where it comes from and the documents in it."""

    row_in_batch: int
    column: str
    source: str
    row: int
    documents: list[ShownDocument]


def show(plan: RunPlan, step: int, rows: int, chars: int, as_json: bool, console: Console) -> None:
    """Print the batch of update `step`, its first `rows` rows with up to `chars` characters of each document.

    Raises:
      ConfigError: no such step.
      DataError: the data is missing or does not last.
    """
    if not 0 <= step < plan.total_steps:
        raise ConfigError(f"--step={step}: the plan has the updates 0 to {plan.total_steps - 1:,}")
    say = lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True)  # noqa: E731
    quiet = Console(stderr=True)
    sources, tokenizer = open_sources(
        plan.spec.sources, plan.spec.tokenizer, Path(plan.spec.stores), lambda line: quiet.print(line, highlight=False)
    )
    mix = MixPlan(
        plan,
        {name: source.train.rows(plan.spec.batch.length) for name, source in sources.items()},
        {name: source.epochs for name, source in sources.items()},
    )
    found = batch_rows(plan, mix, sources, tokenizer, step)
    if as_json:
        for row in found:
            say(json.dumps({"step": step, **asdict(row)}, ensure_ascii=False))
        return
    clock = plan.clock(step)
    say(f"update {step:,}: phase {clock.phase}, step {clock.step_in_phase:,} of it, after {clock.tokens:,} tokens")
    console.print(_columns(plan, mix, step))
    for row, _ in zip(found, range(rows), strict=False):
        console.print(_titled(row), highlight=False, soft_wrap=True)
        for document in row.documents:
            domain = f" {document.domain}" if document.domain else ""
            text = document.text if len(document.text) <= chars else f"{document.text[:chars]}…"
            head = f"[dim]document {document.number:,}{escape(domain)}, {document.tokens} tokens:[/]"
            console.print(f"  {head} {escape(text)}", highlight=False, soft_wrap=True)
    left = plan.spec.batch.sequences - rows
    if left > 0:
        say(f"and {left:,} more rows (--rows={plan.spec.batch.sequences} shows all)")


def batch_rows(
    plan: RunPlan, mix: MixPlan, sources: Mapping[str, Source], tokenizer: Tokenizer | None, step: int
) -> Iterator[ShownRow]:
    """The rows of the batch of update `step`, in its order."""
    length, columns = plan.spec.batch.length, plan.phase_at(step).columns
    for b, (k, name, row) in enumerate(zip(*mix.batch_at(step), strict=True)):
        store = sources[name].train
        (ids,) = store.read_rows(np.array([row]), length)
        numbers = store.document_at(store.first_token(np.array([row]), length) + np.arange(len(ids)))
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        parts = zip(numbers[starts], store.domain_of(numbers[starts]), np.split(ids, starts[1:]), strict=True)
        documents = [ShownDocument(int(n), d, len(part), _text(part, tokenizer)) for n, d, part in parts]
        yield ShownRow(b, columns[int(k)].name, name, int(row), documents)


def _text(ids: np.ndarray, tokenizer: Tokenizer | None) -> str:
    """In one line: control characters escaped, the end of a document marked; ids where nobody can read them."""
    if tokenizer is None:
        return " ".join(map(str, ids.tolist()))
    ends = len(ids) and ids[-1] == tokenizer.eod_id
    text = tokenizer.decode(ids[:-1] if ends else ids)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text) + (END if ends else "")


def _titled(row: ShownRow) -> str:
    source = f" of {escape(row.source)}" if row.column != row.source else ""
    return f"[bold]row {row.row_in_batch}[/]  {escape(row.column)}, row {row.row:,}{source}"


def _columns(plan: RunPlan, mix: MixPlan, step: int) -> Table:
    phase = plan.phase_at(step)
    inside = step - phase.first_step
    counts = mix.counts(phase, inside + 1) - mix.counts(phase, inside)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("column", "rows", "share", "multiplier of its loss"):
        table.add_column(title, justify="left" if title == "column" else "right")
    rows: list[Any] = [phase.columns, counts, phase.shares(inside), phase.multipliers(inside)]
    for column, count, share, multiplier in zip(*rows, strict=True):
        table.add_row(escape(column.name), str(count), f"{100 * share:.4g} %", f"{multiplier:.4g}")
    return table
