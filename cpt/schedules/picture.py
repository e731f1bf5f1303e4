"""Pictures of learning rates over tokens: in the terminal, as PNG or HTML, and every step of them as CSV."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cpt.errors import ConfigError, RunError
from cpt.evaluators.rows import write_atomic
from cpt.units import compact, human

if TYPE_CHECKING:
    from cpt.plan import RunPlan

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 72  # columns of the terminal picture
POINTS = 4000  # of a drawn line; the ends of every segment are among them


@dataclass(frozen=True)
class Trajectory:
    """The learning rate of a whole plan.

    Attributes:
      name: for the legend.
      plan: where it comes from.
      lr_T: float64 [T], learning rate of every update.
      tokens_T: int64 [T], tokens trained on before it.
    """

    name: str
    plan: RunPlan
    lr_T: np.ndarray
    tokens_T: np.ndarray


def trajectory(name: str, plan: RunPlan) -> Trajectory:
    """Every step of a plan; ten million take about a second."""
    lr_T = np.concatenate([p.learning_rates() for p in plan.phases])
    tokens_T = np.concatenate([p.first_token + np.arange(p.steps) * p.tokens_per_step for p in plan.phases])
    return Trajectory(name, plan, lr_T, tokens_T)


def write_picture(drawn: list[Trajectory], out: Path) -> Path:
    """Write `out` in the format that its suffix names.

    Raises:
      ConfigError: another suffix than .png, .html or .csv, or a .csv of several plans.
      RunError: the file cannot be written.
    """
    writers = {".png": _png, ".html": _html, ".csv": _csv}
    if out.suffix not in writers:
        raise ConfigError(f"--out={out}: draws {', '.join(writers)}, not '{out.suffix}'")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        writers[out.suffix](drawn, out)
    except OSError as e:
        raise RunError(f"{out}: cannot write ({e.strerror}); choose another --out") from e
    return out


def terminal_picture(drawn: list[Trajectory]) -> str:
    """One line of bars per plan, each on its own scale, and its phases under it with their segments in words."""
    lines = []
    for t in drawn:
        top = float(t.lr_T.max()) or 1.0
        # The largest of each column: a short peak must not fall between two columns.
        columns = [float(part.max()) for part in np.array_split(t.lr_T, min(WIDTH, len(t.lr_T)))]
        bars = "".join(BARS[min(7, int(8 * value / top))] for value in columns)
        lines += [f"{t.name}  (top {compact(top)})", f"▕{bars}▏"]
        width = max(len(p.name) for p in t.plan.phases)
        for p in t.plan.phases:
            span = f"{human(p.first_token)} to {human(p.first_token + p.tokens)} tokens"
            lines.append(f"  {p.name.ljust(width)}  {span.ljust(24)}  {p.schedule.describe()}")
        lines.append("")
    return "\n".join(lines).rstrip()


def _thinned(t: Trajectory) -> tuple[np.ndarray, np.ndarray]:
    """Points to draw: evenly spaced, with both sides of every joint, so that no corner is cut."""
    joints = [p.first_step + j + d for p in t.plan.phases for j in (*p.schedule.joints, p.steps) for d in (-1, 0, 1)]
    chosen = np.unique(np.clip([*np.linspace(0, len(t.lr_T) - 1, POINTS).astype(int), *joints], 0, len(t.lr_T) - 1))
    return t.tokens_T[chosen], t.lr_T[chosen]


def _png(drawn: list[Trajectory], out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from cpt.reports.figures import PALETTE

    figure, axes = pyplot.subplots(figsize=(9, 3.6), dpi=150)
    for phase in _shaded(drawn):
        axes.axvspan(phase.first_token, phase.first_token + phase.tokens, color="0.94", lw=0)
    for phase in drawn[0].plan.phases:
        axes.annotate(phase.name, (phase.first_token, 1.0), xycoords=("data", "axes fraction"), xytext=(3, 3),
                      textcoords="offset points", fontsize=8, fontweight="bold")  # fmt: skip
    for i, t in enumerate(drawn):
        axes.plot(*_thinned(t), color=PALETTE[i % len(PALETTE)], lw=1.5, label=t.name)
    axes.set_xlabel("tokens")
    axes.set_ylabel("learning rate")
    axes.set_xlim(0, max(t.plan.total_tokens for t in drawn))
    axes.set_ylim(0)
    axes.xaxis.set_major_formatter(lambda x, _: human(x) if x else "0")
    axes.yaxis.set_major_formatter(lambda y, _: compact(float(f"{y:.6g}")))
    axes.spines[["top", "right"]].set_visible(False)
    if len(drawn) > 1:
        axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(out)
    pyplot.close(figure)


def _html(drawn: list[Trajectory], out: Path) -> None:
    import plotly.graph_objects as go

    from cpt.reports.figures import FAINT, label, layout, line, style

    figure = go.Figure()
    for phase in _shaded(drawn):
        figure.add_vrect(x0=phase.first_token, x1=phase.first_token + phase.tokens, fillcolor=FAINT, line_width=0)
    for phase in drawn[0].plan.phases:
        figure.add_annotation(x=phase.first_token, y=1, yref="paper", text=f"<b>{label(phase.name)}</b>",
                              showarrow=False, xanchor="left", yanchor="bottom")  # fmt: skip
    styles = style(t.name for t in drawn)
    for t in drawn:
        figure.add_trace(line(*_thinned(t), t.name, styles[t.name]))
    layout(figure, 460)
    figure.update_xaxes(title_text="tokens")
    figure.update_yaxes(title_text="learning rate", rangemode="tozero")
    write_atomic(out, figure.to_html(include_plotlyjs=True, full_html=True))


def _csv(drawn: list[Trajectory], out: Path) -> None:
    if len(drawn) > 1:
        raise ConfigError(f"--out={out}: a table holds one plan, {len(drawn)} were given; write them one by one")
    (t,) = drawn
    rows = ["step,tokens,phase,lr"]
    for p in t.plan.phases:
        part = slice(p.first_step, p.end)
        steps = zip(range(p.first_step, p.end), t.tokens_T[part].tolist(), t.lr_T[part].tolist(), strict=True)
        rows += [f"{step},{tokens},{p.name},{lr!r}" for step, tokens, lr in steps]
    write_atomic(out, "\n".join(rows) + "\n")


def _shaded(drawn: list[Trajectory]) -> list:
    """Every other phase of the first plan, as in the report."""
    return [p for i, p in enumerate(drawn[0].plan.phases) if i % 2]
