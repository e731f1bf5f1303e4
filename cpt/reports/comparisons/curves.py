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
    lead = "" if comparison.one_tokenizer else "Runs have different tokenizers: losses are given per byte of text."
    return Section("Loss over tokens", lead, tuple(_overlay(name, comparison) for name in comparison.sets))


def _overlay(set_name: str, comparison: Comparison) -> Figure:
    figure, unit = go.Figure(), "nats per token" if comparison.one_tokenizer else "bits per byte"
    curves = {n: r.curves[set_name] for n, r in comparison.runs.items() if set_name in r.curves}
    for name, curve in curves.items():
        y = curve.loss if comparison.one_tokenizer else curve.bits_per_byte
        at = thinned(range(len(y)), max(60, POINTS // len(curves)))
        hover = f"{label(name)}: %{{y:.3f}}<extra></extra>" if len(curves) > NAMED else "%{y:.3f}"
        trace = line(curve.tokens[list(at)], y[list(at)], name, comparison.styles[name], hovertemplate=hover)
        figure.add_trace(trace)
    for first in sorted({p["first_token"] for r in comparison.runs.values() for p in r.phases[1:]}):
        figure.add_vline(x=first, line={"color": INK, "width": 1, "dash": "dot"})
    layout(figure, 380, showlegend=len(curves) <= NAMED)
    if len(curves) > NAMED:
        figure.update_layout(hovermode="closest")
    figure.update_yaxes(title_text=unit)
    figure.update_xaxes(title_text="tokens")
    ends = "; ".join(f"{n} ends at {fmt.nats(float(c.loss[-1]))} nats per token" for n, c in curves.items())
    figure.update_layout(title={"text": label(set_name), "x": 0, "font": {"size": 15}})
    return Figure(figure, "Dotted lines are phase switches.", f"Loss of {set_name} over tokens. {ends}.")
