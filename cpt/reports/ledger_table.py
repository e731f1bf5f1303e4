"""The replay ledger as a table, and its sums in words."""

from __future__ import annotations

from typing import Any

from cpt.evaluators import formatting as fmt
from cpt.reports.section import Html, table
from cpt.units import human

Entry = dict[str, Any]


def shares(entries: list[Entry], phase: str, column: str) -> dict[tuple[str, str], float]:
    """Share of each (source, role) in a phase's tokens, from the column `tokens_planned` or `tokens_consumed`."""
    own = [e for e in entries if e["phase"] == phase]
    total = sum(e[column] for e in own)
    return {(e["source"], e["role"]): e[column] / total if total else 0.0 for e in own}


def ledger_table(entries: list[Entry]) -> Html:
    """Per phase and source: tokens planned and consumed, shares, unique tokens, epochs, FLOPs."""
    heads = ["phase", "source", "role", "planned", "consumed", "unique", "share", "epochs", "FLOPs"]
    rows = []
    for e in entries:
        share = shares(entries, e["phase"], "tokens_consumed")[e["source"], e["role"]]
        counts = [f"{e[k]:,}" for k in ("tokens_planned", "tokens_consumed", "unique_tokens")]
        names = [e["phase"], e["source"], e["role"]]
        rows.append([*names, *counts, fmt.percent(share, 2), f"{e['epochs']:.3f}", human(e["flops"])])
    return table(heads, rows, "Ledger, in tokens", text_columns=3)


def replay_line(entries: list[Entry]) -> str:
    """`Replay: 30,720 of 614,400 tokens (5.00 %), 30,720 unique, 0 repeated.`, or nothing."""
    replayed = [e for e in entries if e["role"] == "replay"]
    if not replayed:
        return ""
    phases = {e["phase"] for e in replayed}
    consumed, unique = (sum(e[k] for e in replayed) for k in ("tokens_consumed", "unique_tokens"))
    total = sum(e["tokens_consumed"] for e in entries if e["phase"] in phases)
    share = fmt.percent(consumed / total if total else 0.0, 2)
    return f"Replay: {consumed:,} of {total:,} tokens ({share}), {unique:,} unique, {consumed - unique:,} repeated."
