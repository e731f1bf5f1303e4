"""The answer in words and numbers: what was learned, what was forgotten, and the gap in between."""

from __future__ import annotations

from typing import Any

from cpt.evaluators import formatting as fmt
from cpt.evaluators.rows import RunFiles
from cpt.evaluators.summary import downstream, gap_cells, upstream
from cpt.reports.section import Section, cards, table

Card = tuple[str, str, str]


def answer(run: RunFiles) -> Section | None:
    """Headline, one card per finding, and the closing table."""
    sets = run.summary["sets"]
    if not sets:
        return Section("No evaluation yet: the answer appears here with the first one.", "", ())
    old, new = upstream(run.summary), downstream(run.summary)
    findings = [_learned(n, sets[n]) for n in new] + [_forgotten(n, sets[n]) for n in old]
    gaps = [_gap(n, sets[n]) for n in old if sets[n]["gap"]]
    return Section(
        title=_headline(run, old, new),
        lead=_lead(run.summary, old),
        blocks=(cards([*findings, *gaps]), closing_table(run.summary)),
    )


def closing_table(summary: dict[str, Any]) -> Any:
    """Every set: before, after, change with its interval, the stability gap."""
    heads = ["set", "learned in", "before", "after", "change", "bits per byte"]
    rows = []
    for name, s in summary["sets"].items():
        bits = " to ".join(fmt.nats(s["bits_per_byte"][k]) for k in ("initial", "final"))
        change = fmt.change(s["forgetting"], s["forgetting_ci95"])
        learned = s["learned_in"] or ("before this run" if s["upstream"] else "no phase")
        rows.append([name, learned, fmt.nats(s["initial"]), fmt.nats(s["final"]), change, bits,
                     *gap_cells(s["gap"])])  # fmt: skip
    return table(
        [*heads, "gap depth", "peak at", "recovered", "area"],
        rows,
        "Loss in nats per token, before = at the switch, after = at the last evaluation",
        text_columns=2,
    )


def _headline(run: RunFiles, old: list[str], new: list[str]) -> str:
    sets = run.summary["sets"]
    parts = [f"{n} {_verdict(sets[n], 'was learned', 'got worse', 'did not change')}" for n in new]
    parts += [f"{n} {_verdict(sets[n], 'improved', 'was forgotten', 'was kept')}" for n in old]
    return "; ".join(parts) + "." if parts else f"Losses of {', '.join(sets)}."


def _verdict(s: dict[str, Any], better: str, worse: str, same: str) -> str:
    value, ci = s["forgetting"], s["forgetting_ci95"]
    if value is None:
        return "has no result yet"
    if fmt.within_noise(ci):
        return f"{same}, within noise ({fmt.plus_minus(value, ci)} nats per token)"
    half = fmt.half_width(ci)
    around = "" if half is None else f" ± {half:.3f}"
    return f"{better if value < 0 else worse} by {abs(value):.3f}{around} nats per token"


def _lead(summary: dict[str, Any], old: list[str]) -> str:
    parts = []
    for n in old:
        if (gap := summary["sets"][n]["gap"]) and gap["depth"]:
            back = gap["recovery_tokens"]
            after = f"was back after {fmt.tokens(back)} tokens" if back is not None else "has not come all the way back"
            parts.append(
                f"After the switch {n} rose by {gap['depth']:.3f}, peaked at {fmt.tokens(gap['peak_tokens'])} tokens, "
                f"and {after}; {max(gap['transient'], 0):.3f} of the rise was transient."
            )
    return " ".join(parts)


def _learned(name: str, s: dict[str, Any]) -> Card:
    if s["forgetting"] is None:
        return f"{name}, learned", fmt.DASH, "the phase that learns it has not begun or has one evaluation"
    return f"{name}, learned", _with_noise(s), f"{fmt.nats(s['initial'])} to {fmt.nats(s['final'])} nats per token"


def _forgotten(name: str, s: dict[str, Any]) -> Card:
    if s["forgetting"] is None:
        return f"{name}, forgetting", fmt.DASH, "the switch that could forget it has not come yet"
    noise = "within noise: the interval contains 0. " if fmt.within_noise(s["forgetting_ci95"]) else ""
    change = "" if s["perplexity_change"] is None else f", perplexity {fmt.signed(100 * s['perplexity_change'], 1)} %"
    return f"{name}, forgetting", _with_noise(s), f"{noise}{fmt.nats(s['initial'])} to {fmt.nats(s['final'])}{change}"


def _with_noise(s: dict[str, Any]) -> str:
    return fmt.plus_minus(s["forgetting"], s["forgetting_ci95"])


def _gap(name: str, s: dict[str, Any]) -> Card:
    gap = s["gap"]
    value = fmt.plus_minus(gap["depth"], gap["depth_ci95"], sign=False)
    _, peak, back, area = gap_cells(gap)
    if gap["depth"] == 0:
        return f"{name}, stability gap", fmt.nats(0.0), "the loss never rose above its value at the switch"
    return f"{name}, depth of the stability gap", value, f"peak at {peak}, recovered: {back}, area {area}"
