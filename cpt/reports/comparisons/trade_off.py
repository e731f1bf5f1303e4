"""Forgetting against learning, one point per run: the question of a sweep is a trade-off.

Forgetting of the upstream sets against the loss reduction on the sets learned last. A run is on the Pareto front when
no other is at least as good in both and better in one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from cpt.evaluators import formatting as fmt
from cpt.evaluators.summary import downstream, upstream
from cpt.reports.comparison import NAMED, Comparison
from cpt.reports.figures import INK, label, layout, line
from cpt.reports.section import Figure, Section


@dataclass(frozen=True)
class Trade:
    """One run's point. Each value is (in the comparison's unit, half width of its 95 % interval or None)."""

    name: str
    forgetting: tuple[float, float | None]
    learned: tuple[float, float | None]


def trade_off(comparison: Comparison) -> Section:
    """One point per run with its intervals, and the Pareto front."""
    trades = trades_of(comparison)
    if not trades:
        return Section("Side by side.", "No run here has both forgotten a set and learned one.", ())
    front = pareto_front(trades)
    figure = go.Figure()
    if len(front) > 1:
        x, y = [t.forgetting[0] for t in front], [t.learned[0] for t in front]
        figure.add_trace(line(x, y, "Pareto front", {"color": INK, "width": 1, "dash": "dot"}, hoverinfo="skip"))
    for i, t in enumerate(trades):
        figure.add_trace(_point(t, comparison.styles[t.name]["color"], i))
    layout(figure, 480, showlegend=len(trades) <= NAMED)
    figure.update_layout(hovermode="closest", legend={"x": 0, "xanchor": "left"})
    figure.update_xaxes(title_text=f"forgetting of upstream sets, {comparison.unit} (left is better)")
    figure.update_yaxes(title_text="loss reduction, last-learned set (up is better)")
    words = "; ".join(f"{t.name}: forgot {_around(t.forgetting)}, learned {_around(t.learned)}" for t in trades)
    caption = (
        "Bars are 95 % bootstrap intervals over evaluation documents. Points whose bars overlap are not told apart."
    )
    return Section(_answer(trades, front), "", (Figure(figure, caption, f"Forgetting against learning. {words}."),))


def trades_of(comparison: Comparison) -> list[Trade]:
    """A point per run that has one, over the sets that all runs have: means over different sets compare nothing.

    A source whose sets are several, a small one on the grid and a large one at the edges, counts once, by the latter.
    """
    runs = list(comparison.runs.values())
    common = [n for n in comparison.sets if all(n in r.summary["sets"] for r in runs)]
    by_source: dict[str, str] = {}
    for name in common:
        about = runs[0].about(name)
        source = about.get("source") or name
        if source not in by_source or about.get("at") == "edges":
            by_source[source] = name
    made = (trade(n, r.summary, tuple(by_source.values())) for n, r in comparison.runs.items())
    return [t for t in made if t]


def trade(name: str, summary: dict[str, Any], counted: tuple[str, ...] | None = None) -> Trade | None:
    """The run's point, or None while it has forgotten or learned nothing measurable; over the sets `counted`, or all.

    Several sets are averaged; their resamples are independent, so the half-widths add in squares.
    """
    sets = summary["sets"]
    old, new = (
        [sets[n] for n in names(summary) if counted is None or n in counted] for names in (upstream, downstream)
    )
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


def _mean(sets: list[dict[str, Any]]) -> tuple[float, float | None]:
    halves = [fmt.half_width(s["forgetting_ci95"]) for s in sets]
    half = None if None in halves else math.sqrt(sum(h * h for h in halves)) / len(halves)
    return float(np.mean([s["forgetting"] for s in sets])), half


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
