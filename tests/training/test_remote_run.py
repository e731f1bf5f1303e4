"""Runs whose directory is a gs:// URL, against an emulator of the storage that gcsfs and TensorStore talk to."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gcs
import pytest

pytest.importorskip("gcsfs")
pytest.importorskip("gcp_storage_emulator")

REPOSITORY = Path(__file__).resolve().parents[2]
TIMINGS = ("tokens_per_second", "data_wait_s", "step_s")
SHORT = ["--config.phases.first.steps=5", "--config.phases.second.steps=7", "--config.checkpoints.rolling.steps=3"]


@pytest.fixture(scope="module")
def storage():
    with gcs.emulator() as running:
        yield running


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("toy")


def start(storage, root: Path, machine: Path, *flags: str, module: str = "cpt.main") -> subprocess.Popen:
    """A command on a machine, which is a home of its own."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, **storage.env, "XDG_CACHE_HOME": str(machine), "PYTHONPATH": path}
    argv = [sys.executable, "-m", module, *flags]
    if module == "cpt.main":
        argv += [f"--config={REPOSITORY}/tests/toy.py:{root}", *SHORT]
    return subprocess.Popen(argv, env=env, cwd=root, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def ended(process: subprocess.Popen) -> tuple[int, str]:
    out, err = process.communicate(timeout=240)
    return process.returncode, out + err


def rows(folder: Path, name: str) -> list[dict]:
    lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in lines]


def copy_of(machine: Path) -> Path:
    (found,) = (machine / "cpt" / "runs").iterdir()
    return found


def wait_for(storage, name: str, process: subprocess.Popen) -> None:
    for _ in range(1200):
        if process.poll() is not None:
            code, said = ended(process)
            assert code == 0, said
            pytest.skip("the run was over before it could be killed")
        if storage.names(name):
            return
        time.sleep(0.05)
    raise AssertionError(f"{name} never came")


@pytest.mark.slow
def test_killed_and_gone_on_with_on_another_machine(storage, root, tmp_path):
    """The rows are those of a local run; the checkpoints, the rows and the report are all in the storage."""
    url, a, b, c = "gs://bucket/runs/moved", tmp_path / "a", tmp_path / "b", tmp_path / "c"
    local = tmp_path / "local"
    assert ended(start(storage, root, a, f"--workdir={local}"))[0] == 0

    killed = start(storage, root, a, f"--workdir={url}")
    wait_for(storage, "runs/moved/checkpoints/anchor/5/commit_success.txt", killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (copy_of(a) / "checkpoints").exists()

    code, said = ended(start(storage, root, b, f"--workdir={url}"))
    assert code == 0 and "initialised from own checkpoint" in said, said
    assert f"rows and reports to {copy_of(b)}" in said
    for name in ("metrics.jsonl", "eval.jsonl", "eval_sequences.jsonl"):
        assert rows(copy_of(b), name) == rows(local, name), name
    assert (copy_of(b) / "ledger.json").read_text() == (local / "ledger.json").read_text()
    there = storage.names("runs/moved/")
    for name in ("metrics.jsonl", "plan.json", "report.html", "checkpoints/anchor/12/commit_success.txt"):
        assert f"runs/moved/{name}" in there, name
    assert not [n for n in there if n.endswith((".lock", ".staged", ".copy", ".remote", ".writable"))]

    code, said = ended(start(storage, root, c, f"--workdir={url}"))  # a third machine has nothing left to do
    assert code == 0 and "done: all 12 steps are trained" in said, said
    assert rows(copy_of(c), "eval.jsonl") == rows(local, "eval.jsonl")
    code, said = ended(start(storage, root, c, "ls", f"--workdir={url}", module="cpt.checkpoints"))
    assert code == 0 and "anchor" in said and "unfinished" not in said, said


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("gs://nobody-has-this/run", "run error: gs://nobody-has-this/run: cannot write there (no such bucket)"),
        ("s3://bucket/run", "config error: --workdir=s3://bucket/run: checkpoints cannot be written to s3://"),
    ],
)
def test_storage_that_cannot_be_used_is_one_line(storage, root, tmp_path, url, said):
    code, output = ended(start(storage, root, tmp_path, f"--workdir={url}"))
    assert code == 2 and output.startswith(said) and output.count("\n") == 1, output
