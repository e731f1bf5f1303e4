"""`python -m cpt.sweep` with `stand_in.py` for a trainer; the environment's PACE is its time per step."""

import os
import sys
from pathlib import Path

from cpt import sweep
from cpt.sweeps import crew, recipe, worker

HERE = Path(__file__).resolve()


def command(self):
    facts = [f"--hash={self.plan.hash}", f"--total={self.plan.total_steps}", f"--pace={os.environ['PACE']}"]
    flags = [f for f in self.flags if not f.startswith("--config=")]
    return [sys.executable, "-S", str(HERE.parent / "stand_in.py"), *flags, *facts, f"--workdir={self.directory}"]


recipe.Candidate.command = property(command)
crew.COMMAND = (sys.executable, str(HERE))
worker.POLL_S, worker.IDLE_S = 0.05, 0.2

if __name__ == "__main__":
    sys.exit(sweep.run())
