"""`launch/slurm.sbatch`: what it would submit, when it requeues; on a real cluster, jobs that return and a sweep."""

import json
import os
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest
from launching import LAUNCH, STUB, launch, program
from slurm_cluster import Cluster, missing

JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[0-1]"}
SRUN = "srun --kill-on-bad-exit=0 --wait=300"


@pytest.fixture
def job(tmp_path):
    """`job(code)` runs the script as SLURM would, with an `srun` that ends so; returns the outcome and the calls."""
    calls = tmp_path / "calls"

    def go(code, **env):
        programs = program(tmp_path / "bin", "srun", f'echo "srun $*" >> {calls}; exit {code}')
        program(programs, "scontrol", f'echo "scontrol $*" >> {calls}')
        done = launch("slurm.sbatch", "--config.seed=1", programs=programs, **JOB | env)
        return done, calls.read_text().splitlines() if calls.exists() else []

    return go


def test_a_dry_run_prints_the_submission_and_the_command_of_each_host():
    script, run = LAUNCH / "slurm.sbatch", "python -m cpt.main --config=configs/pile_to_slimpajama.py --config.seed=1"
    assert launch("slurm.sbatch", "--dry_run", "--config.seed=1").stdout.splitlines() == [
        f"submit: sbatch {script} --config.seed=1",
        f"first host of each job: true && {SRUN} {run}",
        f"each task on each host: {run}",
    ]


def test_a_dry_run_of_a_sweep_shows_its_workers():
    done = launch("slurm.sbatch", "--dry_run", SWEEP="configs/sweeps/seeds.py", CONFIG="c.py", SETUP="module load cuda")
    worker = (
        "python -m cpt.sweep --config=c.py --sweep=configs/sweeps/seeds.py --storage=journal:runs/seeds/journal.log "
        "--workers=1 --out=runs/seeds"
    )
    assert done.stdout.splitlines() == [
        f"submit: SWEEP=configs/sweeps/seeds.py sbatch --array=0-5 {LAUNCH / 'slurm.sbatch'}",
        f"first host of each job: module load cuda && {SRUN} {worker}",
        f"each task on each host: {worker}",
    ]


@pytest.mark.parametrize("code, requeued", [(0, False), (1, False), (2, False), (75, True), (137, True), (143, False)])
def test_a_job_that_was_saved_or_killed_requeues_itself(job, code, requeued):
    done, calls = job(code)
    assert done.returncode == code
    run = "python -m cpt.main --config=configs/pile_to_slimpajama.py --config.seed=1"
    assert calls == [f"{SRUN} {run}", *(["scontrol requeue 7"] if requeued else [])]
    assert f"job 7 on n[0-1], start 1: {SRUN} {run}" in done.stdout


def test_requeues_are_bounded(job):
    done, calls = job(75, RELAUNCHES="3", SLURM_RESTART_COUNT="2")
    assert calls[-1] == "scontrol requeue 7" and "restart 3 of 3" in done.stdout
    done, calls = job(75, RELAUNCHES="3", SLURM_RESTART_COUNT="3")
    assert len(calls) == 3 and "3 restarts are used up; submit the same again to go on" in done.stdout


def test_what_setup_loads_is_there(job):
    done, calls = job(0, SETUP='export PATH="$PWD:$PATH" && echo loaded')
    assert done.returncode == 0 and "loaded" in done.stdout and len(calls) == 1
    done, calls = job(0, SETUP="module load nothing")
    assert done.returncode != 0 and len(calls) == 1  # no srun after a setup that failed


def test_outside_of_slurm_it_says_how_to_submit():
    done = launch("slurm.sbatch")
    assert done.returncode == 2 and done.stderr.startswith("launch error: not a job of SLURM; submit it: sbatch ")


needs_slurm = pytest.mark.skipif(
    bool(missing()), reason=f"not installed: {missing()} (Debian: slurmctld slurmd slurm-client munge)"
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("slurm")) as c:
        yield c


def until(true, seconds=240):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def submit(cluster, where, *flags, **env):
    """The id of the job."""
    return cluster.run("sbatch", "--parsable", f"--chdir={where}", *flags, **env).strip()


def main_process(cluster, job):
    """The process that `srun` started for the job, or for the task of an array."""
    job = cluster.run("squeue", "--noheader", f"--jobs={job}", "--format=%A").strip()
    lines = [line.split() for line in cluster.run("scontrol", "listpids", job).splitlines()[1:]]
    return next(int(pid) for pid, _, step, _, task in lines if (step, task) == ("0", "0"))


@pytest.mark.slow
@needs_slurm
def test_jobs_that_save_are_killed_or_requeued_come_back_and_go_on_in_their_log(cluster, tmp_path):
    """SIGTERM to the tasks (what SLURM sends before a time limit), a kill -9, and SLURM's own requeue."""
    names = ("told", "killed", "requeued")
    flags = {n: [f"--journal={tmp_path / n}", "--ends=0", "--after=1"] for n in names}
    ids = {
        n: submit(cluster, tmp_path, f"--job-name={n}", str(LAUNCH / "slurm.sbatch"), *flags[n], COMMAND=STUB)
        for n in names
    }
    stop = {
        "told": lambda job: cluster.run("scancel", "--signal=TERM", job),
        "killed": lambda job: os.kill(main_process(cluster, job), signal.SIGKILL),
        "requeued": lambda job: cluster.run("scontrol", "requeue", job),
    }
    for name in names:
        until(lambda: (tmp_path / name).exists() and "started" in (tmp_path / name).read_text())  # noqa: B023
        stop[name](ids[name])
    until(lambda: not cluster.run("squeue", "-h").strip())
    journals = {n: (tmp_path / n).read_text().splitlines() for n in names}
    assert journals == {
        "told": ["0 started", "0 saved after SIGTERM", "0 started"],
        "killed": ["0 started", "0 started"],
        "requeued": ["0 started", "0 saved after SIGTERM", "0 started"],
    }
    logs = {n: (tmp_path / f"{n}-{ids[n]}.log").read_text() for n in names}
    assert all("start 1:" in text and "start 2:" in text for text in logs.values())
    assert "ended with code 75; requeueing, restart 1 of 20" in logs["told"]
    assert "ended with code 137; requeueing, restart 1 of 20" in logs["killed"]


@pytest.mark.slow
@needs_slurm
def test_a_cancelled_job_does_not_come_back(cluster, tmp_path):
    flags = [f"--journal={tmp_path / 'journal'}", "--ends=0", "--after=1"]
    job = submit(cluster, tmp_path, str(LAUNCH / "slurm.sbatch"), *flags, COMMAND=STUB)
    until((tmp_path / "journal").exists)
    cluster.run("scancel", job)
    until(lambda: not cluster.run("squeue", "-h").strip())
    assert (tmp_path / "journal").read_text().splitlines() == ["0 started", "0 saved after SIGTERM"]
    assert "CANCELLED" in cluster.run("scontrol", "show", "job", job)


SWEEP = """
from cpt import sweeps as s


def get_sweep():
    return s.sweep(name="seeds", space=s.seeds(0, 1, 2, 3, 4, 5), metric="sets.old.forgetting")
"""


@pytest.mark.slow
@needs_slurm
def test_an_array_trains_a_sweep_though_one_task_is_killed_and_one_requeued(cluster, tmp_path):
    """Six trials, three tasks of which two run at a time: all trials finish, each step of each is trained once."""
    pytest.importorskip("cpt.sweeps")
    (tmp_path / "seeds.py").write_text(SWEEP)
    out = tmp_path / "out"
    env = dict(
        CONFIG=f"{Path(__file__).parents[1] / 'toy.py'}:{tmp_path / 'corpora'}",
        SWEEP=str(tmp_path / "seeds.py"),
        OUT=str(out),
        SETUP=f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH",
        JAX_PLATFORMS="cpu",
    )
    flags = ["--output=task-%a.log", "--array=0-2", str(LAUNCH / "slurm.sbatch"), "--grace=5"]
    job = submit(cluster, tmp_path, *flags, **env)
    trained = lambda: [len(p.read_text().splitlines()) for p in out.glob("toy-*/metrics.jsonl")]  # noqa: E731
    until(lambda: sum(steps > 0 for steps in trained()) == 2)
    os.kill(main_process(cluster, f"{job}_0"), signal.SIGKILL)
    cluster.run("scontrol", "requeue", f"{job}_1")
    until(lambda: not cluster.run("squeue", "-h").strip())

    logs = {task: (tmp_path / f"task-{task}.log").read_text() for task in range(3)}
    print(*logs.values(), sep="\n")  # shown when this fails
    runs = sorted(p.parent for p in out.glob("toy-*/summary.json"))
    assert len(runs) == len(list(out.glob("toy-*"))) == 6
    for run in runs:
        steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert steps == list(range(1, 41))
        said = (run / "trial.log").read_text()
        assert said.count("(new)") == said.count("trained 40 steps") == 1
    assert "ended with code 137; requeueing, restart 1 of 20" in logs[0]
    assert "DUE TO JOB REQUEUE" in logs[1]
    assert ["start 2:" in log for log in logs.values()] == [True, True, False]
    assert all("6 runs, 6 done" in log or log.count("done") >= 6 for log in logs.values())
    assert "config error" not in "".join(logs.values())
