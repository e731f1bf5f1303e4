"""Several runs on one page: what each learned and forgot, and which are worth having.

The question of a sweep is a trade-off, so the page opens with one point per run: forgetting of the upstream sets
against the loss reduction on the set learned last. A run is on the Pareto front when no other is at least as good in
both and better in one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from cpt.errors import RunError
from cpt.evaluators import formatting as fmt
from cpt.evaluators.rows import RunFiles, read_run, write_atomic
from cpt.evaluators.summary import downstream, gap_cells, summary_of, upstream
from cpt.reports.figures import INK, label, layout, line, style
from cpt.reports.page import render
from cpt.reports.section import Figure, Section, table
from cpt.reports.sections.records import flatten


@dataclass(frozen=True)
class Trade:
    """One run's point. Each value is (nats/token, half width of its 95 % interval or None)."""

    name: str
    forgetting: tuple[float, float | None]
    learned: tuple[float, float | None]


def write_comparison(run_dirs: list[Path], out: Path) -> Path:
    """Write the page that compares the runs to `out`. The run directories are only read.

    Raises:
      RunError: a folder is no run directory, is named twice, or `out` cannot be written.
    """
    runs = [read_run(Path(d)) for d in run_dirs]
    seen = [r.path.resolve() for r in runs]
    if twice := [r.path for r in runs if seen.count(r.path.resolve()) > 1]:
        raise RunError(f"{twice[0]}: named twice; give each run once in --workdir")
    named = {n: replace(r, summary=summary_of(r)) for n, r in zip(_short_names(seen), runs, strict=True)}
    styles = style(named)
    fields = differing({n: r.config for n, r in named.items()})
    sections = [
        _trade_off(named, styles),
        Section("Runs", "", tuple(_table(n, named, fields) for n in _set_names(named))),
        Section("Loss over tokens", "", tuple(_overlay(n, named, styles) for n in _set_names(named))),
    ]
    return write_atomic(Path(out), render(f"{len(runs)} runs compared", sections, ", ".join(named)))


def trade(name: str, summary: dict[str, Any]) -> Trade | None:
    """The run's point, or None while it has forgotten or learned nothing measurable.

    Several sets are averaged; their resamples are independent, so the half-widths add in squares.
    """
    sets = summary["sets"]
    old, new = ([sets[n] for n in names(summary)] for names in (upstream, downstream))
    if not old or not new or any(s["forgetting"] is None for s in (*old, *new)):
        return None
    loss_change, half = _mean(new)
    return Trade(name, _mean(old), (-loss_change, half))


def pareto_front(trades: list[Trade]) -> list[Trade]:
    """The runs that no other dominates (no more forgetting, no less learning, one strictly)."""

    def dominates(a: Trade, b: Trade) -> bool:
        x, y = a.forgetting[0] - b.forgetting[0], a.learned[0] - b.learned[0]
        return x <= 0 <= y and (x < 0 or y > 0)

    front = [t for t in trades if not any(dominates(o, t) for o in trades)]
    return sorted(front, key=lambda t: t.forgetting[0])


def differing(configs: dict[str, dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Config fields that are not the same in all runs: field -> run -> text (a dash where the run lacks the field)."""
    flat = {name: flatten(c) for name, c in configs.items()}
    keys = dict.fromkeys(k for f in flat.values() for k in f)
    values = {k: {name: f.get(k, fmt.DASH) for name, f in flat.items()} for k in keys}
    return {k: v for k, v in values.items() if len(set(v.values())) > 1}


def _mean(sets: list[dict[str, Any]]) -> tuple[float, float | None]:
    halves = [fmt.half_width(s["forgetting_ci95"]) for s in sets]
    half = None if None in halves else math.sqrt(sum(h * h for h in halves)) / len(halves)
    return float(np.mean([s["forgetting"] for s in sets])), half


def _short_names(paths: list[Path]) -> list[str]:
    """Folder names, with as many parents as are needed to tell them apart."""
    for parts in range(1, max(len(p.parts) for p in paths) + 1):
        names = ["/".join(p.parts[-parts:]) for p in paths]
        if len(set(names)) == len(names):
            return names
    return [str(p) for p in paths]


def _set_names(runs: dict[str, RunFiles]) -> list[str]:
    return list(dict.fromkeys(n for r in runs.values() for n in r.curves))


def _trade_off(runs: dict[str, RunFiles], styles: dict[str, dict]) -> Section:
    trades = [t for t in (trade(n, r.summary) for n, r in runs.items()) if t]
    if not trades:
        return Section("Side by side.", "No run here has both forgotten a set and learned one.", ())
    front = pareto_front(trades)
    figure = go.Figure()
    if len(front) > 1:
        x, y = [t.forgetting[0] for t in front], [t.learned[0] for t in front]
        figure.add_trace(line(x, y, "Pareto front", {"color": INK, "width": 1, "dash": "dot"}, hoverinfo="skip"))
    for i, t in enumerate(trades):
        figure.add_trace(_point(t, styles[t.name]["color"], i))
    layout(figure, 480)
    figure.update_layout(hovermode="closest", legend={"x": 0, "xanchor": "left"})
    figure.update_xaxes(title_text="forgetting of upstream sets, nats per token (left is better)")
    figure.update_yaxes(title_text="loss reduction, last-learned set (up is better)")
    words = "; ".join(f"{t.name}: forgot {_around(t.forgetting)}, learned {_around(t.learned)}" for t in trades)
    caption = (
        "Bars are 95 % bootstrap intervals over evaluation documents. Points whose bars overlap are not told apart."
    )
    return Section(_answer(trades, front), "", (Figure(figure, caption, f"Forgetting against learning. {words}."),))


def _point(t: Trade, colour: str, i: int) -> go.Scatter:
    bars = [{"type": "data", "array": [v[1]], "thickness": 1.2, "color": colour} if v[1] is not None else None
            for v in (t.forgetting, t.learned)]  # fmt: skip
    marker = {"size": 11, "color": colour, "symbol": ("circle", "square", "diamond", "triangle-up", "cross")[i % 5]}
    return go.Scatter(
        x=[t.forgetting[0]], y=[t.learned[0]], error_x=bars[0], error_y=bars[1], mode="markers", marker=marker,
        name=label(t.name), hovertemplate=f"{label(t.name)}<br>forgot %{{x:.3f}}, learned %{{y:.3f}}<extra></extra>",
    )  # fmt: skip


def _answer(trades: list[Trade], front: list[Trade]) -> str:
    least = min(trades, key=lambda t: t.forgetting[0])
    most = max(trades, key=lambda t: t.learned[0])
    first = f"{least.name} forgot least ({_around(least.forgetting)}{_tied(least, trades, 'forgetting')})"
    second = f"{most.name} learned most ({_around(most.learned)}{_tied(most, trades, 'learned')})"
    return f"{first}; {second}; {len(front)} of {len(trades)} runs are on the Pareto front."


def _tied(best: Trade, trades: list[Trade], field: str) -> str:
    """Says so when the best is not told apart from the next: the intervals of the two values overlap."""
    value, half = getattr(best, field)
    others = [getattr(t, field) for t in trades if t is not best]
    overlap = [v for v, h in others if half is not None and h is not None and abs(v - value) <= half + h]
    return f", within noise of {len(overlap)} other{'s' if len(overlap) > 1 else ''}" if overlap else ""


def _around(value: tuple[float, float | None]) -> str:
    return fmt.signed(value[0]) + ("" if value[1] is None else f" ± {value[1]:.3f}")


def _table(set_name: str, runs: dict[str, RunFiles], fields: dict[str, dict[str, str]]) -> Any:
    annealed = {name: _annealed(run, set_name) for name, run in runs.items()}
    # The numbers first: recipes may differ in more fields than a page is wide.
    heads = ["run", "final", *(["annealed"] if any(annealed.values()) else []), "change", "gap depth", "peak at"]
    heads += ["recovered", "area", *fields]
    rows: list[Iterable[object]] = []
    for name, run in runs.items():
        if s := run.summary["sets"].get(set_name):
            final = [fmt.nats(s["final"]), *([fmt.nats(annealed[name])] if any(annealed.values()) else [])]
            change = fmt.change(s["forgetting"], s["forgetting_ci95"])
            rows.append([name, *final, change, *gap_cells(s["gap"]), *(fields[f][name] for f in fields)])
    return table(heads, rows, f"{set_name}, nats per token; change since the switch", text_columns=1)


def _annealed(run: RunFiles, set_name: str) -> float | None:
    """Loss at the end of the run's last annealed branch; None if it has none."""
    ends = [b["annealed"] for b in run.summary.get("branches") or [] if b["set"] == set_name]
    return ends[-1] if ends else None


def _overlay(set_name: str, runs: dict[str, RunFiles], styles: dict[str, dict]) -> Figure:
    figure = go.Figure()
    curves = {n: r.curves[set_name] for n, r in runs.items() if set_name in r.curves}
    for name, curve in curves.items():
        figure.add_trace(line(curve.tokens, curve.loss, name, styles[name], hovertemplate="%{y:.3f}"))
    for first in sorted({p["first_token"] for r in runs.values() for p in r.phases[1:]}):
        figure.add_vline(x=first, line={"color": INK, "width": 1, "dash": "dot"})
    layout(figure, 380, showlegend=True)
    figure.update_yaxes(title_text="nats per token")
    figure.update_xaxes(title_text="tokens")
    ends = "; ".join(f"{n} ends at {fmt.nats(float(c.loss[-1]))}" for n, c in curves.items())
    figure.update_layout(title={"text": escape(set_name, quote=False), "x": 0, "font": {"size": 15}})
    return Figure(figure, "Dotted lines are phase switches.", f"Loss of {set_name} over tokens. {ends}.")
