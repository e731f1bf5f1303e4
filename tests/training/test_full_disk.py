"""A disk that fills up while a run trains: it goes on, what was saved stays, and it saves again once there is room.

Where the user may mount one, the disk is a real one (a small tmpfs); an injected error shows the rest anywhere.
"""

import errno
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy
from rich.console import Console

from cpt.config import load
from cpt.data.preparing import open_sources
from cpt.errors import RunError
from cpt.plan import resolve
from cpt.training import checkpoint, loop, retries, workdir
from cpt.training.feed import Data

COMPARED = ("step", "loss", "lr", "grad_norm")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("full")


def train(root, into):
    """(outcome, what was said)"""
    config = toy.get_config(str(root))
    config.phases.first.steps, config.phases.second.steps = 6, 6
    config.checkpoints.rolling.fraction, config.checkpoints.rolling.steps = None, 2
    config.checkpoints.grid = None
    plan, out = resolve(load(config)), io.StringIO()
    sources, tokenizer = open_sources(plan.spec.sources, plan.spec.tokenizer, Path(plan.spec.stores), lambda _: None)
    workdir.prepare_workdir(into)
    try:
        return loop.train(plan, Data(sources, tokenizer), into, Console(file=out, width=200)), out.getvalue()
    except RunError as e:
        return e, out.getvalue()


def digits(run):
    return [[json.loads(line)[k] for k in COMPARED] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def uncut(root):
    train(root, root / "uncut")
    return digits(root / "uncut")


@pytest.fixture
def full(monkeypatch):
    """A disk that takes no checkpoint of the steps in `full`."""
    write, steps = checkpoint.write, set()

    def no_room(saved, *rest):
        if saved.step in steps:
            half = saved.path.parent / f"{saved.path.name}.orbax-checkpoint-tmp"
            half.mkdir(parents=True)
            (half / "part").write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(saved, *rest)

    monkeypatch.setattr(checkpoint, "write", no_room)
    monkeypatch.setattr(checkpoint, "LAST_TRIES_S", (0.0, 0.0))
    return steps


def names(into):
    return [str(s) for s in checkpoint.Checkpoints(into / "checkpoints").finished()]


def test_training_goes_on_over_a_full_disk_and_saves_again_when_there_is_room(root, uncut, tmp_path, full):
    full |= {4, 6, 8}
    outcome, said = train(root, tmp_path / "run")
    assert outcome.step == 12 and digits(tmp_path / "run") == uncut
    assert names(tmp_path / "run") == ["anchor/12", "rolling/10", "rolling/2"]
    assert said.count("could not be written (No space left on device)") == 3
    assert "checkpoint anchor/6 could not be written" in said
    assert "the newest finished one is rolling/2, and stays; training goes on; the next try is in 2 minutes" in said
    assert not list((tmp_path / "run" / "checkpoints").glob("*/*tmp*"))


def test_the_last_checkpoint_is_tried_again_and_then_an_error(root, uncut, tmp_path, full):
    full |= {12}
    error, said = train(root, tmp_path / "run")
    assert isinstance(error, RunError)
    assert "No space left on device" in str(error) and "the newest finished one is rolling/10" in str(error)
    assert "make room there and run the same command again" in str(error) and "\n" not in str(error)
    assert said.count("checkpoint anchor/12 could not be written") == 3
    full.clear()
    outcome, said = train(root, tmp_path / "run")
    assert outcome.step == 12 and digits(tmp_path / "run") == uncut and "own checkpoint rolling/10" in said


def test_after_a_failure_it_tries_again_before_the_next_checkpoint_of_the_plan(root, tmp_path, full, monkeypatch):
    save, put, steps = loop.Checkpoints.save, loop.put_batch, []

    def noted(self, kind, step, *rest, **how):
        steps.append(step)
        save(self, kind, step, *rest, **how)

    def put_batch(*given):
        time.sleep(2.0 if steps[-1:] == [4] else 0.0)  # an update in which the failure becomes known, on any machine
        return put(*given)

    monkeypatch.setattr(retries, "FIRST_RETRY_S", 0.0)
    monkeypatch.setattr(loop.Checkpoints, "save", noted)
    monkeypatch.setattr(loop, "put_batch", put_batch)
    full |= {4}
    train(root, tmp_path / "run")
    assert steps[:3] == [2, 4, 5] and steps[-3:] == [8, 10, 12]
    assert names(tmp_path / "run")[0] == "anchor/12"


@pytest.fixture
def disk(tmp_path):
    """A function that mounts a file system of some size at `run/checkpoints`, or gives it another size."""
    folder, mounted = tmp_path / "run" / "checkpoints", []

    def sized(size):
        how = ["-o", f"remount,size={size}"] if mounted else ["-t", "tmpfs", "-o", f"size={size}", "tmpfs"]
        folder.mkdir(parents=True, exist_ok=True)
        if subprocess.run(["mount", *how, str(folder)], capture_output=True).returncode:
            pytest.skip("no file system may be mounted here")
        mounted.append(size)

    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("no file system may be mounted here")
    yield sized
    if mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_small_file_system_that_fills_up_for_real(root, uncut, tmp_path, disk, monkeypatch):
    run, put, steps = tmp_path / "run", loop.put_batch, iter(range(12))

    def put_batch(*given):
        if (step := next(steps)) == 0:
            disk("4M")
        elif step == 3:  # after the first checkpoint somebody else fills the disk
            while not names(run):
                time.sleep(0.01)
            with pytest.raises(OSError, match="No space"), open(run / "checkpoints" / "else", "wb", buffering=0) as f:
                while True:
                    f.write(bytes(4096))
        elif step == 9:
            assert names(run) == ["rolling/2"]
            disk("64M")
        return put(*given)

    monkeypatch.setattr(loop, "put_batch", put_batch)
    outcome, said = train(root, run)
    assert outcome.step == 12 and digits(run) == uncut
    assert "(No space left on device); the newest finished one is rolling/2, and stays" in said
    assert names(run)[:2] == ["anchor/12", "rolling/10"]
