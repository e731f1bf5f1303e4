"""The plan: what each phase was told to do."""

from __future__ import annotations

from typing import Any

from cpt.evaluators import formatting as fmt
from cpt.evaluators.rows import RunFiles
from cpt.reports.section import Section, table


def plan(run: RunFiles) -> Section | None:
    """One row per phase: length, mix, replay, learning rate, optimizer policy."""
    if not run.phases:
        return None
    heads = ["phase", "mix", "replay", "learning rate", "optimizer", "tokens", "steps", "tokens per step"]
    rows = [_row(p) for p in run.phases]
    totals = f"{run.plan.get('total_steps', 0):,} steps, {run.plan.get('total_tokens', 0):,} tokens in all"
    return Section("Plan", "", (table(heads, rows, totals, text_columns=5),))


def _row(p: dict[str, Any]) -> list[str]:
    words = [p["name"], _mix(p.get("mix") or {}), _replay(p.get("replay"))]
    policy = [p.get(key) or fmt.DASH for key in ("lr", "optimizer")]
    return [*words, *policy, *(f"{p[k]:,}" for k in ("tokens", "steps", "tokens_per_step"))]


def _mix(mix: dict[str, float]) -> str:
    return ", ".join(f"{name} {100 * share:.4g} %" for name, share in mix.items()) or fmt.DASH


def _replay(replay: dict[str, Any] | None) -> str:
    if not replay:
        return "none"
    share = replay.get("share")
    amount = f"{100 * share:.4g} %" if isinstance(share, int | float) else str(share)
    details = [str(replay[k]) for k in ("range", "order", "accounting") if replay.get(k) is not None]
    if replay.get("max_repeats") is not None:
        details.append(f"at most {replay['max_repeats']} repeats")
    return f"{replay.get('of')} {amount} ({', '.join(details)})" if details else f"{replay.get('of')} {amount}"
