"""The command with real training: workers are killed, and every run is trained once, to the token.

CPT_TEST_STORAGE=postgresql://USER@HOST/DATABASE runs it on that storage, CPT_TEST_RUNS=12 with so many runs.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy

from cpt.report import make

TESTS = Path(__file__).parents[1]
RUNS = int(os.environ.get("CPT_TEST_RUNS", "4"))
SWEEP = """
from cpt import sweeps as s


def get_sweep():
    space = s.product(s.values("phases.second.lr.peak", [1e-3, 1e-2]), s.seeds({seeds}))
    return s.sweep("toy", space, {{"sets.new.final": 1, "sets.old.forgetting": 1}})
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_runs_of_killed_workers_are_trained_once_to_the_token(tmp_path, toy_root, environment):
    out, file = tmp_path / "out", tmp_path / "sweep.py"
    url = os.environ.get("CPT_TEST_STORAGE", f"sqlite:///{tmp_path}/books.db")
    file.write_text(SWEEP.format(seeds=", ".join(map(str, range(RUNS // 2)))))
    toy.write_corpora(toy_root)
    config = [f"--config={TESTS / 'toy.py'}:{toy_root}", "--config.phases.first.steps=8", "--config.loggers=()"]
    command = [sys.executable, "-m", "cpt.sweep", *config, f"--sweep={file}", f"--out={out}", f"--storage={url}"]
    listed = subprocess.run([*command, "--dry_run"], env=environment, capture_output=True, text=True, check=True)
    assert len(re.findall(r" new *$", listed.stdout, re.MULTILINE)) == RUNS and not out.exists()

    workers = "3" if RUNS > 4 else "2"
    crew = subprocess.Popen([*command, f"--workers={workers}"], env=environment, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
    killed, deadline = set(), time.monotonic() + 400
    while crew.poll() is None and time.monotonic() < deadline:
        # Each time one whose run has begun to train, and is another run than before.
        for run in out.glob("toy-*") if len(killed) < 2 else ():
            rows = run / "metrics.jsonl"
            young = run not in killed and rows.exists() and 2 <= rows.read_text().count("\n") < 20
            if young and (worker := worker_of(run, crew.pid)):
                os.kill(worker, signal.SIGKILL)
                killed.add(run)
                break
        time.sleep(0.05)
    text, _ = crew.communicate(timeout=10)
    print(text)
    assert crew.returncode == 0, text
    assert len(killed) == 2 and text.count("killed by SIGKILL; started again") == 2

    runs = sorted(out.glob("toy-*"))
    assert len(runs) == RUNS
    for run in runs:
        plan, ledger = (json.loads((run / f"{name}.json").read_text()) for name in ("plan", "ledger"))
        assert ledger["totals"]["tokens_consumed"] == plan["total_tokens"] and ledger["exact"]
        steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert steps == list(range(steps[0], steps[0] + len(steps))) and len(steps) == plan["total_steps"]
    assert "resum" in "".join((run / "trial.log").read_text() for run in killed)
    best = re.search(r"^ *1  (\S+)", text, re.MULTILINE).group(1)
    page = make([f"{out}/*"], str(tmp_path / "answer.html"), "sets.old.forgetting").read_text()
    assert all(run.name in page for run in runs) and best in page


def worker_of(run, crew):
    """Process id of the worker, one of `crew`, whose process holds the run's lock; None if it is gone."""
    try:
        trainer = re.match(r"process (\d+) ", (run / ".lock").read_text()).group(1)
        worker = parent(int(trainer))
        return worker if parent(worker) == crew else None
    except (OSError, AttributeError):
        return None


def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--out=gs://bucket/sweep", "config error: --out=gs://bucket/sweep: a run directory is a path, not a URL"),
        ("--grace=-1", "config error: flag --grace=-1: -1.0 is not number >= 1.0"),
    ],
)
def test_a_flag_that_cannot_be_is_one_line(flag, says, tmp_path, toy_root, environment):
    file = tmp_path / "sweep.py"
    file.write_text(SWEEP.format(seeds="0, 1"))
    command = [sys.executable, "-m", "cpt.sweep", f"--config={toy.__file__}:{toy_root}", f"--sweep={file}", flag]
    done = subprocess.run([*command, "--dry_run"], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith(says) and done.stderr.count("\n") == 1, done.stderr
