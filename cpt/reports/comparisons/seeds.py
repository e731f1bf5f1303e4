"""What a method does apart from what a seed did: runs that differ in the seed only, together."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from cpt.evaluators import formatting as fmt
from cpt.evaluators.replicates import compare_groups, group_summary
from cpt.reports.comparison import Comparison
from cpt.reports.figures import PALETTE, label, layout, rounded
from cpt.reports.section import Figure, Section, table

Row = dict[str, Any]


def seeds(comparison: Comparison) -> Section | None:
    """Means over seeds with their intervals, and the difference of every group to the first one."""
    if len(comparison.groups) < 2 and all(len(g.finished) < 2 for g in comparison.groups):
        return None
    rows = [row for group in comparison.groups for row in group_summary(group)]
    if not rows:
        return None
    differences = compare_groups(comparison.groups)
    blocks = [_bars(rows, comparison.unit), _means(rows, comparison)]
    if differences:
        blocks.append(_differences(differences))
    return Section(_title(differences, comparison), _lead(comparison), tuple(blocks))


def _title(differences: list[Row], comparison: Comparison) -> str:
    """The largest difference in forgetting that is told apart from noise."""
    forgot = [d for d in differences if d["quantity"] == "forgetting" and d["within_noise"] is False]
    if not forgot:
        return "Over seeds"
    d = max(forgot, key=lambda d: abs(d["difference"]))
    more = "more" if d["difference"] > 0 else "less"
    return f"{d['group']} forgets {d['set']} {more} than {d['baseline']}: {_around(d['difference'], d['ci95'], True)}"


def _lead(comparison: Comparison) -> str:
    sizes = [len(g.finished) for g in comparison.groups]
    lead = (
        f"{len(sizes)} configs, {min(sizes)}{'' if min(sizes) == max(sizes) else f' to {max(sizes)}'} seeds of each. "
    )
    if min(sizes) < 2:
        lead += "Where a config has one seed, its difference to another is over evaluation documents only. "
    if left := [n for g in comparison.groups for n in g.again]:
        lead += f"Left out, a seed that is there already: {', '.join(left)}. "
    if unfinished := [g.names[s] for g in comparison.groups for s in g.members if s not in g.finished]:
        lead += f"Left out, not finished: {', '.join(unfinished)}. "
    if diverged := _diverged(comparison):
        lead += f"Without a finite loss at the end, and so not in its means: {', '.join(diverged)}. "
    return lead + "One in twenty differences lies outside its interval by chance."


def _diverged(comparison: Comparison) -> list[str]:
    """Names of finished runs that have a set without a finite final loss."""
    return [
        g.names[seed]
        for g in comparison.groups
        for seed, run in g.finished.items()
        if any(s["final"] is None for s in run.summary["sets"].values())
    ]


def _bars(rows: list[Row], unit: str) -> Figure:
    figure = go.Figure()
    forgot = [r for r in rows if r["quantity"] == "forgetting" and r["mean"] is not None]
    for i, name in enumerate(dict.fromkeys(r["set"] for r in forgot)):
        mine = [r for r in forgot if r["set"] == name]
        half = [fmt.half_width(r["ci95"]) or 0.0 for r in mine]
        figure.add_trace(
            go.Bar(
                x=[label(r["group"]) for r in mine], y=rounded(r["mean"] for r in mine), name=label(name),
                marker={"color": PALETTE[i % len(PALETTE)]},
                error_y={"type": "data", "array": rounded(half), "thickness": 1.2},
                hovertemplate="%{x}: %{y:.3f}",
            )
        )  # fmt: skip
    layout(figure, 380, barmode="group", showlegend=True)
    figure.update_yaxes(title_text=f"change since the switch, {unit}", zeroline=True)
    words = "; ".join(f"{r['group']}, {r['set']}: {_around(r['mean'], r['ci95'])}" for r in forgot)
    caption = "Bars are means over seeds, whiskers their 95 % t interval; a config with one seed has none."
    return Figure(figure, caption, f"Change of every set since the switch, by config. {words}.")


def _means(rows: list[Row], comparison: Comparison) -> Any:
    cells: dict[tuple[str, str], dict[str, Row]] = {}
    for r in rows:
        cells.setdefault((r["group"], r["set"]), {})[r["quantity"]] = r
    heads = ["config", "set", "seeds", "change", "std over seeds", "final", "signal to noise", "gap depth", "gap area"]
    body = []
    for (group, name), by in cells.items():
        final, depth = (_around(by[q]["mean"], by[q]["ci95"]) for q in ("final", "depth"))
        change, std = by["forgetting"], fmt.nats(by["forgetting"]["std"])
        mean, deviation = by["final"]["mean"], by["final"]["std"]
        # Madaan et al. 2024: mean over standard deviation; what is below rounding is no deviation.
        signal = fmt.value(mean / deviation) if deviation and deviation > 1e-9 * mean else fmt.DASH
        row = [group, name, change["n"], _around(change["mean"], change["ci95"], True), std, final, signal, depth]
        body.append([*row, fmt.tokens(by["area"]["mean"])])
    unit = f"{comparison.unit} (area: {comparison.area_unit})"
    return table(heads, body, f"Means over seeds, {unit}, ± half of the 95 % interval", 2)


def _differences(rows: list[Row]) -> Any:
    heads = ["config", "against", "set", "what", "difference", "", "over"]
    body = [
        [
            r["group"],
            r["baseline"],
            r["set"],
            r["quantity"],
            _around(r["difference"], r["ci95"], True) if r["quantity"] != "area" else fmt.tokens(r["difference"]),
            {True: "within noise", False: "told apart", None: "no interval"}[r["within_noise"]],
            f"{r['over']}{', paired' if r['paired'] else ''}",
        ]
        for r in rows
    ]
    return table(heads, body, "Differences to the first config, with 95 % intervals", text_columns=4)


def _around(value: float | None, ci: list[float] | None, sign: bool = False) -> str:
    return fmt.plus_minus(value, ci, sign=sign)
