"""Runs that are killed with SIGKILL at any moment, in their saves too, end with the digits of one that never was.

`CPT_KILLS=30 pytest tests/training/test_kills.py` does it thirty times; a few by default. The file is also the program
that is killed: it imports everything once and forks a process for each life, which then starts JAX for itself.
"""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

KILLS = int(os.environ.get("CPT_KILLS", "4"))
STEPS_PER_KILL = 12
TIMINGS = ("tokens_per_second", "data_wait_s", "step_s")
FILES = ("metrics.jsonl", "eval.jsonl", "eval_sequences.jsonl")


def live(arguments: list[str], log: Path) -> int:
    """Fork a process that is `python -m cpt.main`; returns its id."""
    from cpt import cli, main

    if child := os.fork():
        return child
    with log.open("ab") as out:  # nothing of the parent's is closed or flushed by a child
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        sys.argv = ["cpt.main", *arguments]
        os._exit(cli.call(main.main, sys.argv))


def rows_of(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def saving(run: Path) -> bool:
    """Whether a checkpoint is half-written."""
    return any(".orbax-checkpoint-tmp" in p.name for p in (run / "checkpoints").glob("*/*"))


def disturb(root: Path, kills: int, seed: int) -> dict:
    """Train to the end undisturbed, and with `kills` kills; what happened."""
    import jax  # noqa: F401  imported once for all lives, started by none of them before it forks

    import cpt.training.run  # noqa: F401

    recipe = [f"--config={Path(__file__).parents[1] / 'toy.py'}:{root}", *config(kills)]
    lives = {"uncut": root / "uncut.log", "cut": root / "cut.log"}
    assert os.waitpid(live([*recipe, f"--workdir={root / 'uncut'}"], lives["uncut"]), 0)[1] == 0
    rng, run, in_saves = random.Random(seed), root / "cut", 0
    for kill in range(kills):
        child, begun = live([*recipe, f"--workdir={run}"], lives["cut"]), time.monotonic()
        floor, more = rows_of(run), rng.randint(1, 2 * (STEPS_PER_KILL - 4))
        # Rows beyond the checkpoint are cut off first, so that growth shows when it trains again.
        while time.monotonic() - begun < 60 and (now := rows_of(run)) < floor + more:
            floor = min(floor, now)
            time.sleep(0.002)
        while kill % 2 and time.monotonic() - begun < 60 and not saving(run):
            time.sleep(0.001)
        time.sleep(rng.random() * 0.03)
        in_saves += saving(run)
        os.kill(child, 9)
        assert os.waitpid(child, 0)[1] == 9, "it ended before it was killed"
    finished = os.waitpid(live([*recipe, f"--workdir={run}"], lives["cut"]), 0)[1]
    return {"kills": kills, "in_saves": in_saves, "exit": finished}


def config(kills: int) -> list[str]:
    phases = [f"--config.phases.{name}.steps={kills * STEPS_PER_KILL // 2}" for name in ("first", "second")]
    return [*phases, "--config.checkpoints.rolling.steps=3", "--config.checkpoints.grid.steps=7", "--config.loggers=()"]


def digits(run: Path, name: str) -> list[dict]:
    rows = [json.loads(line) for line in (run / name).read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in rows]


@pytest.mark.slow
def test_every_kill_is_survived_and_changes_no_digit(tmp_path):
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import toy

    toy.write_corpora(tmp_path)
    command = [sys.executable, __file__, str(tmp_path), str(KILLS)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    logs = [path.read_text()[-2000:] for path in tmp_path.glob("*.log")]
    assert done.returncode == 0, "\n".join([done.stderr[-2000:], *logs])
    told = json.loads(done.stdout.splitlines()[-1])
    print(told)
    assert told["exit"] == 0 and told["kills"] == KILLS and told["in_saves"] >= KILLS // 6
    log = (tmp_path / "cut.log").read_text()
    assert "initialised from own checkpoint" in log and "damaged" not in log and "error" not in log
    uncut, cut = tmp_path / "uncut", tmp_path / "cut"
    for name in FILES:
        assert digits(uncut, name) == digits(cut, name), name
    assert json.loads((uncut / "ledger.json").read_text()) == json.loads((cut / "ledger.json").read_text())
    assert not list((cut / "checkpoints").glob("*/*tmp*"))


if __name__ == "__main__":
    print(json.dumps(disturb(Path(sys.argv[1]), int(sys.argv[2]), seed=0)))
