"""What was measured on the model beside its losses, your own probes among it."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from cpt.evaluators import formatting as fmt
from cpt.evaluators.rows import RunFiles
from cpt.reports.figures import PALETTE, label, layout, line, phase_bands
from cpt.reports.section import Figure, Html, Section, table


def probes(run: RunFiles) -> Section | None:
    """A plot per probe, its numbers over tokens, and a table of the first and the last."""
    if not run.probe_curves:
        return None
    by_probe: dict[str, list[str]] = {}
    for name in run.probe_curves:
        by_probe.setdefault(name.partition(".")[0], []).append(name)
    figures = [_plot(run, probe, names) for probe, names in by_probe.items() if _moves(run, names)]
    return Section("Probes", "", (_table(run), *figures))


def _moves(run: RunFiles, names: list[str]) -> bool:
    """Whether there is a line to draw."""
    return any(np.isfinite(run.probe_curves[n][2]).sum() > 2 for n in names)


def _plot(run: RunFiles, probe: str, names: list[str]) -> Figure:
    figure = go.Figure()
    for i, name in enumerate(names):
        _, tokens_T, values_T = run.probe_curves[name]
        style = {"color": PALETTE[i % len(PALETTE)], "width": 2}
        told = name.partition(".")[2]
        trace = line(tokens_T, values_T, told, style, mode="lines+markers", marker={"size": 4})
        figure.add_trace(trace.update(hovertemplate="%{y:.4g}"))
    phase_bands(layout(figure, 320, showlegend=True), run)
    figure.update_layout(title={"text": label(probe), "x": 0, "font": {"size": 15}})
    figure.update_xaxes(title_text="tokens")
    words = "; ".join(f"{n} ends at {fmt.value(float(run.probe_curves[n][2][-1]))}" for n in names)
    return Figure(figure, "", f"The numbers of the probe {probe} over tokens. {words}.")


def _table(run: RunFiles) -> Html:
    rows = []
    for name, (steps_T, _, values_T) in run.probe_curves.items():
        ends = run.summary["probes"][name]
        finite = values_T[np.isfinite(values_T)]
        least, most = (fmt.value(float(v)) for v in (finite.min(), finite.max())) if len(finite) else [fmt.DASH] * 2
        rows.append([name, len(steps_T), fmt.value(ends["first"]), fmt.value(ends["last"]), least, most])
    return table(["probe", "asked", "first", "last", "least", "most"], rows, "Probes", text_columns=1)
