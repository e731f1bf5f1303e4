"""Workers are killed, stopped and crowded; what is trained is trained once.

The trainer is a stand-in that keeps the promises of `cpt.main` about its directory and counts its steps; see
`test_sweep_command.py` for the real one.
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
from optuna.trial import TrialState

from cpt.training.workdir import lock

QUICK = Path(__file__).parent / "quick_sweep.py"
STEPS = [str(i) for i in range(1, 11)]
TWELVE = "s.product(s.values('phases.second.lr.peak', [1e-3, 3e-3, 1e-2]), s.seeds(0, 1, 2, 3))"


class Command:
    """`python -m cpt.sweep` over the toy recipe, with the stand-in trainer."""

    def __init__(self, recipe, environment, url, space, pace=0.02, more=""):
        self.out = recipe.out
        file = self.out.parent / "sweep.py"
        text = f"return s.sweep('demo', {space}, 'bwt'{more})"
        file.write_text(f"from cpt import sweeps as s\n\n\ndef get_sweep():\n    {text}\n")
        flags = [f"--config={recipe.file}", *recipe.overrides, f"--sweep={file}", f"--out={self.out}"]
        self.argv = [sys.executable, str(QUICK), *flags, f"--storage={url}", "--grace=5"]
        self.environment = {**environment, "PACE": str(pace)}

    def start(self, *flags):
        return subprocess.Popen([*self.argv, *flags], env=self.environment, text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip

    def run(self, *flags, code=0):
        process = self.start(*flags)
        text, _ = process.communicate(timeout=120)
        assert process.returncode == code, text
        return text

    def steps(self):
        """Per run the steps that were taken, in order."""
        return {p.parent.name: [s.split()[0] for s in p.read_text().splitlines()] for p in self.out.glob("*/steps.log")}


def children(pid):
    """Processes that `pid` started and that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return sorted(found)


def until(condition, seconds=40):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
    return found


def finished(text):
    """Rows of the closing table that say so."""
    return len(re.findall(r" done *$", text, re.MULTILINE))


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


@needs_proc
@pytest.mark.slow
def test_three_workers_of_which_one_is_killed_twice_train_twelve_runs_once(recipe, environment, url):
    command = Command(recipe, environment, url, TWELVE, pace=0.1)
    crew = command.start("--workers=3")
    for kill in range(2):
        until(lambda n=kill: sum(map(len, command.steps().values())) > 6 + 20 * n)
        # One that is training: its own child is the trainer.
        busy = until(lambda: [w for w in children(crew.pid) if children(w)])
        os.kill(busy[0], signal.SIGKILL)
    text, _ = crew.communicate(timeout=120)
    assert crew.returncode == 0, text
    assert text.count("killed by SIGKILL; started again") == 2
    assert len(command.steps()) == 12 and all(steps == STEPS for steps in command.steps().values())
    for run in command.out.glob("demo*"):
        assert json.loads((run / "ledger.json").read_text())["totals"]["tokens_consumed"] == 100
    assert finished(text) == 12 and "best: python -m cpt.main" in text


@pytest.fixture
def journal(tmp_path):
    return f"journal:{tmp_path}/books.log"


def test_workers_that_join_by_themselves_share_the_trials(recipe, environment, journal):
    command = Command(recipe, environment, journal, "s.seeds(0, 1, 2, 3, 4, 5)", pace=0.1)
    both = [command.start(), command.start()]
    texts = [p.communicate(timeout=120)[0] for p in both]
    assert [p.returncode for p in both] == [0, 0], texts
    assert len(command.steps()) == 6 and all(steps == STEPS for steps in command.steps().values())
    workers = {p.read_text().split()[1] for p in command.out.glob("*/steps.log")}
    assert len(workers) == 6  # a process each
    told = [sum(" seed=" in line and " s" in line for line in t.splitlines()) for t in texts]
    assert sum(told) == 6 and all(told)


@needs_proc
def test_a_signal_stops_all_of_it_and_the_same_command_goes_on(recipe, environment, journal):
    command = Command(recipe, environment, journal, "s.seeds(0, 1)", pace=0.15)
    crew = command.start("--workers=2")
    until(lambda: sum(map(len, command.steps().values())) >= 4)
    os.kill(crew.pid, signal.SIGTERM)
    text, _ = crew.communicate(timeout=60)
    assert crew.returncode == 75 and "waiting" in text
    assert not [p for p in command.out.glob("*/summary.json")]
    assert finished(command.run()) == 2
    assert all(steps == STEPS for steps in command.steps().values())


def test_what_fails_is_told_and_the_others_go_on(recipe, environment, journal):
    command = Command(recipe, environment, journal, "s.seeds(0, 1, 2, 3)", pace=0.0)
    command.out.mkdir()
    (command.out / "mischief").write_text("1 wrong\n2 crash\n3 preempt")
    text = command.run(code=2)
    assert "data error: stores/new: not there; run `python -m cpt.prepare`" in text
    assert "killed by SIGKILL" in text and "2 failed" in text
    steps = sorted(command.steps().values(), key=len)
    assert sorted(len(s) for s in steps)[:2] == [5, 10]  # killed at step 3, from 0, 2 and 2 again; undisturbed ones
    assert [s for s in command.steps().values()].count(STEPS) == 2  # the preempted one went on where it was
    (command.out / "mischief").unlink()
    before = command.steps()
    assert "2 failed" in command.run(code=2) and command.steps() == before  # failed ones are left alone
    assert finished(command.run("--retry_failed")) == 4


PRUNED = """
import json

from cpt import sweeps as s


class Loss:
    # A metric of one's own: the last loss of a set.

    def check(self, plan):
        pass

    def value(self, run):
        return self.losses(run)[-1][1]

    def so_far(self, run, plan, after):
        return [(step, loss) for step, loss in self.losses(run) if step > after]

    def losses(self, run):
        rows = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
        return [(row["step"], row["loss"]) for row in rows]

    def __str__(self):
        return "loss"


def get_sweep():
    return s.sweep("demo", s.seeds(0, 1, 2), Loss(), prune=s.asha(first=2, factor=2))
"""


def test_a_pruned_run_is_stopped_and_stays_so(recipe, environment, journal):
    """Of 5 updates in the second phase, the first 2 decide; runs that are worse than the best so far stop there."""
    command = Command(recipe, environment, journal, "s.seeds(0)", pace=0.15)
    (command.out.parent / "sweep.py").write_text(PRUNED)
    text = command.run()
    steps = sorted(command.steps().values(), key=len)
    assert finished(text) == 1 and len(re.findall(r"  pruned at step [789]$", text, re.MULTILINE)) == 2 + 2
    assert steps[2] == STEPS and all(7 <= len(run) < 10 and run == STEPS[: len(run)] for run in steps[:2])
    again = command.run("--retry_failed")
    assert sorted(command.steps().values(), key=len) == steps
    assert len(re.findall(r"pruned at step [789] *$", again, re.MULTILINE)) == 2


def test_a_directory_that_another_process_holds_is_left_to_it(recipe, environment, journal):
    command = Command(recipe, environment, journal, "s.seeds(0, 1)", pace=0.0)
    held = command.out / recipe.candidate({"seed": 0}).directory.name
    held.mkdir(parents=True)
    with lock(held):
        process = command.start()
        until(lambda: len(list(command.out.glob("*/summary.json"))) == 1)
        time.sleep(1)
        assert process.poll() is None and not (held / "steps.log").exists()
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and finished(text) == 2


@needs_proc
def test_a_run_that_outlives_its_worker_is_not_trained_a_second_time(open_at, url, grid):
    """Where the system does not pass the signal on: the trial is taken only when its process has let go."""
    queue = open_at(grid, url)
    queue.fill(False)
    queue.owner = queue.owner.split("/")[0] + "/999999999/dead"
    taken = queue.take(set())
    taken.candidate.directory.mkdir(parents=True)
    other = open_at(grid, url)
    with lock(taken.candidate.directory):
        assert other.recover() == []
    assert other.recover() == [taken.number] and other.recover() == []
    states = [t.state for t in other.trials()]
    assert states == [TrialState.WAITING] * 4


@pytest.mark.skipif(sys.platform != "linux", reason="Linux passes the signal on")
def test_a_run_is_asked_to_stop_when_its_worker_is_killed(environment):
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom cpt.sweeps.process import Process\n"
        "p = Process([sys.executable, '-c', 'import time; time.sleep(60)'], Path(os.devnull))\n"
        "print(p._process.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    pid = int(done.stdout)
    assert done.returncode == -signal.SIGKILL
    until(lambda: not Path(f"/proc/{pid}/stat").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z", 10)
