"""A trainer for tests of workers: trains nothing, but keeps every promise that `cpt.main` makes about a run directory.

It holds the lock, takes a checkpoint every two steps, saves and exits with 75 on SIGTERM, goes on from its newest
checkpoint, and counts every step that it takes in `steps.log`. What goes wrong is named in `mischief` beside its
directory: `<seed> wrong`, `<seed> crash`, `<seed> preempt`.
"""

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path


def main() -> int:
    given = dict(arg.removeprefix("--").split("=", 1) for arg in sys.argv[1:])
    workdir, total, seed = Path(given["workdir"]), int(given["total"]), int(given.get("config.seed", 0))
    workdir.mkdir(parents=True, exist_ok=True)
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    lock = (workdir / ".lock").open("ab+", buffering=0)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"run error: {workdir}: another process trains there (process 1); wait for it", file=sys.stderr)
        return 2
    mischief = workdir.parent / "mischief"
    trouble = mischief.read_text().split("\n") if mischief.exists() else []
    if f"{seed} wrong" in trouble:
        print("warming up\ndata error: stores/new: not there; run `python -m cpt.prepare`", file=sys.stderr)
        return 2
    checkpoints = workdir / "checkpoints" / "rolling"
    checkpoints.mkdir(parents=True, exist_ok=True)
    step = max((int(p.name) for p in checkpoints.iterdir()), default=0)
    kept = (workdir / "metrics.jsonl").read_text().splitlines()[:step] if step else []
    (workdir / "metrics.jsonl").write_text("".join(line + "\n" for line in kept))
    (workdir / "plan.json").write_text(json.dumps({"hash": given["hash"], "total_steps": total}))
    while step < total:
        time.sleep(float(given["pace"]))
        step += 1
        with (workdir / "metrics.jsonl").open("a") as f:
            f.write(json.dumps({"step": step, "tokens": 10 * step, "loss": 1.0 / step + seed}) + "\n")
        with (workdir / "eval.jsonl").open("a") as f:
            f.write(json.dumps({"step": step, "tokens": 10 * step, "set": "new", "loss": 1.0 / step + seed}) + "\n")
        with (workdir / "steps.log").open("a") as f:
            f.write(f"{step} {os.getpid()}\n")
        if step % 2 == 0 or asked:
            (checkpoints / str(step)).mkdir(exist_ok=True)
        if asked and step < total:
            return 75
        if f"{seed} preempt" in trouble and step == 4 and not (workdir / "preempted").exists():
            (workdir / "preempted").touch()
            return 75
        if f"{seed} crash" in trouble and step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
    (workdir / "ledger.json").write_text(json.dumps({"totals": {"tokens_consumed": 10 * step}}))
    (workdir / "summary.json").write_text(json.dumps({"finished": True, "bwt": float(seed)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
