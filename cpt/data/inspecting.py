"""What a batch holds: the rows of any update with their documents and their text, as the trainer will read them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cpt.data.mix import MixPlan
from cpt.data.preparing import Source, open_sources
from cpt.data.tokenizers._base import Tokenizer
from cpt.errors import ConfigError
from cpt.plan import RunPlan

END = "⏹"  # stands for the id that ends a document


@dataclass(frozen=True)
class ShownDocument:
    """The part of a document that lies in a row.

    Attributes:
      number, domain: in the store; the domain is "" where the store has none.
      tokens: how many of the row's tokens it has, the one that ends it included.
      text: what they decode to, as it is; the ids where there is no tokenizer.
      ends: whether the document ends in this row.
    """

    number: int
    domain: str
    tokens: int
    text: str
    ends: bool


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
    say = lambda line: console.print(Text(line), soft_wrap=True)  # noqa: E731
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
    clock = plan.clock(step)
    if as_json:
        head = {"step": step, "phase": clock.phase, "tokens": clock.tokens}
        columns = _by_column(plan, step)
        for row in found:
            # Past rich, which would take `:x:` in a text for an emoji.
            console.out(json.dumps({**head, **columns[row.column], **asdict(row)}), highlight=False)
        return
    say(f"update {step:,}: phase {clock.phase}, step {clock.step_in_phase:,} of it, after {clock.tokens:,} tokens")
    console.print(_columns(plan, mix, step))
    for row, _ in zip(found, range(rows), strict=False):
        console.print(_titled(row), soft_wrap=True)
        for document in row.documents:
            console.print(_line(document, chars), soft_wrap=True)
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
        documents = [ShownDocument(int(n), d, len(part), *_text(part, tokenizer)) for n, d, part in parts]
        yield ShownRow(b, columns[int(k)].name, name, int(row), documents)


def _text(ids: np.ndarray, tokenizer: Tokenizer | None) -> tuple[str, bool]:
    """The text of some tokens of a document and whether it ends with them; ids where nobody can read them."""
    if tokenizer is None:
        return " ".join(map(str, ids.tolist())), False
    ends = bool(len(ids) and ids[-1] == tokenizer.eod_id)
    return tokenizer.decode(ids[:-1] if ends else ids), ends


# `Text` and not markup: a text is full of what rich takes for markup (`\[` in LaTeX) or an emoji (`:x:`).
def _line(document: ShownDocument, chars: int) -> Text:
    """A document in one line: control characters escaped, its end marked."""
    domain = f" {document.domain}" if document.domain else ""
    line = Text("  ").append(f"document {document.number:,}{domain}, {document.tokens} tokens:", "dim").append(" ")
    shown = document.text[:chars]
    line.append("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown))
    return line.append("…" if len(document.text) > chars else "").append(END if document.ends else "")


def _titled(row: ShownRow) -> Text:
    source = f" of {row.source}" if row.column != row.source else ""
    return Text().append(f"row {row.row_in_batch}", "bold").append(f"  {row.column}, row {row.row:,}{source}")


def _by_column(plan: RunPlan, step: int) -> dict[str, dict[str, float]]:
    """Share and loss multiplier of each column of the batch of update `step`."""
    phase = plan.phase_at(step)
    inside = step - phase.first_step
    each = zip(phase.columns, phase.shares(inside), phase.multipliers(inside), strict=True)
    return {column.name: {"share": float(q), "multiplier": float(w)} for column, q, w in each}


def _columns(plan: RunPlan, mix: MixPlan, step: int) -> Table:
    phase = plan.phase_at(step)
    inside = step - phase.first_step
    counts = mix.counts(phase, inside + 1) - mix.counts(phase, inside)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("column", "rows", "share", "multiplier of its loss"):
        table.add_column(title, justify="left" if title == "column" else "right")
    for (name, told), count in zip(_by_column(plan, step).items(), counts, strict=True):
        table.add_row(escape(name), str(count), f"{100 * told['share']:.4g} %", f"{told['multiplier']:.4g}")
    return table
