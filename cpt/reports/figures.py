"""Shared parts of the plots: one colour per name, phases in the background, series thinned for the screen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from cpt.evaluators.rows import RunFiles, number

# Okabe and Ito's colour-blind-safe palette, neighbours kept apart; legible on white and on near-black.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#7F7F7F")
DASHES = ("solid", "dash", "dot", "dashdot")
INK = "rgba(128,128,128,0.9)"
FAINT = "rgba(128,128,128,0.08)"
POINTS = 1500


def label(name: str) -> str:
    """A name as plotly text, which reads a little HTML; quotes stay, for it does not know their entities."""
    return escape(name, quote=False)


def style(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Line style per name: colours first, then dashes, so that no two of the first 32 look alike."""
    return {
        n: {"color": PALETTE[i % len(PALETTE)], "dash": DASHES[i // len(PALETTE) % len(DASHES)], "width": 2}
        for i, n in enumerate(names)
    }


def names_of(run: RunFiles) -> list[str]:
    """Sources and sets in one order, so that a name has one colour on the whole page."""
    sources = [s for p in run.phases for s in (p.get("mix") or {})]
    return list(dict.fromkeys([*sources, *run.set_names]))


def rounded(values: Iterable[Any], digits: int = 6) -> list[float | None]:
    """Numbers short enough for a page, with gaps for what is missing or not finite."""
    floats = (number(v) for v in values)
    return [float(f"{v:.{digits}g}") if math.isfinite(v) else None for v in floats]


def thinned(rows: Sequence[Any], points: int = POINTS) -> Sequence[Any]:
    """At most about `points` of the rows, evenly spaced, the last one included."""
    stride = -(-len(rows) // points)
    return rows if stride <= 1 else [*rows[:-1:stride], rows[-1]]


def line(x: Iterable[Any], y: Iterable[Any], name: str, style: dict[str, Any], **more: Any) -> go.Scatter:
    """A line trace; `name` is escaped, x and y are rounded."""
    return go.Scatter(x=rounded(x, 9), y=rounded(y), name=label(name), line=style, **{"mode": "lines", **more})


def layout(figure: go.Figure, height: int, **more: Any) -> go.Figure:
    """The common layout; colours of paper, text and grid are set by the page."""
    figure.update_layout(
        height=height,
        margin={"l": 64, "r": 20, "t": 62, "b": 48},
        hovermode="x unified",
        legend={"orientation": "h", "yref": "container", "y": 0.995, "yanchor": "top", "x": 1, "xanchor": "right"},
        template="none",
        **more,
    )
    figure.update_xaxes(automargin=True, zeroline=False, title_font_size=13, tickfont_size=12)
    figure.update_yaxes(automargin=True, zeroline=False, title_font_size=13, tickfont_size=12)
    return figure


def phase_bands(figure: go.Figure, run: RunFiles, labelled: bool = True) -> go.Figure:
    """Shade every other phase and mark each boundary; the names stand at the top left of their phase."""
    if run.phases:
        end = run.phases[-1]["first_token"] + run.phases[-1]["tokens"]
        figure.update_xaxes(range=[-0.01 * end, 1.01 * end])
    for i, p in enumerate(run.phases):
        first = p["first_token"]
        if i % 2:
            figure.add_vrect(
                x0=first, x1=first + p["tokens"], fillcolor=FAINT, line_width=0, layer="below", row="all", col="all"
            )
        if i:
            figure.add_vline(x=first, line={"color": INK, "width": 1, "dash": "dot"}, row="all", col="all")
        if labelled:
            figure.add_annotation(
                x=first, y=1, xref="x", yref="y domain", text=f"<b>{label(p['name'])}</b>", showarrow=False,
                xanchor="left", yanchor="bottom", xshift=2, yshift=2,
            )  # fmt: skip
    return figure
