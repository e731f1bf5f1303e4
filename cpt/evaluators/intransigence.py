"""Intransigence: what a run failed to learn, beside a reference that was trained on everything at once.

`I_k = L(k after its own phase) - L*(k)` with `L*` the loss of a reference run, such as one trained on the union of all
phases' data (Chaudhry et al. 2018, with the sign of losses): higher = worse, negative = the run learned the set better
than the reference did. Beside it the distance to the reference at the end of both, which forgetting is part of.
"""

from __future__ import annotations

from typing import Any

from cpt.evaluators.replicates import run_difference
from cpt.evaluators.rows import RunFiles


def intransigence(run: RunFiles, reference: RunFiles) -> list[dict[str, Any]]:
    """A row per set of `run`: `set`, `intransigence`, `distance`, `distance_ci95`, `why` it is missing.

    `intransigence` is None for a set that no phase learns or whose phase has not ended; both are None where the
    reference did not evaluate the set. The interval is over evaluation documents, paired; None where the two runs did
    not evaluate the same rows.
    """
    rows = []
    for name, curve in run.curves.items():
        theirs, row = reference.curves.get(name), {"set": name}
        if theirs is None:
            known = ", ".join(reference.curves) or "none"
            rows.append(row | _nothing(f"{reference.name} did not evaluate '{name}' (it has: {known})"))
            continue
        best, learned = float(theirs.loss[-1]), run.learned_in(name)
        at = None if learned is None else run.phases[learned]["first_step"] + run.phases[learned]["steps"]
        after = curve.loss[curve.steps == at] if at is not None else []
        told = (run_difference(run, reference, name) or {}).get("final")
        rows.append(
            row
            | {
                "intransigence": float(after[0]) - best if len(after) else None,
                "distance": float(curve.loss[-1]) - best,
                "distance_ci95": None if told is None or told.within_noise is None else [told.lo, told.hi],
                "why": "" if len(after) else "no phase that has ended learns it",
            }
        )
    return rows


def _nothing(why: str) -> dict[str, Any]:
    return {"intransigence": None, "distance": None, "distance_ci95": None, "why": why}
