"""Annealed branches: children of a finished run, each cooled down from one of its checkpoints.

A checkpoint from the constant part of a schedule looks worse than it is, because nothing was annealed. So that infinite
and WSD trunks can be compared with decayed runs, each branch goes on from a full checkpoint of the trunk with the data
where they stood, and ends in a cooldown. The trunk itself is not touched.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from cpt.config import InitSpec
from cpt.plan import RunPlan, resolve
from cpt.schedules.trunk import AnnealSpec, BranchSpec
from cpt.training import preservation
from cpt.training.preservation import checkpoints_of, url_of

FOLDER = "branches"


def branch_plans(plan: RunPlan, workdir: Path) -> dict[Path, RunPlan]:
    """The plan of every branch by its run directory, `<workdir>/branches/step-<n>`."""
    anneal, out = plan.spec.anneal, {}
    for at in plan.branch_points:
        branch = BranchSpec(at, anneal.decay, anneal.shape, anneal.floor)
        init = InitSpec(from_run=url_of(workdir) or str(workdir), step=at, what="all")
        spec = dataclasses.replace(plan.spec, branch=branch, anneal=AnnealSpec(), init=init)
        out[workdir / FOLDER / f"step-{at}"] = resolve(spec)
    return out


def finished(plan: RunPlan, workdir: Path) -> bool:
    """Whether the run in `workdir` and all of its branches have their last checkpoint."""
    anchors = {saved.step for saved in preservation.finished(checkpoints_of(workdir), ("anchor",))}
    if plan.total_steps not in anchors:
        return False
    return all(finished(child, folder) for folder, child in branch_plans(plan, workdir).items())
