"""Loss of every set over the whole run, with the learning rate under it."""

from __future__ import annotations

from plotly.subplots import make_subplots

from cpt.evaluators.rows import RunFiles
from cpt.reports.figures import INK, layout, line, names_of, phase_bands, style, thinned
from cpt.reports.section import Figure, Section


def losses(run: RunFiles) -> Section | None:
    """One line per evaluation set; phases shaded; the learning rate on the same token axis."""
    if not run.curves:
        return None
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.76, 0.24], vertical_spacing=0.06)
    styles = style(names_of(run))
    for name, curve in run.curves.items():
        trace = line(curve.tokens, curve.loss, name, styles[name], mode="lines+markers", marker={"size": 4})
        figure.add_trace(trace.update(hovertemplate="%{y:.3f} nats/token"), row=1, col=1)
    if rows := thinned([r for r in run.metrics if r.get("lr") is not None]):
        rate = line([r["tokens"] for r in rows], [r["lr"] for r in rows], "learning rate", {"color": INK, "width": 1.5})
        figure.add_trace(rate.update(showlegend=False, hovertemplate="%{y:.2e}"), row=2, col=1)
    phase_bands(layout(figure, 560), run)
    figure.update_yaxes(title_text="nats per token", row=1, col=1)
    figure.update_yaxes(title_text="learning rate", rangemode="tozero", exponentformat="e", nticks=4, row=2, col=1)
    figure.update_xaxes(title_text="tokens", row=2, col=1)
    phases = ", ".join(p["name"] for p in run.phases) or "one phase"
    caption = "Dots are evaluations, always on the same sequences. A dotted line is a switch to the next phase."
    alt = f"Loss of {', '.join(run.curves)} over tokens through the phases {phases}, with the learning rate below."
    return Section("Loss over tokens", "", (Figure(figure, caption, alt),))
