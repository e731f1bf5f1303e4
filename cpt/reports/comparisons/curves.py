"""The loss of every set over tokens, all runs in one plot."""

from __future__ import annotations

import plotly.graph_objects as go

from cpt.evaluators import formatting as fmt
from cpt.reports.comparison import NAMED, Comparison
from cpt.reports.figures import INK, label, layout, line, thinned
from cpt.reports.section import Figure, Section

POINTS = 12_000  # of a plot, all runs together


def curves(comparison: Comparison) -> Section | None:
    """A plot per set, in nats per token, or in bits per byte where tokens are not the same in all runs."""
    if not comparison.sets:
        return None
    return Section("Loss over tokens", "", tuple(_overlay(name, comparison) for name in comparison.sets))


def _overlay(set_name: str, comparison: Comparison) -> Figure:
    figure = go.Figure()
    curves = {n: r.curves[set_name] for n, r in comparison.runs.items() if set_name in r.curves}
    for name, curve in curves.items():
        at = thinned(range(len(curve.loss)), max(60, POINTS // len(curves)))
        hover = f"{label(name)}: %{{y:.3f}}<extra></extra>" if len(curves) > NAMED else "%{y:.3f}"
        trace = line(curve.tokens[list(at)], curve.loss[list(at)], name, comparison.styles[name], hovertemplate=hover)
        figure.add_trace(trace)
    for first in sorted({p["first_token"] for r in comparison.runs.values() for p in r.phases[1:]}):
        figure.add_vline(x=first, line={"color": INK, "width": 1, "dash": "dot"})
    layout(figure, 380, showlegend=len(curves) <= NAMED)
    if len(curves) > NAMED:
        figure.update_layout(hovermode="closest")
    figure.update_yaxes(title_text=comparison.unit)
    figure.update_xaxes(title_text="tokens")
    ends = "; ".join(f"{n} ends at {fmt.nats(float(c.loss[-1]))} {comparison.unit}" for n, c in curves.items())
    figure.update_layout(title={"text": label(set_name), "x": 0, "font": {"size": 15}})
    return Figure(figure, "Dotted lines are phase switches.", f"Loss of {set_name} over tokens. {ends}.")
