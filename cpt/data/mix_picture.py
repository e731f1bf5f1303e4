"""The mix of a plan over time: a table in the terminal, stacked shares and tokens per column as a figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.markup import escape
from rich.table import Table

from cpt.errors import ConfigError, RunError
from cpt.evaluators.rows import write_atomic
from cpt.units import human

if TYPE_CHECKING:
    from cpt.columns import Column
    from cpt.phase import Phase
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
        steps = _points(phase)
        # The end of a phase is drawn with its last share, so that it reaches to its border.
        table = np.broadcast_to(phase.share_table(), (phase.steps, len(phase.columns)))[[*steps[:-1], -1]]
        tokens.append(phase.first_token + steps * phase.tokens_per_step)
        for name in names:
            mine = [k for k, c in enumerate(phase.columns) if c.name == name]
            shares[name].append(table[:, mine].sum(axis=1))
    return np.concatenate(tokens), {name: np.concatenate(parts) for name, parts in shares.items()}


def read_over_time(plan: RunPlan) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(tokens_P, read_P by source): tokens read of every source up to each point of `mix_over_time`.

    What a phase re-reads of an earlier one counts under the name of its column, `replay(<phase>)`. The counts are those
    of all steps, not of the points alone.
    """
    names = dict.fromkeys(c.source or c.name for p in plan.phases for c in p.columns)
    tokens, read, so_far = [], {name: [] for name in names}, dict.fromkeys(names, 0.0)
    for phase in plan.phases:
        steps, table = _points(phase), phase.share_table()
        tokens.append(phase.first_token + steps * phase.tokens_per_step)
        if table.ndim == 1:
            read_PxK = steps[:, None] * table
        else:
            read_PxK = np.vstack([np.zeros(len(phase.columns)), np.cumsum(table, axis=0)])[steps]
        for name in names:
            mine = [k for k, c in enumerate(phase.columns) if (c.source or c.name) == name]
            read[name].append(so_far[name] + read_PxK[:, mine].sum(axis=1) * phase.tokens_per_step)
            so_far[name] = read[name][-1][-1]
    return np.concatenate(tokens), {name: np.concatenate(parts) for name, parts in read.items()}


def mix_table(plan: RunPlan, sizes: Mapping[str, int] | None = None) -> Table:
    """First and last share, tokens and epochs of every column of every phase.

    Epochs are passes in this phase over the store, or over the range that is replayed, as in the ledger.

    Args:
      sizes: training tokens of sources, where known.
    """
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("phase", "column", "first share", "last share", "tokens", "epochs", "multiplier, first", "last"):
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
            read = tokens * phase.tokens_per_step
            size = range_tokens(plan, phase, column, sizes or {})
            epochs = f"{read / size:.3g}" if size else "—"
            name = escape(phase.name) if k == 0 else ""
            table.add_row(name, escape(column.name), *share, human(read), epochs, f"{w:.4g}", f"{v:.4g}")
    return table


def range_tokens(plan: RunPlan, phase: Phase, column: Column, sizes: Mapping[str, int]) -> float | None:
    """Distinct tokens that a column can read: its source's store, or the replayed range; None where not known."""
    if column.source is not None:
        return sizes.get(column.source)
    seen = next(p.new_tokens for p in plan.phases if p.name == column.of)
    reservoir = phase.spec.replay.range == "reservoir"
    return min(seen, phase.spec.replay.reservoir or 0) if reservoir else seen


def write_mix(plan: RunPlan, out: Path, sizes: Mapping[str, int] | None = None) -> Path:
    """Draw the mix into `out`, in the format that its suffix names.

    Args:
      sizes: training tokens of sources, where known; the legend says how many epochs the run makes over them.

    Raises:
      ConfigError: another suffix than .html, .png or .svg.
      RunError: the file cannot be written.
    """
    writers = {".html": _html, ".png": _image, ".svg": _image}
    if out.suffix not in writers:
        raise ConfigError(f"--out={out}: draws {', '.join(writers)}, not '{out.suffix}'")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        writers[out.suffix](plan, out, sizes or {})
    except OSError as e:
        raise RunError(f"{out}: cannot write ({e.strerror}); choose another --out") from e
    return out


def _points(phase: Phase) -> np.ndarray:
    """Steps of a phase that are drawn, and its end."""
    steps = np.unique(np.linspace(0, phase.steps - 1, min(phase.steps, POINTS)).astype(int))
    return np.append(steps, phase.steps)


def _titles(
    shares: Mapping[str, np.ndarray], read: Mapping[str, np.ndarray], sizes: Mapping[str, int]
) -> dict[str, str]:
    """Name for the legend of everything that is drawn, with the epochs that the run makes over it where known."""
    epochs = {name: f", {read[name][-1] / size:.3g} epochs" for name, size in sizes.items() if name in read and size}
    return {name: name + epochs.get(name, "") for name in {**shares, **read}}


def _html(plan: RunPlan, out: Path, sizes: Mapping[str, int]) -> None:
    from plotly.subplots import make_subplots

    from cpt.reports.figures import label, layout, line, rounded, style

    (tokens_P, shares), (_, read) = mix_over_time(plan), read_over_time(plan)
    titles = _titles(shares, read, sizes)
    styles = style(titles)
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    for name, share in shares.items():
        own = {**styles[name], "width": 0}
        figure.add_trace(line(tokens_P, 100 * share, titles[name], own, stackgroup="mix", legendgroup=name), 1, 1)
    for name, read_P in read.items():
        more = {"legendgroup": name, "showlegend": name not in shares}
        if sizes.get(name):
            more |= {
                "customdata": rounded(read_P / sizes[name]),
                "hovertemplate": "%{y:.4s} (%{customdata:.3g} epochs)",
            }
        figure.add_trace(line(tokens_P, read_P, titles[name], styles[name], **more), 2, 1)
    for phase in plan.phases:
        figure.add_vline(x=phase.first_token, line_width=1, line_dash="dot", line_color="gray")
        figure.add_annotation(x=phase.first_token, y=1, yref="paper", text=f"<b>{label(phase.name)}</b>",
                              showarrow=False, xanchor="left", yanchor="bottom")  # fmt: skip
    layout(figure, 620)
    figure.update_yaxes(title_text="share of the batch, %", range=[0, 100], row=1)
    figure.update_yaxes(title_text="tokens read of it", rangemode="tozero", row=2)
    figure.update_xaxes(title_text="tokens", row=2)
    write_atomic(out, figure.to_html(include_plotlyjs=True, full_html=True))


def _image(plan: RunPlan, out: Path, sizes: Mapping[str, int]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from cpt.reports.figures import PALETTE

    (tokens_P, shares), (_, read) = mix_over_time(plan), read_over_time(plan)
    titles = _titles(shares, read, sizes)
    figure, (above, below) = pyplot.subplots(2, 1, figsize=(9, 5.4), dpi=150, sharex=True)
    colours = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(titles)}
    above.stackplot(
        tokens_P,
        *(100 * s for s in shares.values()),
        labels=[titles[n] for n in shares],
        colors=[colours[n] for n in shares],
        alpha=0.85,
        lw=0,
    )
    for name, read_P in read.items():
        label = None if name in shares else titles[name]
        below.plot(tokens_P, read_P, color=colours[name], lw=1.5, label=label)
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
