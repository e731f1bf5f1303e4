"""One run in numbers: per set what changed since the switch, with intervals, and the phase x set matrix.

Every set is compared with itself at its *reference step*. A set learned before the last phase is referred to the end of
the phase that learned it: everything after is forgetting. A set learned in the last phase, or in none, is referred to
the start of the last phase: what the last phase did to it. `forgetting` is the signed change since then; a learned
set's is negative.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from cpt.evaluators import formatting as fmt
from cpt.evaluators.bootstrap import gap_intervals, resampled_losses
from cpt.evaluators.forgetting import forgetting, forgetting_best, windowed_forgetting, windowed_plasticity, worst_case
from cpt.evaluators.rows import Curve, RunFiles, plain, read_run, write_atomic
from cpt.evaluators.stability_gap import stability_gap
from cpt.evaluators.transfer import bwt, fwt, transfer_matrix

WINDOW = 10
"""Evaluations per window of WF and WP; De Lange et al. 2023 report 10 and 100."""


def summarise(run_dir: Path) -> dict[str, Any]:
    """The content of `summary.json` (JSON-able; None where a number is undefined).

    Keys: `name`, `finished`, `steps`, `tokens`, `sets`, `matrix` {phases, sets, loss}, `bwt`, `fwt`, `worst_case_loss`,
    `ledger`. A set has `learned_in, reference_step, reference_tokens, initial, final, forgetting, forgetting_ci95,
    forgetting_best, perplexity_change, bits_per_byte {initial, final}, gap`; its gap has the fields of `StabilityGap`,
    `depth_ci95`, `area_ci95`, `transient_ci95`, `windowed_forgetting`, `windowed_plasticity` and `window`.

    Raises:
      RunError: `run_dir` is no run directory or a file of it is damaged.
    """
    return summary_of(read_run(Path(run_dir)))


def summary_of(run: RunFiles) -> dict[str, Any]:
    """`summarise` for files already read."""
    matrix = transfer_matrix(run)
    indices = [run.learned_in(name) for name in run.set_names]
    learned_row = [None if i is None else i + 1 for i in indices]
    sets = {name: _set_summary(run, name) for name in run.set_names}
    total = run.plan.get("total_steps")
    return plain(
        {
            "name": run.name,
            "finished": total is not None and run.last_step >= total,
            "steps": run.last_step,
            "tokens": run.last_tokens,
            "sets": sets,
            "matrix": {
                "phases": ["before training", *(p["name"] for p in run.phases)],
                "sets": run.set_names,
                "loss": matrix,
            },
            "bwt": bwt(matrix, learned_row),
            "fwt": fwt(matrix, learned_row),
            "worst_case_loss": _worst_case_loss(run, sets),
            "ledger": run.ledger.get("totals") or {},
        }
    )


def write_summary(run_dir: Path) -> dict[str, Any]:
    """Write `summary.json` into the run directory (old or new file, never half of one) and return its content."""
    summary = summarise(run_dir)
    write_atomic(Path(run_dir) / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return summary


def reference_step(run: RunFiles, set_name: str) -> int:
    """The step whose loss is L0 of this set: the end of the phase that learned it, or the start of the last phase."""
    if not run.phases:
        return 0
    last = len(run.phases) - 1
    learned = run.learned_in(set_name)
    return run.phases[last if learned is None or learned == last else learned + 1]["first_step"]


def after_switch(run: RunFiles, set_name: str) -> Curve | None:
    """The set's curve from its reference step on; None while that step lies in the future.

    Where the exact step was not evaluated, the last evaluation before it stands in.
    """
    curve, step = run.curves.get(set_name), reference_step(run, set_name)
    if curve is None or curve.steps[-1] < step or curve.steps[0] > step:
        return None
    return curve.since(int(curve.until(step).steps[-1]))


def upstream(run_summary: dict[str, Any]) -> list[str]:
    """Sets learned before the last phase: those that can be forgotten."""
    last = run_summary["matrix"]["phases"][-1]
    return [n for n, s in run_summary["sets"].items() if s["learned_in"] not in (None, last)]


def downstream(run_summary: dict[str, Any]) -> list[str]:
    """Sets learned in the last phase."""
    last = run_summary["matrix"]["phases"][-1]
    return [n for n, s in run_summary["sets"].items() if s["learned_in"] == last]


def summary_table(summary: dict[str, Any]) -> Table:
    """The closing table of a run: before, after, change ± half of its 95 % interval, stability gap."""
    table = Table(box=None, pad_edge=False, header_style="", padding=(0, 2, 0, 0))
    table.add_column("set", no_wrap=True)
    for head in ("before", "after", "change", "stability\ngap: depth", "peak at", "recovered", "area"):
        table.add_column(head, justify="right", no_wrap=True)
    for name, s in summary["sets"].items():
        cells = [fmt.nats(s["initial"]), fmt.nats(s["final"]), fmt.plus_minus(s["forgetting"], s["forgetting_ci95"])]
        table.add_row(Text(name), *cells, *gap_cells(s["gap"]))
    return table


def gap_cells(gap: dict[str, Any] | None) -> list[str]:
    """depth, peak at, recovered, area in words; dashes where the loss never rose above its reference."""
    if not gap or not gap["depth"]:
        return [fmt.DASH] * 4
    back = "not yet" if gap["recovery_tokens"] is None else f"{fmt.tokens(gap['recovery_tokens'])} tok"
    return [fmt.nats(gap["depth"]), f"{fmt.tokens(gap['peak_tokens'])} tok", back, f"{fmt.tokens(gap['area'])} nat·tok"]


def _set_summary(run: RunFiles, name: str) -> dict[str, Any]:
    curve, whole = after_switch(run, name), run.curves.get(name)
    learned = run.learned_in(name)
    out: dict[str, Any] = {
        "learned_in": None if learned is None else run.phases[learned]["name"],
        "reference_step": None if curve is None else curve.steps[0],
        "reference_tokens": None if curve is None else curve.tokens[0],
        "initial": None if curve is None else curve.loss[0],
        "final": None if whole is None else whole.loss[-1],
        "forgetting": None,
        "forgetting_ci95": None,
        "forgetting_best": None if whole is None else forgetting_best(whole.loss),
        "perplexity_change": None,
        "bits_per_byte": {
            "initial": None if curve is None else curve.bits_per_byte[0],
            "final": None if whole is None else whole.bits_per_byte[-1],
        },
        "gap": None,
    }
    if curve is None or len(curve.steps) < 2:  # nothing has happened since the switch
        return out
    ci = _intervals(run, name, curve)
    out["forgetting"] = forgetting(curve.loss[0], curve.loss[-1])
    out["forgetting_ci95"] = ci.get("forgetting")
    out["perplexity_change"] = math.expm1(out["forgetting"]) if out["forgetting"] < 700 else None
    out["gap"] = {
        **asdict(stability_gap(curve.steps, curve.tokens, curve.loss)),
        **{f"{key}_ci95": ci.get(key) for key in ("depth", "area", "transient")},
        "windowed_forgetting": windowed_forgetting(curve.loss, WINDOW),
        "windowed_plasticity": windowed_plasticity(curve.loss, WINDOW),
        "window": WINDOW,
    }
    return out


def _intervals(run: RunFiles, name: str, curve: Curve) -> dict[str, list[float]]:
    """Bootstrap intervals, or none where the per-sequence rows do not cover the curve with one population."""
    rows = run.sequences.get(name, {})
    if any(int(s) not in rows for s in curve.steps):
        return {}
    columns = [rows[int(s)] for s in curve.steps]
    sizes = {len(c["nats"]) for c in columns} | {len(c["tokens"]) for c in columns}
    if len(sizes) != 1 or min(sizes) < 2:
        return {}
    nats_SxT, tokens_SxT = (np.array([c[key] for c in columns], float).T for key in ("nats", "tokens"))
    return gap_intervals(curve.tokens, resampled_losses(nats_SxT, tokens_SxT))


def _worst_case_loss(run: RunFiles, sets: dict[str, Any]) -> float | None:
    last = len(run.phases) - 1
    current = [s["final"] for n, s in sets.items() if run.learned_in(n) == last]
    old = [s["gap"] and s["gap"]["worst"] for n, s in sets.items() if run.learned_in(n) not in (None, last)]
    if not current or not old or None in current or None in old:
        return None
    return worst_case(float(np.mean(current)), old)
