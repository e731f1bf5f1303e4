"""`launch/local.sh` with real processes: all end together, saved runs are relaunched, signals are passed on once."""

import os
import signal
import subprocess
import time

import pytest
from launching import CLEAN, LAUNCH, STUB, launch, program


@pytest.fixture
def run(tmp_path):
    """`run("75,0")` launches two stubs; returns the outcome and the lines of their journal."""

    def go(ends, *more, **env):
        journal = tmp_path / "journal"
        flags = [
            f"--journal={journal}",
            f"--ends={ends}",
            *more,
            *([f"--who={env.pop('WHO')}"] if "WHO" in env else []),
        ]
        done = launch("local.sh", *flags, cwd=tmp_path, COMMAND=STUB, JAX_PLATFORMS="cpu", PROCESSES="2", **env)
        return done, journal.read_text().splitlines()

    return go


def test_a_dry_run_prints_the_command_of_every_process_and_starts_none(tmp_path):
    done = launch("local.sh", "--dry_run", "--config.seed=1", cwd=tmp_path, JAX_PLATFORMS="cpu", PORT="29500")
    assert done.stdout.splitlines() == [
        f"process {i}: env JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=2 "
        "python -m cpt.main --config=configs/pile_to_slimpajama.py --config.seed=1 "
        f"--coordinator=127.0.0.1:29500 --processes=2 --process={i}"
        for i in range(2)
    ]
    assert done.returncode == 0 and not list(tmp_path.iterdir())


def test_one_process_needs_no_coordinator_and_keeps_the_flags_of_xla(tmp_path):
    env = dict(JAX_PLATFORMS="cpu", PROCESSES="1", DEVICES="8", XLA_FLAGS="--xla_dump_to=x")
    assert launch("local.sh", "--dry_run", COMMAND="python -m cpt.main", **env).stdout == (
        "process 0: env JAX_PLATFORMS=cpu XLA_FLAGS=--xla_dump_to=x\\ --xla_force_host_platform_device_count=8 "
        "python -m cpt.main\n"
    )


def test_where_there_are_gpus_each_gets_a_process(tmp_path):
    programs = program(tmp_path / "bin", "nvidia-smi", "printf 'GPU %d: H100\\n' 0 1 2")
    done = launch("local.sh", "--dry_run", programs=programs, COMMAND="cpt", PORT="29500")
    assert done.stdout.splitlines() == [
        f"process {i}: env CUDA_VISIBLE_DEVICES={i} cpt --coordinator=127.0.0.1:29500 --processes=3 --process={i}"
        for i in range(3)
    ]
    done = launch("local.sh", "--dry_run", programs=programs, PROCESSES="4")
    assert done.returncode == 2 and "PROCESSES=4: this machine has 3 GPUs" in done.stderr


def test_both_processes_run_and_their_lines_are_told_apart(run, tmp_path):
    done, journal = run("0")
    assert done.returncode == 0 and sorted(journal) == ["0 started", "1 started"]
    lines = sorted(done.stdout.splitlines())
    assert [line[:14] for line in lines] == ["[0] process 0:", "[1] process 1:"]
    assert "127.0.0.1:" in lines[0] and lines[0].split()[3] == lines[1].split()[3]  # one coordinator
    assert "--xla_force_host_platform_device_count=2" in lines[0]
    assert (tmp_path / "runs/logs/local/process-1.log").read_text() == lines[1] + "\n"


@pytest.mark.parametrize("code", [1, 2])
def test_a_mistake_or_a_crash_ends_all_and_is_not_relaunched(run, code):
    done, journal = run(str(code), WHO="1")
    assert done.returncode == code
    assert journal.count("1 started") == 1 and journal[-1] == "0 saved after SIGTERM"


def test_a_lost_process_ends_the_others_and_all_start_again(run):
    done, journal = run("-9,0", WHO="1")
    assert done.returncode == 0
    assert journal.count("0 started") == journal.count("1 started") == 2
    assert sorted(journal[2:4]) == ["0 saved after SIGTERM", "1 killed"]
    assert "relaunch 1 of 3" in done.stdout


def test_a_peer_that_crashes_over_a_lost_process_does_not_hide_why(run):
    done, journal = run("-9,0", "--fragile=1", WHO="1")
    assert done.returncode == 0
    assert journal.count("0 started") == journal.count("1 started") == 2


def test_a_run_that_is_killed_whole_starts_again(run):
    done, journal = run("-9,0")
    assert done.returncode == 0 and journal.count("0 started") == journal.count("1 started") == 2


def test_relaunches_are_bounded(run):
    done, journal = run("75", RELAUNCHES="2")
    assert done.returncode == 75 and journal.count("0 started") == 3
    assert "2 relaunches are used up; the same command goes on" in done.stdout


def test_who_does_not_end_in_time_is_killed(run):
    started = time.monotonic()
    done, journal = run("75,0", WHO="1", GRACE="1")  # saved by itself: the other is not signalled, but not waited for
    assert done.returncode == 0 and time.monotonic() - started < 20
    assert "0 saved after SIGTERM" not in journal and "0 waited in vain" not in journal


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_is_passed_on_once_and_nothing_is_relaunched(tmp_path, name):
    journal = tmp_path / "journal"
    flags = [f"--journal={journal}", "--ends=75", "--who=nobody"]
    env = CLEAN | {"COMMAND": STUB, "JAX_PLATFORMS": "cpu", "PROCESSES": "2"}

    def heeded():  # tests in the background are started to ignore them, and no shell traps what it was to ignore
        for each in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)

    process = subprocess.Popen(
        ["bash", str(LAUNCH / "local.sh"), *flags],
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=heeded,
    )
    while not journal.exists() or journal.read_text().count("started") < 2:
        time.sleep(0.05)
    # As a terminal does for Ctrl-C: to the whole group of the launcher.
    os.killpg(process.pid, signal.Signals[name])
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 75
    passed = "SIGINT" if name == "SIGINT" else "SIGTERM"
    assert sorted(journal.read_text().splitlines()[2:]) == [f"{i} saved after {passed}" for i in (0, 1)]
    assert b"relaunch" not in out


@pytest.mark.parametrize("setting", ["PROCESSES=two", "DEVICES=0", "RELAUNCHES=-1", "GRACE=1.5"])
def test_a_setting_that_cannot_be_is_one_line(setting):
    done = launch("local.sh", JAX_PLATFORMS="cpu", **dict([setting.split("=")]))
    assert done.returncode == 2
    assert done.stderr.startswith(f"launch error: {setting}: a whole number") and done.stderr.count("\n") == 1
