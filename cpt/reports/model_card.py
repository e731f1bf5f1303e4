"""The README of an exported model: what it was trained on, in which order, and what it learned and forgot by that."""

from __future__ import annotations

from typing import Any

from cpt.evaluators import formatting as fmt
from cpt.evaluators.rows import RunFiles
from cpt.evaluators.summary import gap_cells
from cpt.reports.ledger_table import closing_lines
from cpt.units import human


def model_card(run: RunFiles, summary: dict[str, Any], model: list[tuple[str, str]], step: int) -> str:
    """Markdown with the front matter that the Hub reads.

    Args:
      run: files of the run.
      summary: of the run, as in `summary.json`; empty where nothing was evaluated.
      model: facts of the exported model, by name.
      step: of the exported checkpoint.
    """
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [continual-pre-training, cpt]\n---",
        f"# {run.plan.get('name') or run.name}\n\nTrained with `cpt`, exported at step {step:,}"
        + (f" of {total:,}." if (total := run.plan.get("total_steps")) else "."),
        _table("Model", ("", ""), model),
    ]
    if run.phases:
        heads = ("phase", "tokens", "steps", "mix", "learning rate", "optimizer")
        parts.append(_table("Phases", heads, [_phase(p) for p in run.phases]))
    if entries := run.ledger.get("phases"):
        heads = ("phase", "source", "role", "tokens", "unique tokens", "epochs")
        rows = [[e["phase"], e["source"], e["role"], *_counts(e)] for e in entries]
        parts.append(_table("Ledger", heads, rows) + "".join(f"\n\n{line}." for line in closing_lines(summary)))
    if sets := summary.get("sets"):
        heads = ("set", "before", "after", "change", "gap: depth", "peak at", "recovered", "area")
        rows = [_set_row(name, s) for name, s in sets.items()]
        told = "Loss in nats per token; a change has half of its 95 % interval beside it."
        parts.append(_table("Learned and forgotten", heads, rows) + f"\n\n{told}" + _up_to(summary, step))
    return "\n\n".join(parts) + "\n"


def _phase(phase: dict[str, Any]) -> list[str]:
    mix = ", ".join(f"{name} {fmt.percent(share)}" for name, share in phase["mix"].items() if share)
    return [phase["name"], fmt.tokens(phase["tokens"]), f"{phase['steps']:,}", mix, phase["lr"], phase["optimizer"]]


def _counts(entry: dict[str, Any]) -> list[str]:
    return [human(entry["tokens_consumed"]), human(entry["unique_tokens"]), f"{entry['epochs']:.2f}"]


def _set_row(name: str, of_set: dict[str, Any]) -> list[str]:
    losses = [fmt.nats(of_set["initial"]), fmt.nats(of_set["final"])]
    return [name, *losses, fmt.change(of_set["forgetting"], of_set["forgetting_ci95"]), *gap_cells(of_set["gap"])]


def _up_to(summary: dict[str, Any], step: int) -> str:
    """Where the numbers are not those of this very checkpoint."""
    last = summary.get("steps")
    return f" They are those of the run up to step {last:,}." if last not in (None, step) else ""


def _table(title: str, heads: tuple[str, ...], rows: list[Any]) -> str:
    lines = [f"## {title}", "", _line(heads), _line(["---"] * len(heads)), *map(_line, rows)]
    return "\n".join(lines)


def _line(cells: Any) -> str:
    return "| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |"
