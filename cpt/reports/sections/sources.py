"""Training loss, in all and per source."""

from __future__ import annotations

import plotly.graph_objects as go

from cpt.evaluators.rows import RunFiles
from cpt.reports.figures import INK, layout, line, names_of, phase_bands, style, thinned
from cpt.reports.section import Figure, Section


def sources(run: RunFiles) -> Section | None:
    """The loss of the training batches: of the whole batch in grey and of each source's part in its colour."""
    if not run.metrics:
        return None
    keys = dict.fromkeys(k for r in run.metrics for k in r if k.startswith("source/") and k.endswith("/loss"))
    names = [k.removeprefix("source/").removesuffix("/loss") for k in keys]
    styles = style(dict.fromkeys([*names_of(run), *names]))
    rows = thinned(run.metrics)
    x = [r["tokens"] for r in rows]
    figure = go.Figure(line(x, [r.get("loss") for r in rows], "whole batch", {"color": INK, "width": 1}))
    for name, key in zip(names, keys, strict=True):
        figure.add_trace(line(x, [r.get(key) for r in rows], name, {**styles[name], "width": 1.5}))
    figure.update_traces(hovertemplate="%{y:.3f}")
    phase_bands(layout(figure, 360), run)
    figure.update_yaxes(title_text="nats per token")
    figure.update_xaxes(title_text="tokens")
    caption = "Batches as trained on, not smoothed; a source's line has a gap where no batch held it."
    alt = f"Training loss over tokens, of whole batches and of the sources {', '.join(names)}."
    return Section("Training loss per source", "", (Figure(figure, caption, alt),))
