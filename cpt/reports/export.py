"""The numbers and figures of runs for a paper: CSV and LaTeX tables, PNG and SVG plots."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from cpt.errors import RunError
from cpt.evaluators import formatting as fmt
from cpt.evaluators.replicates import compare_groups, group_summary
from cpt.evaluators.rows import write_atomic
from cpt.reports.comparison import NAMED, Comparison
from cpt.reports.comparisons.trade_off import pareto_front, trades_of

Row = Mapping[str, Any]
LINESTYLES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}


def export(comparison: Comparison, folder: Path) -> list[Path]:
    """Write the tables and figures of `comparison` into `folder`; returns the files.

    `runs` has a row per run and set, `curves` a row per evaluation, `seeds` and `differences` are those of the page.
    Tables are `.csv` with all digits and, but for `curves`, `.tex` (booktabs) rounded; figures `.png` and `.svg`.
    Losses are nats per token, or where runs have different tokenizers bits per byte, which a column `unit` then says.

    Raises:
      RunError: the folder cannot be written.
    """
    out = []
    tables = {"runs": run_rows(comparison)}
    if len(comparison.groups) > 1 or any(len(g.finished) > 1 for g in comparison.groups):
        tables["seeds"] = [_flat(r) for g in comparison.groups for r in group_summary(g)]
        tables["differences"] = [_flat(r) for r in compare_groups(comparison.groups)]
    for name, rows in tables.items():
        if rows:
            out.append(write_atomic(folder / f"{name}.csv", as_csv(rows)))
            out.append(write_atomic(folder / f"{name}.tex", as_latex(rows)))
    out.append(write_atomic(folder / "curves.csv", as_csv(curve_rows(comparison))))
    figures: dict[str, Figure] = {}
    for i, name in enumerate(comparison.sets):
        file = f"curves-{_file_name(name)}"
        figures[file if file not in figures else f"{file}-{i}"] = _curves(comparison, name)
    if figure := _trade_off(comparison):
        figures["trade_off"] = figure
    for name, figure in figures.items():
        for kind in ("png", "svg"):
            path = folder / f"{name}.{kind}"
            try:
                figure.savefig(path, dpi=200, bbox_inches="tight", metadata={"Date": None} if kind == "svg" else None)
            except OSError as e:
                raise RunError(f"{path}: cannot write ({e.strerror}); free space or choose another --export") from e
            out.append(path)
    return out


def run_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """A row per run and set: its numbers, the probes' last values, and the config fields that differ."""
    rows = []
    for name, run in comparison.runs.items():
        probes = {k: v["last"] for k, v in (run.summary.get("probes") or {}).items()}
        for set_name, s in run.summary["sets"].items():
            gap, ci = s["gap"] or {}, s["forgetting_ci95"] or [None, None]
            row = {"run": name, "set": set_name, "initial": s["initial"], "final": s["final"]}
            row |= _unit(comparison) | {"forgetting": s["forgetting"], "forgetting_lo": ci[0], "forgetting_hi": ci[1]}
            keys = ("depth", "peak_tokens", "recovery_tokens", "area", "transient")
            row |= {key: gap.get(key) for key in keys} | {"bits_per_byte": s["bits_per_byte"]["final"]}
            rows.append(row | probes | {f: comparison.fields[f][name] for f in comparison.fields})
    return rows


def curve_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """A row per run, set and evaluation."""
    rows = []
    for name, run in comparison.runs.items():
        for set_name, c in run.curves.items():
            for t, step in enumerate(c.steps.tolist()):
                row = {"run": name, "set": set_name, "step": step, "tokens": int(c.tokens[t])} | _unit(comparison)
                rows.append(row | {"loss": float(c.loss[t]), "bits_per_byte": float(c.bits_per_byte[t])})
    return rows


def _unit(comparison: Comparison) -> dict[str, str]:
    """A column where the unit is not the usual one."""
    return {} if comparison.one_tokenizer else {"unit": comparison.unit}


def as_csv(rows: Iterable[Row]) -> str:
    """Rows with a header; what is not known is empty."""
    rows = list(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(k for r in rows for k in r)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_latex(rows: list[Row]) -> str:
    """A booktabs table, numbers in four digits."""
    heads = list(dict.fromkeys(k for r in rows for k in r))
    numeric = {h: all(isinstance(r.get(h), int | float | None) for r in rows) for h in heads}
    lines = ["\\begin{tabular}{" + "".join("r" if numeric[h] else "l" for h in heads) + "}", "\\toprule"]
    lines += [" & ".join(_tex(h) for h in heads) + " \\\\", "\\midrule"]
    lines += [" & ".join(_cell(r.get(h)) for h in heads) + " \\\\" for r in rows]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _cell(value: Any) -> str:
    if value is None:
        return "--"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"${fmt.value(value).replace(fmt.MINUS, '-').replace(',', '{,}')}$"
    return _tex(str(value))


def _tex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)


def _flat(row: Row) -> dict[str, Any]:
    """An interval as two columns, a list as text."""
    lo, hi = row["ci95"] or [None, None]
    flat = {k: v for k, v in row.items() if k != "ci95"} | {"lo": lo, "hi": hi}
    return {k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in flat.items()}


def _curves(comparison: Comparison, set_name: str) -> Figure:
    figure = Figure(figsize=(6, 3.4))
    axes = figure.add_subplot()
    for name, run in comparison.runs.items():
        if curve := run.curves.get(set_name):
            style = comparison.styles[name]
            axes.plot(
                curve.tokens, curve.loss, color=style["color"], ls=LINESTYLES[style["dash"]], lw=1.2, label=_plain(name)
            )
    for first in sorted({p["first_token"] for r in comparison.runs.values() for p in r.phases[1:]}):
        axes.axvline(first, color="0.6", lw=0.8, ls=":")
    axes.set(xlabel="tokens", ylabel=comparison.unit)
    axes.set_title(_plain(set_name), loc="left", fontsize=10)
    return _finished(figure, axes, len(comparison.runs) <= NAMED)


def _trade_off(comparison: Comparison) -> Figure | None:
    trades = trades_of(comparison)
    if not trades:
        return None
    figure = Figure(figsize=(5, 4))
    axes = figure.add_subplot()
    front = pareto_front(trades)
    axes.plot([t.forgetting[0] for t in front], [t.learned[0] for t in front], color="0.6", lw=0.8, ls=":")
    for t in trades:
        (x, x_half), (y, y_half) = t.forgetting, t.learned
        axes.errorbar(
            x, y, y_half, x_half, fmt="o", ms=4, lw=1, color=comparison.styles[t.name]["color"], label=_plain(t.name)
        )
    unit = comparison.unit
    axes.set(xlabel=f"forgetting, {unit}", ylabel=f"loss reduction on new data, {unit}")
    return _finished(figure, axes, len(trades) <= NAMED)


def _finished(figure: Figure, axes: Any, named: bool) -> Figure:
    axes.spines[["top", "right"]].set_visible(False)
    if named:
        axes.legend(fontsize=7, frameon=False)
    return figure


def _plain(name: str) -> str:
    """A name as matplotlib text, which takes what stands between dollars for mathematics and `_x` for no label."""
    name = name.replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
