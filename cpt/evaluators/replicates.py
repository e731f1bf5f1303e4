"""Runs that differ in their seed only, taken together: what a method does, apart from what a seed did.

A group is one config and several seeds. Two groups are compared with a t interval over their seeds, paired where both
have the same ones. Groups of one run each have no such interval; they are compared on their common evaluation documents
instead, which says less (`over` tells which it was).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cpt.evaluators.naming import distinguishing_names, flatten
from cpt.evaluators.noise import Difference, difference, mean_interval, paired_difference
from cpt.evaluators.objective import objective
from cpt.evaluators.rows import RunFiles
from cpt.evaluators.summary import after_switch, summary_of
from cpt.identity import EXECUTION_FIELDS

QUANTITIES = {"forgetting": "forgetting", "final": "final", "depth": "gap.depth", "area": "gap.area"}
"""What is compared of each evaluation set, and where it stands in its part of a summary."""
SAME_RUN = ("seed", "name", *EXECUTION_FIELDS)


@dataclass(frozen=True)
class Group:
    """Runs of one config.

    Attributes:
      name: what distinguishes it from the other groups, e.g. `replay.share=0.25`.
      members: its runs by seed, each with its `summary`.
      names: what its runs are called, by seed.
      again: runs left out because they have a seed that a member has: trained again, they are no new evidence.
    """

    name: str
    members: Mapping[Any, RunFiles]
    names: Mapping[Any, str]
    again: tuple[str, ...] = ()

    @property
    def finished(self) -> dict[Any, RunFiles]:
        """The members that have trained all their tokens: only these are compared."""
        return {seed: run for seed, run in self.members.items() if run.summary.get("finished")}


def replicates(runs: Mapping[str, RunFiles]) -> list[Group]:
    """The runs by what they have in common, in the order in which the groups first appear.

    A run without a config makes a group of its own. Of two runs with one config and one seed the one that got further
    is taken. Runs that go on from others (`init.from_run`) belong together where those others do. Summaries that are
    missing are derived.
    """
    parents: dict[tuple, str] = {}
    flat = {n: _fields(config, parents) if (config := _config(run)) else {"run": n} for n, run in runs.items()}
    keys = {name: tuple(sorted(fields.items())) for name, fields in flat.items()}
    names = distinguishing_names(
        [flat[next(n for n in runs if keys[n] == key)] for key in dict.fromkeys(keys.values())]
    )
    return [
        _group(name, {n: runs[n] for n in runs if keys[n] == key})
        for name, key in zip(names, dict.fromkeys(keys.values()), strict=True)
    ]


def group_values(group: Group, path: str) -> dict[Any, float]:
    """A number of the summaries of a group's finished members, by seed; seeds without it are left out.

    Args:
      path: as in `objective`, e.g. `sets.pile.gap.depth`.

    Raises:
      ConfigError: as `objective`.
    """
    found = {seed: objective(run.summary, path) for seed, run in group.finished.items()}
    return {seed: value for seed, value in found.items() if np.isfinite(value)}


def group_summary(group: Group) -> list[dict[str, Any]]:
    """A row per set and quantity: `group`, `set`, `quantity`, `mean`, `ci95`, `std`, `n`, `seeds`; None = undefined."""
    rows = []
    for name, quantity, path in _asked([group]):
        values = group_values(group, path)
        mean, lo, hi = mean_interval(list(values.values()))
        rows.append(
            {
                "group": group.name,
                "set": name,
                "quantity": quantity,
                "mean": _or_none(mean),
                "ci95": _ci(lo, hi),
                "std": float(np.std([*values.values()], ddof=1)) if len(values) > 1 else None,
                "n": len(values),
                "seeds": list(values),
            }
        )
    return rows


def compare_groups(groups: list[Group]) -> list[dict[str, Any]]:
    """A row per later group, set and quantity: how it differs from the first group, the baseline.

    Returns:
      Rows of `group`, `baseline`, `set`, `quantity`, `difference` (group - baseline), `ci95`, `within_noise`, `paired`,
      `over` (`seeds`, or `documents` where a group has one seed), `n` [group, baseline]. `within_noise` is None, as is
      `ci95`, where nothing says how noisy the difference is. Many rows are compared at once, so one in twenty lies
      outside its interval by chance alone.
    """
    rows = []
    for group in groups[1:]:
        for name, quantity, path in _asked([groups[0], group]):
            ours, base = (group_values(g, path) for g in (group, groups[0]))
            if not ours or not base:
                continue
            d = _difference(group, groups[0], name, quantity, ours, base)
            rows.append(
                {
                    "group": group.name,
                    "baseline": groups[0].name,
                    "set": name,
                    "quantity": quantity,
                    "difference": d.value,
                    "ci95": _ci(d.lo, d.hi),
                    "within_noise": d.within_noise,
                    "paired": d.paired,
                    "over": d.over,
                    "n": [len(ours), len(base)],
                }
            )
    return rows


def run_difference(a: RunFiles, b: RunFiles, set_name: str) -> dict[str, Difference] | None:
    """`a - b` of the final loss and the forgetting of two runs on the same evaluation rows.

    None where the two did not evaluate the same rows of that set at their switch and at their end.
    """
    curves = [after_switch(run, set_name) for run in (a, b)]
    origins = [run.eval_sets.get(set_name) for run in (a, b)]
    rows_of = [{k: (o or {}).get(k) for k in ("rows", "documents")} for o in origins]
    if None in curves or rows_of[0] != rows_of[1] or any(len(c.steps) < 2 for c in curves):
        return None
    ends = [[run.sequences.get(set_name, {}).get(int(c.steps[i])) for i in (0, -1)]
            for run, c in zip((a, b), curves, strict=True)]  # fmt: skip
    rows = [row for pair in ends for row in pair]
    if None in rows or any(row["tokens"] != rows[0]["tokens"] for row in rows):
        return None
    documents = a.documents(set_name)
    documents = documents if documents is not None and len(documents) == len(rows[0]["tokens"]) else None
    nats_a, nats_b = (np.array([row["nats"] for row in pair], float).T for pair in ends)
    return paired_difference(nats_a, nats_b, np.array(rows[0]["tokens"]), documents)


def _difference(
    group: Group, baseline: Group, name: str, quantity: str, ours: dict[Any, float], base: dict[Any, float]
) -> Difference:
    if len(ours) == len(base) == 1 and quantity in ("final", "forgetting"):
        (here,), (there,) = ours, base
        if found := run_difference(group.members[here], baseline.members[there], name):
            return found[quantity]
    paired = set(ours) == set(base)
    return difference([*ours.values()], [base[s] for s in ours] if paired else [*base.values()], paired)


def _asked(groups: list[Group]) -> Iterable[tuple[str, str, str]]:
    """(set, quantity, path) of every set that all finished runs of the groups know."""
    runs = [run for g in groups for run in g.finished.values()]
    if runs:
        for name in runs[0].summary["sets"]:
            if all(name in run.summary["sets"] for run in runs):
                yield from ((name, quantity, f"sets.{name}.{where}") for quantity, where in QUANTITIES.items())


def _group(name: str, runs: dict[str, RunFiles]) -> Group:
    # Sorted is stable: of equally far runs of one seed the first stays.
    furthest = sorted(runs, key=lambda n: -runs[n].last_step)
    names: dict[Any, str] = {}
    for n in furthest:
        names.setdefault(_seed(_config(runs[n])), n)
    names = {seed: names[seed] for seed in sorted(names, key=lambda s: (not isinstance(s, int), s))}
    members = {seed: runs[n] if runs[n].summary else replace(runs[n], summary=summary_of(runs[n]))
               for seed, n in names.items()}  # fmt: skip
    return Group(name, members, names, tuple(n for n in runs if n not in names.values()))


def _seed(config: dict[str, Any]) -> Any:
    """Of a run; one that goes on from another is as random as both."""
    own, theirs = config.get("seed", 0), _parent(str((config.get("init") or {}).get("from_run")))
    return f"{_seed(theirs)}>{own}" if theirs else own


def _config(run: RunFiles) -> dict[str, Any]:
    return run.config or run.plan.get("spec") or {}


def _fields(config: dict[str, Any], parents: dict[tuple, str]) -> dict[str, str]:
    """What makes a run the run it is, apart from its seed: dotted path -> text.

    Args:
      parents: filled with what is known of the runs that others go on from; equal ones get one name.
    """
    fields = flatten(config)
    if theirs := _parent(fields.get("init.from_run", "None")):
        key = tuple(sorted(_fields(theirs, parents).items()))
        name = Path(fields["init.from_run"]).name
        taken = [v for k, v in parents.items() if k != key]
        fields["init.from_run"] = parents.setdefault(key, name if name not in taken else f"{name} #{len(parents) + 1}")
    return {k: v for k, v in fields.items() if not any(k == s or k.startswith(f"{s}.") for s in SAME_RUN)}


def _parent(path: str) -> dict[str, Any]:
    """The config of the run in the folder `path`; empty where there is none any more."""
    try:
        return json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _ci(lo: float, hi: float) -> list[float] | None:
    return None if np.isnan(lo) or np.isnan(hi) else [float(lo), float(hi)]


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value
