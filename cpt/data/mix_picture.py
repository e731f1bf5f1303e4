"""The mix of a plan over time: a table in the terminal, stacked shares and tokens per column as a figure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.markup import escape
from rich.table import Table

from cpt.errors import ConfigError, RunError
from cpt.evaluators.rows import write_atomic
from cpt.units import human

if TYPE_CHECKING:
    from cpt.plan import RunPlan

POINTS = 1000  # drawn of a phase at most; its first and last step are among them


def mix_over_time(plan: RunPlan) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(tokens_P, share_P by column): every column of any phase, 0 where a phase does not read it.

    The points are steps of the plan, at most `POINTS` of each phase; the share at tokens t is that of the update that
    begins there.
    """
    names = dict.fromkeys(c.name for p in plan.phases for c in p.columns)
    tokens: list[np.ndarray] = []
    shares: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for phase in plan.phases:
        steps = np.unique(np.linspace(0, phase.steps - 1, min(phase.steps, POINTS)).astype(int))
        # A point just before the end as well, so that a phase is drawn to its border.
        table = np.broadcast_to(phase.share_table(), (phase.steps, len(phase.columns)))[[*steps, -1]]
        tokens.append(phase.first_token + np.append(steps, phase.steps) * phase.tokens_per_step)
        for name in names:
            mine = [k for k, c in enumerate(phase.columns) if c.name == name]
            shares[name].append(table[:, mine].sum(axis=1))
    return np.concatenate(tokens), {name: np.concatenate(parts) for name, parts in shares.items()}


def mix_table(plan: RunPlan) -> Table:
    """First and last share, and tokens, of every column of every phase."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("phase", "column", "first share", "last share", "tokens", "multiplier, first", "last"):
        table.add_column(title, justify="left" if title in ("phase", "column") else "right")
    for phase in plan.phases:
        last = phase.steps - 1
        total = np.broadcast_to(phase.share_table(), (phase.steps, len(phase.columns))).sum(axis=0)
        columns = zip(
            phase.columns, phase.shares(0), phase.shares(last), total, phase.multipliers(0), phase.multipliers(last),
            strict=True,
        )  # fmt: skip
        for k, (column, a, b, tokens, w, v) in enumerate(columns):
            share = (f"{100 * a:.4g} %", f"{100 * b:.4g} %")
            counted = human(tokens * phase.tokens_per_step)
            name = escape(phase.name) if k == 0 else ""
            table.add_row(name, escape(column.name), *share, counted, f"{w:.4g}", f"{v:.4g}")
    return table


def write_mix(plan: RunPlan, out: Path) -> Path:
    """Draw the mix into `out`, in the format that its suffix names.

    Raises:
      ConfigError: another suffix than .html, .png or .svg.
      RunError: the file cannot be written.
    """
    writers = {".html": _html, ".png": _image, ".svg": _image}
    if out.suffix not in writers:
        raise ConfigError(f"--out={out}: draws {', '.join(writers)}, not '{out.suffix}'")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        writers[out.suffix](plan, out)
    except OSError as e:
        raise RunError(f"{out}: cannot write ({e.strerror}); choose another --out") from e
    return out


def _read_so_far(tokens_P: np.ndarray, shares: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tokens of every column up to each point."""
    step_P = np.diff(tokens_P, prepend=0.0)
    return {name: np.cumsum(step_P * np.insert(share, 0, 0.0)[:-1]) for name, share in shares.items()}


def _html(plan: RunPlan, out: Path) -> None:
    from plotly.subplots import make_subplots

    from cpt.reports.figures import label, layout, line, style

    tokens_P, shares = mix_over_time(plan)
    styles = style(shares)
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    for name, share in shares.items():
        own = {**styles[name], "width": 0}
        figure.add_trace(line(tokens_P, 100 * share, name, own, stackgroup="mix", legendgroup=name), 1, 1)
    for name, read in _read_so_far(tokens_P, shares).items():
        figure.add_trace(line(tokens_P, read, name, styles[name], legendgroup=name, showlegend=False), 2, 1)
    for phase in plan.phases:
        figure.add_vline(x=phase.first_token, line_width=1, line_dash="dot", line_color="gray")
        figure.add_annotation(x=phase.first_token, y=1, yref="paper", text=f"<b>{label(phase.name)}</b>",
                              showarrow=False, xanchor="left", yanchor="bottom")  # fmt: skip
    layout(figure, 620)
    figure.update_yaxes(title_text="share of the batch, %", range=[0, 100], row=1)
    figure.update_yaxes(title_text="tokens read of it", rangemode="tozero", row=2)
    figure.update_xaxes(title_text="tokens", row=2)
    write_atomic(out, figure.to_html(include_plotlyjs=True, full_html=True))


def _image(plan: RunPlan, out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from cpt.reports.figures import PALETTE

    tokens_P, shares = mix_over_time(plan)
    figure, (above, below) = pyplot.subplots(2, 1, figsize=(9, 5.4), dpi=150, sharex=True)
    colours = [PALETTE[i % len(PALETTE)] for i in range(len(shares))]
    above.stackplot(
        tokens_P, *(100 * s for s in shares.values()), labels=list(shares), colors=colours, alpha=0.85, lw=0
    )
    for colour, read in zip(colours, _read_so_far(tokens_P, shares).values(), strict=True):
        below.plot(tokens_P, read, color=colour, lw=1.5)
    for phase in plan.phases:
        for axes in (above, below):
            axes.axvline(phase.first_token, color="0.5", lw=0.8, ls=":")
        above.annotate(phase.name, (phase.first_token, 1.0), xycoords=("data", "axes fraction"), xytext=(3, 3),
                       textcoords="offset points", fontsize=8, fontweight="bold")  # fmt: skip
    above.set_ylabel("share of the batch, %")
    above.set_ylim(0, 100)
    below.set_ylabel("tokens read of it")
    below.set_xlabel("tokens")
    below.set_xlim(0, plan.total_tokens)
    below.set_ylim(0)
    for axis in (below.xaxis, below.yaxis):
        axis.set_major_formatter(lambda x, _: human(x) if x else "0")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="upper right", frameon=False, fontsize=8, ncols=4)
    figure.tight_layout(rect=(0, 0, 1, 0.94))
    figure.savefig(out)
    pyplot.close(figure)
