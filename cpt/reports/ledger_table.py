"""The replay ledger as a table, and its sums in words."""

from __future__ import annotations

from typing import Any

from cpt.evaluators import formatting as fmt
from cpt.reports.section import Html, table
from cpt.units import human

Entry = dict[str, Any]
ACCOUNTING = {"fixed_total": "compute-equivalent", "fixed_new": "on top of the new tokens"}


def shares(entries: list[Entry], phase: str, column: str) -> dict[tuple[str, str], float]:
    """Share of each (source, role) in a phase's tokens, from the column `tokens_planned` or `tokens_consumed`."""
    own = [e for e in entries if e["phase"] == phase]
    total = sum(e[column] for e in own)
    return {(e["source"], e["role"]): e[column] / total if total else 0.0 for e in own}


def ledger_table(entries: list[Entry]) -> Html:
    """Per phase and source: tokens planned and consumed, shares, unique tokens, repeats, epochs, FLOPs."""
    heads = ["phase", "source", "role", "planned", "consumed", "unique", "repeats", "share", "epochs", "FLOPs"]
    rows = []
    for e in entries:
        share = shares(entries, e["phase"], "tokens_consumed")[e["source"], e["role"]]
        counts = [f"{e[k]:,}" for k in ("tokens_planned", "tokens_consumed", "unique_tokens")]
        counts.append(f"{e['tokens_consumed'] - e['unique_tokens']:,}")
        domain = f" ({e['domain']})" if e.get("domain") else ""
        names = [e["phase"], f"{e['source']}{domain}", e["role"]]
        rows.append([*names, *counts, fmt.percent(share, 2), f"{e['epochs']:.3f}", human(e["flops"])])
    return table(heads, rows, "Ledger, in tokens", text_columns=3)


def closing_lines(summary: dict[str, Any]) -> list[str]:
    """What was replayed, whether the ledger is exact, and what branches came to; from the content of `summary.json`.

    `replay: 30,720 of 614,400 tokens (5.00 %), 30,720 unique, 0 repeats · compute-equivalent · ledger exact`
    """
    ledger = summary.get("ledger") or {}
    if not ledger:
        return []
    exact = "ledger exact" if ledger["exact"] else "ledger NOT exact: see ledger.json"
    with_replay = [p for p in ledger["phases"] if p["replay_tokens"]]
    lines = []
    for p in with_replay:
        head = f"replay in {p['phase']}" if len(with_replay) > 1 else "replay"
        lines.append(f"{head}: {replay_text(p)} · {ACCOUNTING.get(p['accounting'], p['accounting'])} · {exact}")
    lines = lines or [f"no replay · {exact}"]
    for step in dict.fromkeys(b["step"] for b in summary.get("branches") or []):
        of_step = [b for b in summary["branches"] if b["step"] == step]
        sets = ", ".join(f"{b['set']} {fmt.nats(b['trunk'])} to {fmt.nats(b['annealed'])}" for b in of_step)
        lines.append(f"annealed branch at step {step:,}: {sets}")
    return lines


def replay_text(phase: dict[str, Any]) -> str:
    """`30,720 of 614,400 tokens (5.00 %), 30,720 unique, 0 repeats` of a phase of `summary["ledger"]`."""
    replayed, unique = phase["replay_tokens"], phase["unique_replay_tokens"]
    share = fmt.percent(phase["replay_share"], 2)
    return f"{replayed:,} of {phase['tokens']:,} tokens ({share}), {unique:,} unique, {replayed - unique:,} repeats"
