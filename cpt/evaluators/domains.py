"""Losses of the parts of a set, its domains, and of sets together, those of a tag: as one text and as equals.

A micro mean divides summed nats by summed tokens: large parts count for more. A macro mean is the mean of the parts'
losses: each counts once. A mixture that trades a rare domain for a common one moves them apart.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cpt.evaluators.bootstrap import by_document, interval, resampled_losses
from cpt.evaluators.rows import RunFiles


def document_sums(
    run: RunFiles, set_name: str, steps: list[int], rows_S: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray] | None:
    """(nats_DxT, tokens_DxT): sums of each evaluation document at `steps`; None where they are not one population.

    Args:
      rows_S: which of the set's sequences count, bool; all for None.
    """
    rows = run.sequences.get(set_name, {})
    if not steps or any(s not in rows for s in steps):
        return None
    columns = [rows[s] for s in steps]
    sizes = {len(c[key]) for c in columns for key in ("nats", "tokens")}
    if len(sizes) != 1 or not min(sizes):
        return None
    (size,) = sizes
    keep_S = np.ones(size, bool) if rows_S is None else rows_S
    documents = run.documents(set_name)
    documents_S = np.array(documents)[keep_S].tolist() if documents is not None and len(documents) == size else None
    nats, tokens = (
        by_document(np.array([c[key] for c in columns], float).T[keep_S], documents_S) for key in ("nats", "tokens")
    )
    return nats, tokens


def domain_losses(run: RunFiles, set_name: str, reference: int | None) -> dict[str, Any]:
    """`domains`, by name `{initial, final, forgetting, forgetting_ci95, sequences}`, and their mean as `macro`.

    A sequence counts for the domain of the document that it begins in.

    Args:
      reference: the step that changes are relative to; None while it lies in the future.
    """
    nothing = {"domains": None, "macro": None}
    domains, evaluated = run.domains(set_name), sorted(run.sequences.get(set_name, {}))
    if domains is None or not evaluated:
        return nothing
    out = {}
    for domain in dict.fromkeys(domains):
        mine_S = np.array([d == domain for d in domains])
        steps = [evaluated[-1]] if reference is None else sorted({reference, evaluated[-1]})
        sums = document_sums(run, set_name, steps, mine_S)
        if sums is None:
            return nothing
        nats_DxT, tokens_DxT = sums
        loss_T = nats_DxT.sum(axis=0) / tokens_DxT.sum(axis=0)
        changed = len(steps) == 2
        losses_RxT = resampled_losses(nats_DxT, tokens_DxT) if changed and len(nats_DxT) > 1 else None
        out[domain or "(none)"] = {
            "initial": None if reference is None else loss_T[0],
            "final": loss_T[-1],
            "forgetting": loss_T[-1] - loss_T[0] if changed else None,
            "forgetting_ci95": None if losses_RxT is None else interval(losses_RxT[:, -1] - losses_RxT[:, 0]),
            "sequences": int(mine_S.sum()),
        }
    return {"domains": out, "macro": {key: _mean([d[key] for d in out.values()]) for key in ("initial", "final")}}


def tag_means(run: RunFiles) -> dict[str, Any]:
    """By tag `{sets, micro, macro}`, each mean with `before` and `after` the last phase, nats per token.

    `after` is the newest step at which all sets of the tag were evaluated; None where there is no such step.
    """
    rows = {(r["set"], r["step"]): r for r in run.evals}
    tagged: dict[str, list[str]] = {}
    for name in run.set_names:
        for tag in run.about(name).get("tags") or ():
            tagged.setdefault(tag, []).append(name)
    start = run.phases[-1]["first_step"] if run.phases else 0
    out = {}
    for tag, names in tagged.items():
        common = set.intersection(*({s for n, s in rows if n == name} for name in names))
        at = {"before": start if start in common else None, "after": max(common, default=None)}
        found = {k: None if s is None else [rows[n, s] for n in names] for k, s in at.items()}
        out[tag] = {"sets": names, "micro": _each(found, _micro), "macro": _each(found, _macro)}
    return out


def _each(found: dict[str, Any], mean: Any) -> dict[str, float | None]:
    return {k: None if rows is None else mean(rows) for k, rows in found.items()}


def _micro(rows: list[dict[str, Any]]) -> float | None:
    if any(r["nats"] is None for r in rows):
        return None
    return sum(r["nats"] for r in rows) / sum(r["tokens_scored"] for r in rows)


def _macro(rows: list[dict[str, Any]]) -> float | None:
    return _mean([r["loss"] for r in rows])


def _mean(values: list[float | None]) -> float | None:
    return None if not values or any(v is None for v in values) else float(np.mean(values))
