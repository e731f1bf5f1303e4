"""The stability gap: every old set's loss right after each switch, enlarged, with its numbers drawn in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from cpt.evaluators import formatting as fmt
from cpt.evaluators.rows import Curve, RunFiles
from cpt.evaluators.stability_gap import StabilityGap, stability_gap
from cpt.evaluators.summary import only_at_edges
from cpt.reports.figures import INK, label, layout, line, names_of, rounded, style
from cpt.reports.section import Figure, Section


@dataclass(frozen=True)
class _Excursion:
    """One old set within one later phase; `tokens` count from the switch."""

    name: str
    phase: str
    tokens: np.ndarray
    loss: np.ndarray
    gap: StabilityGap


def gap(run: RunFiles) -> Section | None:
    """A plot per old set and later phase: the level at the switch, the peak, the way back, the area between."""
    dense = {name: curve for name, curve in run.curves.items() if not only_at_edges(run, name)}
    found = [e for name, curve in dense.items() for e in _excursions(run, name, curve)]
    if not found:
        return None
    styles = style(names_of(run))
    lead = (
        "What two endpoints hide: how far the loss of old data rose after a switch and whether it came back. "
        "Depth, peak and area are relative to the loss at that switch and end with the phase."
    )
    return Section("Stability gap", lead, tuple(_plot(e, styles[e.name]["color"]) for e in found))


def _excursions(run: RunFiles, name: str, curve: Curve) -> list[_Excursion]:
    learned = run.learned_in(name)
    out = []
    if learned is None and not run.is_upstream(name):
        return out
    for p in run.phases[0 if learned is None else learned + 1 :]:
        part = curve.since(p["first_step"]).until(p["first_step"] + p["steps"])
        if len(part.steps) > 1:
            measured = stability_gap(part.steps, part.tokens, part.loss)
            out.append(_Excursion(name, p["name"], part.tokens - part.tokens[0], part.loss, measured))
    return out


def _plot(e: _Excursion, colour: str) -> Figure:
    t, g, level = e.tokens, e.gap, float(e.loss[0])
    figure = go.Figure()
    fill = f"rgba({int(colour[1:3], 16)},{int(colour[3:5], 16)},{int(colour[5:7], 16)},0.16)"
    floor_x, floor_y = _above(t, e.loss, level)
    base = {"mode": "lines", "line": {"width": 0}, "showlegend": False, "hoverinfo": "skip"}
    figure.add_trace(go.Scatter(x=rounded(floor_x, 9), y=[level] * len(floor_x), **base))
    area = f"area {fmt.tokens(g.area)} nat·tok"
    figure.add_trace(go.Scatter(x=rounded(floor_x, 9), y=rounded(floor_y), **base, fill="tonexty", fillcolor=fill))
    trace = line(t, e.loss, e.name, {"color": colour, "width": 2.5}, mode="lines+markers", marker={"size": 5})
    figure.add_trace(trace.update(showlegend=False, hovertemplate="%{y:.3f} nats/token"))
    figure.add_hline(y=level, line={"color": INK, "width": 1, "dash": "dash"})
    note = {"showarrow": False, "xanchor": "left", "yanchor": "top", "yshift": -3}
    figure.add_annotation(x=0, xref="x domain", y=level, text=f"at the switch {level:.3f}", xshift=4, **note)
    if g.depth > 0:
        _mark_peak_and_return(figure, g, level, area)
    layout(figure, 380, title={"text": f"{label(e.name)} during {label(e.phase)}", "x": 0, "font": {"size": 15}})
    figure.update_layout(hovermode="closest")
    figure.update_xaxes(title_text="tokens since the switch", range=_window(t, g))
    span = max(float(np.max(e.loss) - level), 0.02)
    figure.update_yaxes(title_text="nats per token", range=[_lowest(t, e.loss, g) - 0.14 * span, level + 1.22 * span])
    recovered = "not yet" if g.recovery_tokens is None else f"after {fmt.tokens(g.recovery_tokens)} tokens"
    words = (
        f"Depth {g.depth:.3f}, peak at {fmt.tokens(g.peak_tokens)} tokens (step {g.peak_step}), recovered within "
        f"{g.eps:g}: {recovered}, {area}, transient {max(g.transient, 0):.3f} nats per token."
    )
    return Figure(figure, words, f"Loss of {e.name} after the switch to {e.phase}. {words}")


def _mark_peak_and_return(figure: go.Figure, g: StabilityGap, level: float, area: str) -> None:
    style = {"arrowhead": 0, "arrowwidth": 1, "arrowcolor": INK, "xanchor": "left"}
    figure.add_shape(
        type="line", x0=g.peak_tokens, x1=g.peak_tokens, y0=level, y1=g.worst, line={"color": INK, "width": 1}
    )
    text = f"<b>peak +{g.depth:.3f}</b> at {fmt.tokens(g.peak_tokens)} tokens<br>{area}"
    figure.add_annotation(x=g.peak_tokens, y=g.worst, text=text, ax=28, ay=-6, align="left", **style)
    if g.recovery_tokens is not None and g.recovery_tokens > g.peak_tokens:
        text = f"recovered at {fmt.tokens(g.recovery_tokens)} tokens"
        figure.add_annotation(
            x=g.recovery_tokens, y=level + g.eps, text=text, ax=0, ay=-40, **{**style, "xanchor": "center"}
        )


def _above(tokens: np.ndarray, loss: np.ndarray, level: float) -> tuple[list[float], list[float]]:
    """The curve clipped below at `level`, with a point at each crossing: the shaded area is the one measured."""
    x, y = [float(tokens[0])], [max(float(loss[0]), level)]
    for t0, t1, a, b in zip(tokens[:-1], tokens[1:], loss[:-1] - level, loss[1:] - level, strict=True):
        if a * b < 0:
            x.append(float(t0 + (t1 - t0) * a / (a - b)))
            y.append(level)
        x.append(float(t1))
        y.append(max(level + float(b), level))
    return x, y


def _window(tokens: np.ndarray, g: StabilityGap) -> list[float]:
    """From just before the switch until the curve has settled; the whole phase is one double click away."""
    settled = g.recovery_tokens if g.recovery_tokens is not None else g.recovery_to_end_tokens
    end = min(float(tokens[-1]), max(6 * g.peak_tokens, 1.25 * (settled or 0), 0.1 * float(tokens[-1])))
    return [-0.02 * end, 1.02 * end]


def _lowest(tokens: np.ndarray, loss: np.ndarray, g: StabilityGap) -> float:
    return min(float(loss[0]), float(np.min(loss[tokens <= _window(tokens, g)[1]])))
