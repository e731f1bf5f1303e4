"""The commands `fit`, `predict` and `rank` of `python -m cpt.schedules`.

    python -m cpt.schedules fit --law=annealing --csv=cosine.csv,constant.csv --test=wsd.csv --out=fit.json
    python -m cpt.schedules fit --law=cpt --workdir=runs/a,runs/b --set=pile --out=pile.json
    python -m cpt.schedules predict --fit=fit.json --config=configs/pile_to_slimpajama.py
    python -m cpt.schedules rank --fit=pile.json,slimpajama.json --weights=0.5,0.5 --config=a.py,b.py,c.py

`fit` writes the parameters with 95 % intervals, the errors per curve, and a figure beside them. `predict` says the loss
at the end of a plan. `rank` orders plans by it: one fit per validation set, upstream first, weighted; the interval of a
difference to the first is that of the difference, since what is wrong with a fit is wrong for all plans.
A law knows the learning rate and nothing else: batch, model and data must be those of the curves it was fitted to.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from cpt import cli
from cpt.errors import ConfigError, DataError
from cpt.evaluators.rows import plain, write_atomic
from cpt.overrides import config_files
from cpt.schedules.laws.annealing import Annealing
from cpt.schedules.laws.cpt_law import ContinualPretraining
from cpt.schedules.laws.curves import Curve, of_plan, read_csv, read_workdir
from cpt.schedules.laws.fitting import Fit, errors, fit
from cpt.schedules.laws.law import Options
from cpt.schedules.laws.multi_power import MultiPower

LAWS = {"annealing": Annealing, "multi_power": MultiPower, "cpt": ContinualPretraining}
COMMANDS = ("fit", "predict", "rank")


def define_flags(command: str) -> None:
    """The flags of one of the commands."""
    if command == "fit":
        flags.DEFINE_enum("law", "annealing", list(LAWS), "Which law.")
        flags.DEFINE_list("workdir", [], "Run directories to fit, separated by commas.")
        flags.DEFINE_list("csv", [], "Tables with the columns step, lr, loss, separated by commas.")
        flags.DEFINE_list("test", [], "Tables or run directories to predict, separated by commas.")
        flags.DEFINE_string("set", None, "Evaluation set of the runs; their training loss by default.")
        flags.DEFINE_integer("switch", None, "Step at which the data of the tables changes (law cpt).", lower_bound=1)
        flags.DEFINE_list("decay", ["0.999"], "lambda of the annealing area; of several, the one that fits best.")
        flags.DEFINE_bool("warmup_in_s2", False, "Whether the initial warm-up counts as negative annealing.")
        flags.DEFINE_string("out", "fit.json", "Where to write the fit; its figure goes beside it as .html.")
        return
    flags.DEFINE_list("fit", [], "Fits made by `fit`, separated by commas.")
    flags.DEFINE_string("config", None, "Recipe FILE.py or FILE.py:ARGUMENT; several, separated by commas.")
    if command == "rank":
        flags.DEFINE_list("weights", [], "Weight of each fit; equal by default.")


def main(command: str, overrides: list[str]) -> None:
    """Run one of the commands; `overrides` are `--config.a.b=value`."""
    {"fit": _fit, "predict": _predict, "rank": _rank}[command](flags.FLAGS, overrides)


def _fit(given: Any, overrides: list[str]) -> None:
    if bool(given.workdir) == bool(given.csv):
        raise ConfigError("--workdir or --csv: give the curves to fit, as one of the two (see --help)")
    names = [*given.workdir, *given.csv, *given.test]
    read = distinct([_read(name, given) for name in names], names)
    curves, tests = read[: len(names) - len(given.test)], read[len(names) - len(given.test) :]
    options = [Options(decay, given.warmup_in_s2) for decay in _decays(given.decay)]
    fitted = min((fit(LAWS[given.law](), curves, o) for o in options), key=lambda f: f.objective)
    report = fit_json(given.law, fitted, curves, tests)
    out = Path(given.out)
    write_atomic(out, json.dumps(report, indent=1) + "\n")
    write_atomic(out.with_suffix(".html"), figure(fitted, curves, tests).to_html(include_plotlyjs=True))
    console = Console(width=None)
    console.print(_parameter_table(report))
    console.print(_error_table(report))
    if len(options) > 1:
        console.print(f"lambda of the annealing area: {fitted.options.decay:g} fits best", highlight=False)
    console.print(f"wrote {out} and {out.with_suffix('.html')}", highlight=False)


def _decays(given: list[str]) -> list[float]:
    try:
        decays = [float(d) for d in given]
    except ValueError as e:
        raise ConfigError(f"--decay: numbers separated by commas, got {','.join(given)}") from e
    if not decays or not all(0 <= d < 1 for d in decays):
        raise ConfigError(f"--decay={','.join(given)}: needs at least 0 and below 1, e.g. 0.999")
    return decays


def distinct(curves: list[Curve], names: list[str]) -> list[Curve]:
    """The curves, those of one name renamed to the path they came from, so that no table hides one behind another."""
    count = Counter(c.name for c in curves)
    return [replace(c, name=n) if count[c.name] > 1 else c for c, n in zip(curves, names, strict=True)]


def _read(name: str, given: Any) -> Curve:
    """A run directory or a table."""
    path = Path(name)
    return read_workdir(path, given.set) if path.is_dir() else read_csv(path, given.switch)


def _predict(given: Any, overrides: list[str]) -> None:
    fits = {f: read_fit(Path(f)) for f in _needed(given.fit, "fit")}
    table = Table(box=None, header_style="bold")
    for title in ("plan", "fit", "loss at the end"):
        table.add_column(title, justify="right" if title.startswith("loss") else "left")
    for file in _needed(config_files(given.config or ""), "config"):
        curve = of_plan(cli.read_plan(file, overrides))
        for name, fitted in fits.items():
            loss, half = at_the_end(fitted, curve)
            table.add_row(file, name, f"{loss:.4f} ± {half:.4f}")
    Console(width=None).print(table)


def _rank(given: Any, overrides: list[str]) -> None:
    fits = {f: read_fit(Path(f)) for f in _needed(given.fit, "fit")}
    try:
        weights = np.array([float(w) for w in given.weights] or [1.0] * len(fits))
    except ValueError as e:
        raise ConfigError(f"--weights: numbers separated by commas, got {','.join(given.weights)}") from e
    if len(weights) != len(fits) or weights.sum() <= 0 or (weights < 0).any():
        raise ConfigError(f"--weights: one weight of at least 0 for each of the {len(fits)} fits, not all 0")
    weights = weights / weights.sum()
    rows = []
    for file in _needed(config_files(given.config or ""), "config"):
        plan = cli.read_plan(file, overrides)
        curve = of_plan(plan)
        ends = [at_the_end(fitted, curve) for fitted in fits.values()]
        weighted = float(weights @ [loss for loss, _ in ends])
        rows.append((weighted, file, _together(weights, [h for _, h in ends]), plan.total_tokens, ends, curve))
    rows.sort(key=lambda row: row[:2])
    if len({row[3] for row in rows}) > 1:
        said = "the plans differ in tokens: this orders budgets, not schedules alone"
        Console(stderr=True).print(said, style="yellow")
    table = Table(box=None, header_style="bold")
    for title in ("", "plan", *fits, "weighted"):
        table.add_column(title, justify="left" if title == "plan" else "right")
    first = rows[0][-1]
    for i, (weighted, file, half, _, ends, curve) in enumerate(rows, 1):
        apart = _together(weights, [fitted.difference(curve, first)[1] for fitted in fits.values()])
        tied = " (within error of the first)" if i > 1 and weighted - rows[0][0] < apart else ""
        each = [f"{loss:.4f} ± {h:.4f}" for loss, h in ends]
        table.add_row(str(i), file, *each, f"{weighted:.4f} ± {half:.4f}{tied}")
    Console(width=None).print(table)


def _together(weights: np.ndarray, halves: list[float]) -> float:
    """Half of the interval of a weighted sum; the fits are of different sets, their errors taken as independent."""
    return float(np.sqrt(np.sum((weights * halves) ** 2)))


def at_the_end(fitted: Fit, curve: Curve) -> tuple[float, float]:
    """Predicted loss after the last update of a curve, and half of its 95 % interval."""
    loss, half = fitted.predict(curve)
    return float(loss[-1]), float(half[-1])


def fit_json(name: str, fitted: Fit, curves: list[Curve], tests: list[Curve]) -> dict[str, Any]:
    """What `fit.json` holds: the law, its parameters with 95 % intervals, and the errors per curve."""
    parameters = {
        n: {"value": v, "ci95": list(interval)}
        for n, v, interval in zip(fitted.law.names, fitted.parameters_U, fitted.intervals_Ux2, strict=True)
    }
    return plain(
        {
            "law": name,
            "parameters": parameters,
            "covariance": fitted.covariance_UxU,
            "misfit": fitted.misfit,
            "objective": fitted.objective,
            "options": vars(fitted.options),
            "fitted": {c.name: errors(fitted, c) for c in curves},
            "tested": {c.name: errors(fitted, c) for c in tests},
        }
    )


def read_fit(path: Path) -> Fit:
    """A fit from its file.

    Raises:
      DataError: no such file, or not one that `fit` wrote.
    """
    try:
        report = json.loads(path.read_text())
        law = LAWS[report["law"]]()
        values = np.array([report["parameters"][n]["value"] for n in law.names], np.float64)
        covariance = np.array(report["covariance"], np.float64)
        return Fit(law, Options(**report["options"]), values, covariance, report["misfit"], report["objective"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise DataError(f"{path}: not a fit ({e}); make one with `python -m cpt.schedules fit`") from e


def figure(fitted: Fit, curves: list[Curve], tests: list[Curve]) -> Any:
    """Predicted against actual: dots are the curves, lines the law; dashed where it had not seen the curve."""
    import plotly.graph_objects as go

    from cpt.reports.figures import label, layout, rounded, style

    made = go.Figure()
    styles = style(c.name for c in (*curves, *tests))
    for c in (*curves, *tests):
        seen = c in curves
        color = styles[c.name]["color"]
        predicted, _ = fitted.predict(c)
        group = {"x": c.steps_P, "legendgroup": c.name}
        dots = {"color": color, "size": 4, "opacity": 0.45}
        made.add_trace(go.Scatter(**group, y=rounded(c.loss_P), mode="markers", showlegend=False, marker=dots))
        stroke = {"color": color, "dash": "solid" if seen else "dash"}
        name = label(c.name) + ("" if seen else ", predicted")
        made.add_trace(go.Scatter(**group, y=rounded(predicted), mode="lines", name=name, line=stroke))
    layout(made, 560)
    made.update_xaxes(title_text="updates")
    made.update_yaxes(title_text="loss, nats per token")
    return made


def _parameter_table(report: dict[str, Any]) -> Table:
    table = Table(box=None, header_style="bold")
    for title in (f"{report['law']} law", "value", "95 % interval"):
        table.add_column(title, justify="left" if "law" in title else "right")
    for name, p in report["parameters"].items():
        low, high = p["ci95"]
        table.add_row(name, f"{p['value']:.4g}", f"{low:.4g} to {high:.4g}")
    return table


def _error_table(report: dict[str, Any]) -> Table:
    table = Table(box=None, header_style="bold")
    for title in ("curve", "", "points", "mae", "r2"):
        table.add_column(title, justify="left" if title in ("curve", "") else "right")
    for role in ("fitted", "tested"):
        for name, e in report[role].items():
            table.add_row(name, role, str(e["points"]), f"{e['mae']:.4f}", f"{e['r2']:.4f}")
    return table


def _needed(values: list[str], flag: str) -> list[str]:
    given = [v for v in values if v]
    if not given:
        raise ConfigError(f"--{flag}: required (see --help)")
    return given
