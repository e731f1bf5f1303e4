"""One run in numbers: per set what changed since the switch, with intervals, and the phase x set matrix.

Every set is compared with itself at its *reference step*. A set learned before the last phase is referred to the end of
the phase that learned it: everything after is forgetting. A set learned in the last phase, or in none, is referred to
the start of the last phase: what the last phase did to it. `forgetting` is the signed change since then; a learned
set's is negative. A set that no phase learns but that is tagged `upstream` is one that the starting model knew.
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
from cpt.evaluators.branches import branch_rows
from cpt.evaluators.domains import document_sums, domain_losses, tag_means
from cpt.evaluators.forgetting import forgetting, forgetting_best, windowed_forgetting, windowed_plasticity, worst_case
from cpt.evaluators.noise import kendall_tau, step_to_step_noise
from cpt.evaluators.potential import loss_potential
from cpt.evaluators.rows import Curve, RunFiles, plain, read_run, write_atomic
from cpt.evaluators.stability_gap import stability_gap
from cpt.evaluators.transfer import bwt, column_of, fwt, transfer_matrix

WINDOW = 10
"""Evaluations per window of WF and WP; De Lange et al. 2023 report 10 and 100."""


def summarise(run_dir: Path) -> dict[str, Any]:
    """The content of `summary.json` (JSON-able; None where a number is undefined).

    Keys: `name`, `finished`, `steps`, `tokens`, `sets`, `matrix` {phases, sets, loss}, `bwt`, `fwt`, `worst_case_loss`,
    `phases` (see `loss_potential`), `tags` (see `tag_means`), `probes` {`probe.value`: first, last}, `eval_share` (of
    the time in the loop, what evaluations took), `seconds` (of all launches, by bucket: see
    `cpt.training.accounting`), `ledger` (totals, `exact`, and per phase the share of replay) and
    `branches` (see `branch_rows`).

    A set has `learned_in`, `upstream`, `reference_step`, `reference_tokens`, `initial`, `final`, `forgetting`,
    `forgetting_ci95`, `forgetting_best` (over the ends of phases), `over_best` (over all evaluations),
    `perplexity_change`, `bits_per_byte` {initial, final}, `domains` and `macro` (see `domain_losses`),
    `noise` since the reference step {`kendall_tau`, `step_to_step`} (see `cpt.evaluators.noise`), and `gap`: the
    fields of `StabilityGap`, `depth_ci95`, `area_ci95`, `transient_ci95`, `windowed_forgetting`,
    `windowed_plasticity` and `window`.

    Raises:
      RunError: `run_dir` is no run directory or a file of it is damaged.
    """
    return summary_of(read_run(Path(run_dir)))


def summary_of(run: RunFiles) -> dict[str, Any]:
    """`summarise` for files already read."""
    matrix = transfer_matrix(run)
    indices = [run.learned_in(name) for name in run.set_names]
    # What the starting model knew was learned before the first phase: row 0.
    learned_row = [
        i + 1 if i is not None else 0 if run.is_upstream(name) else None
        for name, i in zip(run.set_names, indices, strict=True)
    ]
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
            "phases": loss_potential(run),
            "tags": tag_means(run),
            "probes": {n: _first_and_last(values_T) for n, (_, _, values_T) in run.probe_curves.items()},
            "eval_share": _eval_share(run.environment),
            "seconds": _seconds(run.environment),
            "ledger": _ledger(run),
            "branches": branch_rows(run),
        }
    )


def write_summary(run_dir: Path) -> dict[str, Any]:
    """Write `summary.json` into the run directory (old or new file, never half of one) and return its content."""
    summary = summarise(run_dir)
    write_atomic(Path(run_dir) / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return summary


def reference_step(run: RunFiles, set_name: str) -> int:
    """The step whose loss is L0 of this set: the end of the phase that learned it, or the start of the last phase."""
    if not run.phases:  # a row of models that are no run of ours: the first of them
        curve = run.curves.get(set_name)
        return 0 if curve is None else int(curve.steps[0])
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
    """Sets learned before the last phase, or known to the starting model: those that can be forgotten."""
    return [n for n, s in run_summary["sets"].items() if s["upstream"]]


def downstream(run_summary: dict[str, Any]) -> list[str]:
    """Sets learned in the last phase."""
    last = run_summary["matrix"]["phases"][-1]
    return [n for n, s in run_summary["sets"].items() if s["learned_in"] == last]


def summary_table(summary: dict[str, Any]) -> Table:
    """The closing table of a run: before, after, change ± half of its 95 % interval, stability gap."""
    table = Table(box=None, pad_edge=False, header_style="", padding=(0, 2, 0, 0))
    table.add_column("set", no_wrap=True)
    for head in ("before", "after", "change", "stability gap: depth", "peak at", "recovered", "area"):
        table.add_column(head, justify="right", no_wrap=True)
    for name, s in summary["sets"].items():
        cells = [fmt.nats(s["initial"]), fmt.nats(s["final"]), fmt.plus_minus(s["forgetting"], s["forgetting_ci95"])]
        table.add_row(Text(name), *cells, *gap_cells(s["gap"]))
    return table


def gap_cells(gap: dict[str, Any] | None, unit: str = "nat·tok") -> list[str]:
    """depth, peak at, recovered, area in words; dashes where the loss never rose above its reference."""
    if not gap or not gap["depth"]:
        return [fmt.DASH] * 4
    back = "not yet" if gap["recovery_tokens"] is None else f"{fmt.tokens(gap['recovery_tokens'])} tok"
    return [fmt.nats(gap["depth"]), f"{fmt.tokens(gap['peak_tokens'])} tok", back, f"{fmt.tokens(gap['area'])} {unit}"]


def only_at_edges(run: RunFiles, set_name: str) -> bool:
    """Whether a set is evaluated at the edges of phases only, where no excursion in between can be seen."""
    return run.about(set_name).get("at") == "edges"


def _set_summary(run: RunFiles, name: str) -> dict[str, Any]:
    curve, whole = after_switch(run, name), run.curves.get(name)
    learned = run.learned_in(name)
    out: dict[str, Any] = {
        "learned_in": None if learned is None else run.phases[learned]["name"],
        "upstream": run.is_upstream(name),
        "reference_step": None if curve is None else curve.steps[0],
        "reference_tokens": None if curve is None else curve.tokens[0],
        "initial": None if curve is None else curve.loss[0],
        "final": None if whole is None else whole.loss[-1],
        "forgetting": None,
        "forgetting_ci95": None,
        "forgetting_best": _forgetting_best(run, name),
        "over_best": None if whole is None else forgetting_best(whole.loss),
        "perplexity_change": None,
        "bits_per_byte": {
            "initial": None if curve is None else curve.bits_per_byte[0],
            "final": None if whole is None else whole.bits_per_byte[-1],
        },
        "noise": {
            "kendall_tau": None if curve is None else kendall_tau(curve.loss),
            "step_to_step": None if curve is None else step_to_step_noise(curve.loss),
        },
        "gap": None,
        **domain_losses(run, name, None if curve is None else int(curve.steps[0])),
    }
    if curve is None or len(curve.steps) < 2:  # nothing has happened since the switch
        return out
    ci = _intervals(run, name, curve)
    out["forgetting"] = forgetting(curve.loss[0], curve.loss[-1])
    out["forgetting_ci95"] = ci.get("forgetting")
    out["perplexity_change"] = math.expm1(out["forgetting"]) if out["forgetting"] < 700 else None
    if only_at_edges(run, name):
        return out
    out["gap"] = {
        **asdict(stability_gap(curve.steps, curve.tokens, curve.loss)),
        **{f"{key}_ci95": ci.get(key) for key in ("depth", "area", "transient")},
        "windowed_forgetting": windowed_forgetting(curve.loss, WINDOW),
        "windowed_plasticity": windowed_plasticity(curve.loss, WINDOW),
        "window": WINDOW,
    }
    return out


def _forgetting_best(run: RunFiles, name: str) -> float | None:
    """Over the set's column of the matrix, as far as the phases have ended."""
    ends = [loss for loss in column_of(run, name) if loss is not None]
    return forgetting_best(np.array(ends)) if len(ends) > 1 else None


def _intervals(run: RunFiles, name: str, curve: Curve) -> dict[str, list[float]]:
    """Bootstrap intervals, or none where the per-sequence rows do not cover the curve with one population."""
    sums = document_sums(run, name, curve.steps.tolist())
    if sums is None or len(sums[0]) < 2:
        return {}
    nats_DxT, tokens_DxT = sums
    found = gap_intervals(curve.tokens, resampled_losses(nats_DxT, tokens_DxT))
    return {key: ci for key, ci in found.items() if np.isfinite(ci).all()}


def _first_and_last(values_T: np.ndarray) -> dict[str, float | None]:
    finite = values_T[np.isfinite(values_T)]
    return {"first": finite[0], "last": finite[-1]} if len(finite) else {"first": None, "last": None}


def _seconds(environment: dict[str, Any]) -> dict[str, float]:
    return {k.removeprefix("seconds/"): v for k, v in environment.items() if k.startswith("seconds/")}


def _eval_share(environment: dict[str, Any]) -> float | None:
    seconds = _seconds(environment)
    updating = sum(seconds.get(k, 0.0) for k in ("step", "data", "log"))
    return seconds["eval"] / (seconds["eval"] + updating) if "eval" in seconds and updating else None


def _ledger(run: RunFiles) -> dict[str, Any]:
    """Totals of the run, whether every count equals the plan, and for each phase how much of it was replay."""
    if not run.ledger:
        return {}
    phases = []
    for phase in run.phases:
        own = [e for e in run.ledger.get("phases") or [] if e["phase"] == phase["name"]]
        old = [e for e in own if e["role"] == "replay"]
        tokens, replayed = (sum(e["tokens_consumed"] for e in part) for part in (own, old))
        phases.append(
            {
                "phase": phase["name"],
                "tokens": tokens,
                "replay_tokens": replayed,
                "replay_share": replayed / tokens if tokens else 0.0,
                "unique_replay_tokens": sum(e["unique_tokens"] for e in old),
                "accounting": (phase.get("replay") or {}).get("accounting"),
            }
        )
    return {**(run.ledger.get("totals") or {}), "exact": run.ledger.get("exact"), "phases": phases}


def _worst_case_loss(run: RunFiles, sets: dict[str, Any]) -> float | None:
    last = len(run.phases) - 1
    current = [s["final"] for n, s in sets.items() if run.learned_in(n) == last]
    seen = {n: s for n, s in sets.items() if s["upstream"] and not only_at_edges(run, n)}
    old = [s["gap"] and s["gap"]["worst"] for s in seen.values()]
    if not current or not old or None in current or None in old:
        return None
    return worst_case(float(np.mean(current)), old)
