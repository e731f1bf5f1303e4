"""Real processes on this machine: the same run on 1, 2 and 4 of them, and what happens when one ends."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import toy

from cpt.data.tokenizers.byte import ByteTokenizer
from cpt.models import convert
from cpt.models.base import build
from cpt.models.spec import ModelSpec

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
STEPS = 50


class Launched:
    """`count` processes of one run, each with `devices` simulated devices; ended with the test."""

    def __init__(self, root: Path, workdir: Path, count: int, devices: int, *flags: str, of: dict | None = None):
        self.workdir, self.logs = workdir, [workdir.with_suffix(f".{time.time_ns()}.{i}") for i in range(count)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        env = {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"}
        self.processes = []
        for i, log in enumerate(self.logs):
            several = [f"--coordinator={address}", f"--processes={count}", f"--process={i}"] if count > 1 else []
            command = [sys.executable, "-m", "cpt.main", f"--config={toy.__file__}:{root}", f"--workdir={workdir}"]
            command += ["--config.phases.first.steps=25", "--config.phases.second.steps=25", *several, *flags]
            with log.open("w") as out:
                self.processes.append(
                    subprocess.Popen([*command, *(of or {}).get(i, [])], cwd=ROOT, env=env, stdout=out, stderr=out)
                )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()

    def wait(self, limit_s: float = 300.0) -> list[int]:
        end = time.monotonic() + limit_s
        return [process.wait(max(end - time.monotonic(), 0.1)) for process in self.processes]

    def at(self, step: int, limit_s: float = 300.0) -> None:
        """Wait until the run has written the row of `step`."""
        end = time.monotonic() + limit_s
        while len(rows(self.workdir)) < step:
            assert time.monotonic() < end and all(p.poll() is None for p in self.processes), self.said(0)
            time.sleep(0.02)

    def said(self, index: int) -> str:
        return self.logs[index].read_text()


def rows(workdir: Path, name: str = "metrics.jsonl") -> list[dict]:
    try:
        lines = (workdir / name).read_text().splitlines()
    except FileNotFoundError:
        return []
    with contextlib.suppress(ValueError):  # the last line may be half written
        return [json.loads(line) for line in lines]
    return [json.loads(line) for line in lines[:-1]]


def losses(workdir: Path, name: str = "metrics.jsonl") -> np.ndarray:
    return np.array([row["loss"] for row in rows(workdir, name)])


def without_times(workdir: Path) -> list[dict]:
    timed = ("tokens_per_second", "data_wait_s", "step_s")
    return [{k: v for k, v in row.items() if k not in timed} for row in rows(workdir)]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("processes")
    toy.write_corpora(root)
    return root


@pytest.fixture(scope="module")
def alone(root) -> Path:
    with Launched(root, root / "alone", 1, 1) as run:
        assert run.wait() == [0], run.said(0)
    return root / "alone"


@pytest.fixture(scope="module")
def two(root, alone) -> Path:
    with Launched(root, root / "two", 2, 2) as run:
        assert run.wait() == [0, 0], run.said(0) + run.said(1)
        assert "4 x cpu · 2 processes" in run.said(0)
        # The second one has nothing to say; what is there comes from its libraries.
        assert "phase" not in run.said(1) and "report" not in run.said(1)
    return root / "two"


def test_two_processes_are_the_run_of_one(alone, two):
    assert len(losses(two)) == STEPS
    np.testing.assert_allclose(losses(two), losses(alone), rtol=1e-5)
    np.testing.assert_allclose(losses(two, "eval.jsonl"), losses(alone, "eval.jsonl"), rtol=1e-5)
    # The same rows in the same order: what each source gave to each update.
    tokens = [[{k: v for k, v in r.items() if k.endswith("/tokens")} for r in rows(w)] for w in (alone, two)]
    assert tokens[0] == tokens[1]
    ledgers = [json.loads((w / "ledger.json").read_text()) for w in (alone, two)]
    assert ledgers[0] == ledgers[1] and ledgers[0]["exact"]


def test_two_processes_start_from_a_model_directory_as_one_does(root, tmp_path):
    """With a vocabulary that goes on from the directory's, and parameters spread over both."""
    spec = ModelSpec(layers=1, width=32, heads=2, vocab_size=257, context=32)
    ByteTokenizer().save(tmp_path / "tokenizer.json")
    convert.write(tmp_path / "hf", spec, build(spec).init(jax.random.key(0)), tmp_path / "tokenizer.json")
    fields = {"init.from_hf": tmp_path / "hf", "phases.first.steps": 3, "phases.second.steps": 3}
    fields |= {"init.vocabulary.method": "gaussian", "model.vocab_size": 320, "tokenizer.kind": "continued_bpe"}
    fields |= {"tokenizer.path": tmp_path / "hf", "tokenizer.vocab_size": 300, "tokenizer.train_on": "new"}
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    with Launched(root, tmp_path / "one", 1, 1, *flags) as run:
        assert run.wait() == [0], run.said(0)
    with Launched(root, tmp_path / "two", 2, 2, *flags, "--config.mesh.fsdp=4") as run:
        assert run.wait() == [0, 0], run.said(0) + run.said(1)
        assert "data 1 x fsdp 4" in run.said(0) and "with the vocabulary of this run's tokenizer" in run.said(0)
    assert len(losses(tmp_path / "two")) == 6
    for name in ("metrics.jsonl", "eval.jsonl"):
        np.testing.assert_allclose(losses(tmp_path / "two", name), losses(tmp_path / "one", name), rtol=1e-5)


def test_one_killed_ends_the_other_and_a_relaunch_goes_on_exactly(root, two, tmp_path):
    workdir = tmp_path / "killed"
    with Launched(root, workdir, 2, 2) as run:
        run.at(18)
        run.processes[1].kill()
        begun = time.monotonic()
        code = run.processes[0].wait(60)
        assert time.monotonic() - begun < 60
        assert code == 75, run.said(0)
        line = run.said(0).strip().splitlines()[-1]
        # Who notices first: the collective that it left, or the thread that hears no more from it.
        assert "another process is gone (" in line or "process 1 of 2 has not answered for 30 s" in line
        assert "start the same command again on all of them" in line and "Traceback" not in run.said(0)
    with Launched(root, workdir, 2, 2) as run:
        assert run.wait() == [0, 0], run.said(0)
        assert "initialised from own checkpoint rolling/" in run.said(0)
    assert without_times(workdir) == without_times(two)
    assert rows(workdir, "eval.jsonl") == rows(two, "eval.jsonl")


CONNECTED = """
import sys, time
from cpt.training.cluster import Cluster
from cpt.training.processes import joined
with joined(Cluster("flags", sys.argv[1], 2, int(sys.argv[2])), 60) as processes:
    processes.meet()
    print("met", flush=True)
    if sys.argv[3:] == ["aborts"] and not processes.first:
        import os
        os.abort()
    time.sleep(60)
"""


@pytest.mark.parametrize("what", ["killed", "aborts"])
def test_process_0_that_is_killed_takes_the_coordinator_along(what):
    """JAX then aborts the others; that is a reason to start again, while another abort stays what it is."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-c", CONNECTED, address]
    pipes = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first, second = (subprocess.Popen([*command, str(i), what], **pipes) for i in range(2))
    try:
        assert first.stdout.readline() == second.stdout.readline() == "met\n"
        if what == "killed":
            first.kill()
        said = second.communicate(timeout=30)[1]
        gone = f"run error: process 0 at {address} is gone; start the same command again on all of them"
        assert (second.returncode, gone in said) == ((75, True) if what == "killed" else (-signal.SIGABRT, False)), said
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()


def test_a_run_moves_from_four_processes_to_one_to_two(root, alone, tmp_path):
    workdir = tmp_path / "moves"
    for count, devices, until in ((4, 2, 8), (1, 1, 20), (2, 1, None)):
        with Launched(root, workdir, count, devices) as run:
            if until is None:
                assert run.wait() == [0] * count, run.said(0)
                break
            run.at(until)
            run.processes[-1].send_signal(signal.SIGTERM)  # told to one, obeyed by all
            assert run.wait() == [75] * count, run.said(0)
            assert "saved at step" in run.said(0) and "go on with: python -m cpt.main" in run.said(0)
    assert [r["step"] for r in rows(workdir)] == list(range(1, STEPS + 1))
    np.testing.assert_allclose(losses(workdir), losses(alone), rtol=1e-5)


def test_processes_with_different_plans_end_with_the_reason(root, tmp_path):
    with Launched(root, tmp_path / "run", 2, 1, of={1: ["--config.seed=7"]}) as run:
        assert run.wait(60) == [2, 2]
        assert "config error: process 1: its plan is not that of process 0" in run.said(1)
        assert "process 1 ended: config error: process 1: its plan is not" in run.said(0)
        assert "Traceback" not in run.said(0) + run.said(1)
    assert rows(tmp_path / "run") == []


def test_a_signal_while_the_others_are_awaited_is_a_line(tmp_path):
    flags = ["--coordinator=127.0.0.1:9", "--processes=2", "--process=1"]
    script = (  # where it waits for them
        "import signal, cpt.training.processes as p, cpt.main as m\n"
        "p._connect = lambda *_: signal.raise_signal(signal.SIGTERM)\n"
        "m.cli.run(m.main)\n"
    )
    command = [sys.executable, "-c", script, f"--config={toy.__file__}:{tmp_path}", *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 75 and "Traceback" not in done.stderr, done.stderr
    assert "go on with: python -m cpt.main --config=" in done.stdout


def test_a_coordinator_that_is_not_there_is_named(tmp_path):
    flags = ["--coordinator=127.0.0.1:9", "--processes=2", "--process=1", "--connect_seconds=3"]
    command = [sys.executable, "-m", "cpt.main", f"--config={toy.__file__}:{tmp_path}", *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 2
    assert "run error: 127.0.0.1:9: not all processes met there within 3 s" in done.stderr
    assert not (tmp_path / "runs").exists()
