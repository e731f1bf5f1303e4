"""What a sweep adds to its runs: each is trained by `cpt.main` alone, and again as a trial of a sweep."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cpt.plan import RunPlan

STEPS = 10  # updates of each phase
SWEEP = """from cpt import sweeps as s


def get_sweep():
    return s.sweep(name="bench", space=s.seeds(*range({runs})), metric="sets.{set}.final")
"""


def bench_sweep(plan: RunPlan, arguments: list[str], runs: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds of runs that differ in their seed, alone and as a sweep of one worker, and of the finished sweep again.

    Programs are compiled, and stores written, before anything is timed.

    Args:
      plan: of the recipe; its phases are cut to `STEPS` updates.
      arguments: of the command: the recipe and its overrides.
      runs: how many.
    """
    arguments = [*arguments, *(shortening(plan))]
    name = next(iter(plan.spec.evaluation.sets))
    with tempfile.TemporaryDirectory() as folder:
        env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
        env["XDG_CACHE_HOME"] = f"{folder}/cache"

        def seconds(*command: str) -> float:
            begun = time.monotonic()
            done = subprocess.run([sys.executable, "-m", *command], env=env, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr[-500:]}")
            return time.monotonic() - begun

        seconds("cpt.main", *arguments, f"--config.seed={runs}", f"--workdir={folder}/before")
        alone = []
        for seed in range(runs):
            alone.append(seconds("cpt.main", *arguments, f"--config.seed={seed}", f"--workdir={folder}/{seed}"))
            say(f"run {seed + 1}/{runs} alone: {alone[-1]:.2f} s")
        file = Path(folder) / "sweep.py"
        file.write_text(SWEEP.format(runs=runs, set=name))
        sweep = "cpt.sweep", *arguments, f"--sweep={file}", f"--out={folder}/sweep"
        first, again = seconds(*sweep), seconds(*sweep)
    return {
        "config": plan.name,
        "runs": runs,
        "alone_s": alone,
        "sweep_s": first,
        "again_s": again,
        "each_s": (first - sum(alone)) / runs,
        "ratio": first / float(np.sum(alone)),
    }


def shortening(plan: RunPlan) -> list[str]:
    """Overrides that leave each phase of a plan `STEPS` updates."""
    out = []
    for phase in plan.phases:
        field = f"--config.phases.{phase.name}"
        length = f"tokens={STEPS * phase.tokens_per_step}" if phase.spec.tokens is not None else f"steps={STEPS}"
        out.append(f"{field}.{length}")
    return out
