"""The realised mix and the replay ledger: what was planned and what was really trained on."""

from __future__ import annotations

import plotly.graph_objects as go

from cpt.evaluators.rows import RunFiles
from cpt.reports.figures import label, layout, names_of, style
from cpt.reports.ledger_table import closing_lines, ledger_table, shares
from cpt.reports.section import Figure, Section


def mix(run: RunFiles) -> Section | None:
    """Stacked token shares per phase, planned above consumed, and the ledger as a table."""
    entries = run.ledger.get("phases") or []
    if not entries:
        return None
    exact = run.ledger.get("exact")
    state = "The ledger is exact: every realised count equals the plan." if exact else "The ledger is NOT exact."
    phases = list(dict.fromkeys(e["phase"] for e in entries))
    plot = Figure(
        _bars(run, entries, phases),
        "Share of each source in a phase's tokens. A pattern marks replay.",
        "Token shares. " + "; ".join(f"{p}: {_spoken(entries, p)}" for p in phases),
    )
    replay = " ".join(
        f"{line[0].upper()}{line[1:].rsplit(' · ', 1)[0]}." for line in closing_lines({**run.summary, "branches": []})
    )
    return Section("Mix and replay", f"{state} {replay}".strip(), (plot, ledger_table(entries)))


def _bars(run: RunFiles, entries: list[dict], phases: list[str]) -> go.Figure:
    # Rows are numbered and named by ticks, so that no two names can merge into one category.
    keys = list(dict.fromkeys((e["source"], e["role"]) for e in entries))
    styles = style(dict.fromkeys([*names_of(run), *(s for s, _ in keys)]))
    rows = [(p, column) for p in phases for column in ("tokens_planned", "tokens_consumed")]
    ticks = [f"{label(p)}, {column.removeprefix('tokens_')}" for p, column in rows]
    figure = go.Figure()
    for source, role in keys:
        values = [shares(entries, p, column).get((source, role), 0.0) for p, column in rows]
        name = label(source) + (", replay" if role == "replay" else "")
        figure.add_trace(
            go.Bar(
                y=list(range(len(rows))), x=[round(100 * v, 4) for v in values], name=name, orientation="h",
                marker={"color": styles[source]["color"],
                        "pattern": {"shape": "/" if role == "replay" else "", "fillmode": "overlay",
                                    "fgcolor": "#ffffff", "size": 6, "solidity": 0.25}},
                text=[f"{100 * v:.3g} %" if v >= 0.04 else "" for v in values], textposition="inside",
                insidetextanchor="middle", textangle=0, hovertemplate=f"{name}: %{{x:.3f}} %<extra></extra>",
            )
        )  # fmt: skip
    layout(figure, 110 + 38 * len(rows), barmode="stack", bargap=0.28)
    figure.update_layout(hovermode="closest", uniformtext={"minsize": 10, "mode": "hide"}, legend_traceorder="normal")
    figure.update_yaxes(autorange="reversed", showgrid=False, tickvals=list(range(len(rows))), ticktext=ticks)
    figure.update_xaxes(title_text="share of tokens", ticksuffix=" %", range=[0, 100])
    return figure


def _spoken(entries: list[dict], phase: str) -> str:
    parts = shares(entries, phase, "tokens_consumed").items()
    return ", ".join(f"{source} ({role}) {100 * v:.2f} %" for (source, role), v in parts)
