"""The phase x set matrix: the loss of every set after every phase."""

from __future__ import annotations

import plotly.graph_objects as go

from cpt.evaluators import formatting as fmt
from cpt.evaluators.rows import RunFiles
from cpt.reports.figures import label, layout
from cpt.reports.section import Figure, Section

SCALE = [[0, "#e9eef3"], [0.35, "#9fc3de"], [1, "#14507d"]]


def matrix(run: RunFiles) -> Section | None:
    """A heat map with the losses in its cells; colour is the distance to the best value of that set."""
    m = run.summary["matrix"]
    loss = m["loss"]
    if not m["sets"] or not any(v is not None for row in loss for v in row):
        return None
    best = [min((row[j] for row in loss if row[j] is not None), default=0.0) for j in range(len(m["sets"]))]
    figure = go.Figure(
        go.Heatmap(
            x=[label(s) for s in m["sets"]],
            y=[label(p if i == 0 else f"after {p}") for i, p in enumerate(m["phases"])],
            z=[[None if v is None else v - best[j] for j, v in enumerate(row)] for row in loss],
            text=[[fmt.nats(v) if v is not None else "" for v in row] for row in loss],
            texttemplate="%{text}",
            textfont={"size": 15},
            colorscale=SCALE,
            xgap=3,
            ygap=3,
            colorbar={"title": {"text": "above the set's best", "side": "right"}, "thickness": 10, "outlinewidth": 0},
            hovertemplate="%{x}, %{y}: %{text} nats/token<br>%{z:.3f} above the best<extra></extra>",
        )
    )
    layout(figure, 116 + 58 * len(m["phases"]))
    figure.update_layout(hovermode="closest")
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category")
    figure.update_xaxes(showgrid=False, side="top", type="category")
    lead = (
        f"Backward transfer {fmt.signed(run.summary['bwt'])} nats per token (negative = old sets were forgotten); "
        f"forward transfer {fmt.signed(run.summary['fwt'])} (positive = earlier phases helped a later set)."
    )
    rows = [f"{p}: {', '.join(f'{s} {fmt.nats(v)}' for s, v in zip(m['sets'], r, strict=True))}"
            for p, r in zip(m["phases"], loss, strict=True)]  # fmt: skip
    caption = "Rows are models, columns are evaluation sets; numbers are nats per token, darker is worse for that set."
    return Section("Phase by set", lead, (Figure(figure, caption, f"Loss matrix. {'; '.join(rows)}."),))
