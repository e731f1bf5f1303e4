"""Annealed branches: the trunk as it ran, and what its checkpoints are worth once they are cooled down."""

from __future__ import annotations

import plotly.graph_objects as go

from cpt.evaluators import formatting as fmt
from cpt.evaluators.branches import branches_of
from cpt.evaluators.rows import RunFiles
from cpt.reports.figures import layout, line, names_of, phase_bands, style
from cpt.reports.section import Figure, Section, table


def branches(run: RunFiles) -> Section | None:
    """Every set's trunk, with each cooldown as a dashed line down to its annealed loss; the numbers as a table."""
    found, rows = branches_of(run), run.summary.get("branches") or []
    if not found or not rows:
        return None
    figure, styles = go.Figure(), style(names_of(run))
    for name, curve in run.curves.items():
        figure.add_trace(line(curve.tokens, curve.loss, name, styles[name]))
        for branch in found:
            tail = branch.curves().get(name)
            if tail is not None and len(tail.steps) > 1:
                dashed = {**styles[name], "dash": "dash", "width": 1.5}
                trace = line(tail.tokens, tail.loss, f"{name}, annealed", dashed, mode="lines+markers")
                figure.add_trace(trace.update(showlegend=False, marker={"size": 4}, legendgroup=name))
    phase_bands(layout(figure, 460), run)
    figure.update_yaxes(title_text="nats per token")
    # The last cooldown reaches beyond the trunk.
    end = max(curve.tokens[-1] for b in found for curve in (*b.curves().values(), *run.curves.values()))
    figure.update_xaxes(title_text="tokens", range=[-0.01 * end, 1.01 * end])
    cells = []
    for r in rows:
        change = None if r["trunk"] is None else r["annealed"] - r["trunk"]
        losses = [fmt.nats(r["trunk"]), fmt.nats(r["annealed"]), fmt.signed(change)]
        cells.append([r["set"], f"{r['step']:,}", *losses, f"{fmt.tokens(r['cooldown_tokens'])} tok"])
    heads = ["set", "branch at step", "trunk there", "annealed", "change", "cooldown"]
    words = "Loss in nats per token of the trunk at each branch, and at the end of the branch's cooldown"
    alt = f"{len(found)} annealed branches; " + "; ".join(f"{c[0]} at step {c[1]}: {c[2]} to {c[3]}" for c in cells)
    caption = "Solid: the trunk. Dashed: a cooldown from one of its checkpoints, the data where they stood."
    return Section("Annealed branches", "", (Figure(figure, caption, alt), table(heads, cells, words)))
