"""Throughput and the share of time spent waiting for data."""

from __future__ import annotations

from statistics import median

from plotly.subplots import make_subplots

from cpt.evaluators import formatting as fmt
from cpt.evaluators.rows import RunFiles
from cpt.reports.figures import PALETTE, layout, line, phase_bands, thinned
from cpt.reports.section import Figure, Section
from cpt.units import human


def throughput(run: RunFiles) -> Section | None:
    """Tokens per second, and data wait as a share of the step, over tokens."""
    rows = [r for r in run.metrics if r.get("tokens_per_second")]
    if not rows:
        return None
    speed = median(r["tokens_per_second"] for r in rows)
    timed = [r for r in rows if r.get("step_s") and r.get("data_wait_s") is not None]
    spent = sum(r["step_s"] for r in timed)
    waited = sum(r["data_wait_s"] for r in timed) / spent if spent else None
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.11)
    shown, shown_timed = thinned(rows, 800), thinned(timed, 800)
    rate = line(
        [r["tokens"] for r in shown],
        [r["tokens_per_second"] for r in shown],
        "tokens/s",
        {"color": PALETTE[0], "width": 1},
    )
    figure.add_trace(rate.update(hovertemplate="%{y:.4s} tokens/s"), row=1, col=1)
    share = [100 * r["data_wait_s"] / r["step_s"] for r in shown_timed]
    wait = line([r["tokens"] for r in shown_timed], share, "data wait", {"color": PALETTE[1], "width": 1})
    figure.add_trace(wait.update(hovertemplate="%{y:.2f} %"), row=1, col=2)
    phase_bands(layout(figure, 250, showlegend=False), run, labelled=False)
    figure.update_layout(margin={"t": 16})
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title_text="tokens per second", row=1, col=1)
    figure.update_yaxes(title_text="data wait", ticksuffix=" %", row=1, col=2)
    figure.update_xaxes(title_text="tokens")
    lead = f"Median {human(speed)} tokens per second; {fmt.percent(waited, 2)} of the time was spent waiting for data"
    evaluating = run.summary.get("eval_share")
    lead += "." if evaluating is None else f", {fmt.percent(evaluating)} on evaluation."
    return Section("Throughput", lead, (Figure(figure, "Per logged step.", lead),))
