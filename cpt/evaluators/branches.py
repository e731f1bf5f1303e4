"""Annealed branches of a run, read back: what its checkpoints are worth once they are cooled down."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cpt.evaluators.rows import Curve, RunFiles, is_run, read_run


@dataclass(frozen=True)
class Branch:
    """A branch.

    Attributes:
      at: step where it leaves the trunk.
      run: its own files; its rows up to `at` are the trunk's.
    """

    at: int
    run: RunFiles

    def curves(self) -> dict[str, Curve]:
        """Each set's curve from the branch on."""
        return {name: curve.since(self.at) for name, curve in self.run.curves.items()}


def branches_of(run: RunFiles) -> list[Branch]:
    """The branches of a run in order of their steps; those that have not begun are left out."""
    found = []
    for folder in (run.path / "branches").glob("step-*"):
        number = folder.name.removeprefix("step-")
        if number.isdigit() and is_run(folder):
            found.append(Branch(int(number), replace(read_run(folder), per_byte=run.per_byte)))
    return sorted(found, key=lambda b: b.at)


def branch_rows(run: RunFiles) -> list[dict]:
    """Per branch and set the loss on the trunk where it begins, and after its cooldown: `summary.json["branches"]`."""
    rows = []
    for branch in branches_of(run):
        for name, curve in branch.curves().items():
            on_trunk = run.curves.get(name)
            here = on_trunk.loss[on_trunk.steps == branch.at] if on_trunk is not None else []
            if len(curve.steps) and curve.steps[-1] > branch.at:
                rows.append(
                    {
                        "step": branch.at,
                        "set": name,
                        "trunk": float(here[0]) if len(here) else None,
                        "annealed": float(curve.loss[-1]),
                        "cooldown_tokens": int(curve.tokens[-1] - curve.tokens[0]),
                        "finished": curve.steps[-1] >= (branch.run.plan.get("total_steps") or 0),
                    }
                )
    return rows
