"""Nothing that goes wrong costs what is on disk, and each thing says in one line what to do."""

import errno
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import toy
from rich.console import Console

from cpt.config import load
from cpt.data.ids import IdFile
from cpt.data.preparing import open_sources
from cpt.errors import DataError, RunError
from cpt.models import base
from cpt.optimizers import building as optimizers
from cpt.plan import resolve
from cpt.training import checkpoint, faults, logs, loop, step, storage, workdir
from cpt.training.feed import Data
from cpt.training.machine import abstract_state
from cpt.training.sharding import make_mesh

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("safety")


def config_of(root, steps=6, rolling=2):
    config = toy.get_config(str(root))
    config.phases.first.steps, config.phases.second.steps = steps, steps
    config.checkpoints.rolling.fraction, config.checkpoints.rolling.steps = None, rolling
    config.checkpoints.grid = None
    return config


def train(config, into, console=None):
    plan = resolve(load(config))
    sources, tokenizer = open_sources(plan.spec.sources, plan.spec.tokenizer, Path(plan.spec.stores), lambda _: None)
    workdir.prepare_workdir(into)
    return loop.train(plan, Data(sources, tokenizer), into, console or Console(file=io.StringIO()))


@pytest.fixture(scope="module")
def finished(root):
    train(config_of(root), root / "finished")
    return root / "finished"


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def damage(run_dir):
    for saved in checkpoint.Checkpoints(run_dir / "checkpoints").finished():
        (saved.path / "meta" / "metadata").write_text("{}")


def test_a_run_whose_checkpoints_are_all_damaged_is_left_as_it_is(root, finished, tmp_path):
    copy = Path(shutil.copytree(finished, tmp_path / "run"))
    damage(copy)
    before = contents(copy)
    config = config_of(root)
    config.phases.second.steps = 9
    with pytest.raises(RunError, match=r"no full checkpoint can be read \(\d tried; .*nothing was changed"):
        train(config, copy)
    assert contents(copy) == before


@pytest.mark.parametrize("fault", ["RESOURCE_EXHAUSTED: out of memory", "PERMISSION_DENIED: Error opening"])
def test_what_the_machine_cannot_read_now_is_not_called_damaged(root, finished, tmp_path, monkeypatch, fault):
    copy = Path(shutil.copytree(finished, tmp_path / "run"))
    before = contents(copy)

    def broken(*_, **__):
        raise ValueError(fault)

    monkeypatch.setattr(storage.ocp.Checkpointer, "restore", broken)
    config = config_of(root)
    config.phases.second.steps = 9
    with pytest.raises(RunError, match=rf"cannot be read now \({fault}"):
        train(config, copy)
    assert contents(copy) == before


def test_memory_that_does_not_suffice_to_verify_is_not_damage(root, finished, tmp_path, monkeypatch):
    copy = Path(shutil.copytree(finished, tmp_path / "run"))
    before = contents(copy)

    def too_much(_):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")

    monkeypatch.setattr(storage, "digests", too_much)
    with pytest.raises(RunError, match=r"cannot be read now \(RESOURCE_EXHAUSTED"):
        train(config_of(root), copy)
    assert contents(copy) == before


@pytest.mark.parametrize(
    ("error", "machine"),
    [
        (OSError(errno.ESTALE, "Stale file handle"), True),
        (MemoryError(), True),
        (ValueError("Failed to write: No space left on device [os_error_code='28']"), True),
        (FileNotFoundError(errno.ENOENT, "No such file"), False),
        (ValueError("DATA_LOSS: checksum mismatch"), False),
    ],
)
def test_what_is_the_machines_fault(error, machine):
    assert faults.is_machine_fault(error) == machine
    assert "\n" not in faults.reason(error) and len(faults.reason(error)) <= 200


SAFE = r"No space left on device\); checkpoints: the newest finished one is rolling/\d; make room there"


def test_a_row_or_plan_that_cannot_be_written_names_the_newest_checkpoint(root, tmp_path, monkeypatch):
    into = tmp_path / "run"

    def full(self, name, value, step):
        if step >= 5:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(logs.Board, "scalar", full)
    with pytest.raises(RunError, match=SAFE):
        train(config_of(root), into)
    monkeypatch.setattr(workdir.os, "replace", lambda *_: full(None, None, None, 9))
    with pytest.raises(RunError, match=SAFE):
        train(config_of(root), into)


def test_a_second_process_is_kept_out(root, tmp_path):
    (tmp_path / "run").mkdir()
    with workdir.lock(tmp_path / "run"):
        flags = [f"--config={toy.__file__}:{root}", f"--workdir={tmp_path / 'run'}"]
        done = subprocess.run([sys.executable, "-m", "cpt.main", *flags], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 2
        line = done.stderr.strip()
        assert f"another process trains there (process {os.getpid()} on " in line and "\n" not in line
    assert [p.name for p in (tmp_path / "run").iterdir()] == [".lock"]
    with workdir.lock(tmp_path / "run"):  # free again
        pass


def test_where_there_are_no_locks_it_goes_on_with_a_warning(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(workdir.fcntl, "flock", unsupported)
    said = []
    with workdir.lock(tmp_path, said.append):
        pass
    assert len(said) == 1 and "cannot be locked" in said[0] and "No locks available" in said[0]


@pytest.fixture
def poisoned(monkeypatch):
    """Gradients of every update from step `poisoned.first` on are NaN."""
    made = step.make_train_step

    class Poison:
        first = 8

    def make(*args, **options):
        train_step = made(*args, **options)

        def poison(state, batch, lr, multipliers_K, *rest):
            # Told by the learning rate, the only argument that knows the step; -1 marks a step to spoil.
            bad = jax.numpy.where(lr < 0, jax.numpy.nan, 1.0)
            return train_step(state, batch, jax.numpy.abs(lr), multipliers_K * bad, *rest)

        return poison

    monkeypatch.setattr(step, "make_train_step", make)
    plan_lr = loop.RunPlan.lr
    monkeypatch.setattr(loop.RunPlan, "lr", lambda self, t: plan_lr(self, t) * (-1 if t >= Poison.first else 1))
    return Poison


def test_a_streak_pushes_out_no_checkpoint_of_before_it(root, tmp_path, poisoned):
    config = config_of(root, steps=10, rolling=1)
    config.checkpoints.keep_rolling = 2
    poisoned.first = 13
    into = tmp_path / "run"
    with pytest.raises(RunError) as stopped:
        train(config, into)
    # Those of the streak are not saved.
    assert [s.step for s in checkpoint.Checkpoints(into / "checkpoints").finished(("rolling",))] == [13, 12]
    line = str(stopped.value)
    assert "5 updates in a row were skipped, the last, not finite, at step 17" in line
    assert f"--config.init.from_run={into} --config.init.step=13" in line
    rows = [json.loads(text, parse_constant=pytest.fail) for text in (into / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if r.get("skipped")] == [r["step"] for r in rows][13:]


def test_a_streak_over_a_phase_edge_goes_on_counting_after_a_restart(root, tmp_path, poisoned):
    config = config_of(root, rolling=1)
    config.guard.max_skipped = 3
    for name in ("first", "second"):
        config.phases[name].lr.update(kind="constant", value=1e-3)
    poisoned.first = 5
    into = tmp_path / "run"
    for _ in range(2):
        # The edge at step 6 is saved all the same; started again from there, two more are enough.
        with pytest.raises(RunError, match=r"3 updates in a row .* at step 7; .*--config\.init\.step=5"):
            train(config, into)
        assert max(s.step for s in checkpoint.Checkpoints(into / "checkpoints").finished()) == 6


def test_a_stop_before_the_first_update_saves_nothing(root, tmp_path, monkeypatch):
    enter = loop.StopRequest.__enter__

    def stopped_at_once(self):
        enter(self)
        signal.raise_signal(signal.SIGINT)
        return self

    monkeypatch.setattr(loop.StopRequest, "__enter__", stopped_at_once)
    outcome = train(config_of(root), tmp_path / "run")
    assert (outcome.step, outcome.stopped_by) == (0, "SIGINT")
    assert checkpoint.Checkpoints(tmp_path / "run" / "checkpoints").finished() == []


def test_a_signal_that_comes_while_parameters_are_saved_is_not_obeyed_before_the_rest_is(root, tmp_path, monkeypatch):
    config = config_of(root, rolling=100)
    config.checkpoints.grid = toy.c.duration(steps=3)
    save = loop.Checkpoints.save

    def interrupted(self, kind, step, *rest, **how):
        if kind == "grid":
            signal.raise_signal(signal.SIGTERM)
        save(self, kind, step, *rest, **how)

    monkeypatch.setattr(loop.Checkpoints, "save", interrupted)
    outcome = train(config, tmp_path / "run")
    assert (outcome.step, outcome.stopped_by) == (4, "SIGTERM")
    assert [str(s) for s in checkpoint.Checkpoints(tmp_path / "run" / "checkpoints").finished()] == ["rolling/4"]


def test_what_it_names_can_be_started_from(root, finished, tmp_path):
    config = config_of(root, steps=2)
    config.init.from_run, config.init.step = str(finished), 6
    out = io.StringIO()
    assert train(config, tmp_path / "next", Console(file=out, width=300)).step == 4
    assert f"initialised params from {finished}, checkpoint anchor/6" in out.getvalue()


def with_another_optimizer(config):
    config.optimizer.kind = "cpt.optimizers.adamw:adamw"
    config.init.what = "params+opt"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.model.update(width=64), r"model\.width is 32 in .*, 64 here; set model\.width to 32"),
        (lambda c: c.init.update(step=5, what="params+opt"), r"no full checkpoint of step 5; nearest: 6, "),
        (with_another_optimizer, r"optimizer\.kind is 'adamw' in .*init\.what=params"),
        (lambda c: c.model.update(gelu="exact"), r"model\.gelu is 'tanh'"),
    ],
)
def test_a_start_that_does_not_fit_is_named(root, finished, tmp_path, change, says):
    config = config_of(root)
    config.init.from_run = str(finished)
    change(config)
    with pytest.raises(RunError, match=says):
        train(config, tmp_path / "next")


def test_another_tokenizer_is_noticed(root, finished, tmp_path):
    config = config_of(root)
    config.init.from_run = str(finished)
    config.stores = str(tmp_path / "stores")
    config.tokenizer.kind, config.tokenizer.vocab_size, config.tokenizer.train_on = "bpe", 257, "old"
    with pytest.raises(RunError, match="trained with another tokenizer"):
        train(config, tmp_path / "next")


@pytest.mark.parametrize(("policy", "kept"), [("keep", True), ("reset", False)])
def test_the_first_phase_too_decides_about_moments_that_were_brought_along(root, finished, tmp_path, policy, kept):
    config = config_of(root, steps=2)
    config.init.update(from_run=str(finished), what="params+opt")
    config.phases.first.optimizer.policy = policy
    into = tmp_path / "next"
    train(config, into)
    before, after = updates_counted(config, finished, 12), updates_counted(config, into, 2)
    assert before == 6  # the second phase reset it
    assert after == (before + 2 if kept else 2)


def updates_counted(config, run_dir, at):
    """The bias-correction count in the anchor of step `at`."""
    plan = resolve(load(config))
    tx = optimizers.build(plan)
    abstract = abstract_state(base.build(plan.spec.model), tx, make_mesh(plan.spec.mesh, 8))
    (saved,) = [s for s in checkpoint.Checkpoints(run_dir / "checkpoints").finished(("anchor",)) if s.step == at]
    return max(int(x) for x in jax.tree.leaves(checkpoint.restore(saved, abstract)[0].opt_state) if x.ndim == 0)


def test_an_evaluation_at_the_step_of_a_resume_is_kept_where_the_new_plan_has_none(root, tmp_path):
    short, longer, into = config_of(root), config_of(root), tmp_path / "run"
    for config in (short, longer):
        for name in ("first", "second"):
            config.phases[name].lr.update(kind="constant", value=1e-3)
    longer.phases.second.steps = 9  # goes on from step 12, which is no phase end any more
    longer.phases.second.evaluate.update(dense=0, geometric=0)
    longer.phases.second.evaluate.every.update(steps=8, fraction=None)

    def evaluated():
        return [json.loads(line) for line in (into / "eval.jsonl").read_text().splitlines()]

    train(short, into)
    at_12 = [r for r in evaluated() if r["step"] == 12]
    train(longer, into)
    assert at_12 and [r for r in evaluated() if r["step"] == 12] == at_12
    assert evaluated()[-1]["step"] == 15


@pytest.mark.slow
def test_a_full_disk_says_what_is_safe(root, finished, tmp_path):
    """A limit on the size of files stands for the full disk: the row that does not fit fails in the same way."""
    flags = [f"--config={toy.__file__}:{root}", f"--workdir={tmp_path / 'run'}"]

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))

    cached = {**os.environ, "JAX_COMPILATION_CACHE_DIR": "", "JAX_ENABLE_COMPILATION_CACHE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "cpt.main", *flags], capture_output=True, text=True, cwd=ROOT, preexec_fn=limited,
        env=cached,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "make room there and run the same command again" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    free = subprocess.run([sys.executable, "-m", "cpt.main", *flags], capture_output=True, text=True, cwd=ROOT)
    assert free.returncode == 0, free.stderr


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_data_is_prepared_is_one_line(root, tmp_path, asked):
    script = (
        "import signal, sys, cpt.training.run as r, cpt.main as m\n"
        f"def stop(*a): signal.raise_signal({int(asked)})\n"
        "r.open_sources = stop\n"
        "from cpt import cli\n"
        "cli.run(m.main)\n"
    )
    flags = [f"--config={toy.__file__}:{root}", f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run([sys.executable, "-c", script, *flags], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 75, done.stderr
    assert "go on with: python -m cpt.main --config=" in done.stdout and "Traceback" not in done.stderr


def test_the_rows_of_a_set_lie_over_all_of_its_split_and_are_written_down(finished):
    sets = json.loads((finished / "eval_sets.json").read_text())
    for s in sets.values():
        assert len(s["rows"]) == len(s["documents"]) and np.all(np.diff(s["rows"]) > 0)
        assert np.all(np.diff(s["documents"]) >= 0)


def test_tensorboard_reads_what_the_board_wrote(tmp_path):
    for start in (0, 2):
        board = logs.Board(tmp_path, start, flush_s=0)
        board.scalar("train/loss", 2.5, start + 1)
        board.scalar("train/lr", 0.25, start + 1)
        board.scalar("train/loss", 1.5, start + 2)
        assert any(b"train/loss" in p.read_bytes() for p in tmp_path.iterdir())  # there before it is closed
        board.close()
    events = []
    for path in sorted(tmp_path.iterdir()):
        for record in records(path.read_bytes()):
            event = logs.Event()
            event.ParseFromString(record)
            events.append(event)
    of_steps = [(e.step, [(v.tag, v.simple_value) for v in e.summary.value]) for e in events if e.summary.value]
    assert of_steps == [
        (1, [("train/loss", 2.5), ("train/lr", 0.25)]), (2, [("train/loss", 1.5)]),
        (3, [("train/loss", 2.5), ("train/lr", 0.25)]), (4, [("train/loss", 1.5)]),
    ]  # fmt: skip
    # What makes TensorBoard drop the points of an abandoned future.
    assert [e.step for e in events if e.session_log.status == logs.SessionLog.START] == [0, 2]


def records(raw):
    """The records of a TFRecord file: length, its checksum, the bytes, their checksum."""
    while raw:
        n = int.from_bytes(raw[:8], "little")
        yield raw[12 : 12 + n]
        raw = raw[16 + n :]


def test_a_shard_that_is_cut_off_while_training_costs_nothing(root, finished, tmp_path, monkeypatch):
    """The run saves where it is and says so; with the shard back it goes on to the same digits."""
    config = config_of(root)
    step_of_loss, real = 7, loop.put_batch

    def put(mesh, batch, sequences):
        nonlocal step_of_loss
        step_of_loss -= 1
        return real(mesh, batch, sequences)

    read = IdFile.read

    def vanished(self, start, count):
        if step_of_loss <= 0:
            raise DataError(f"{self.paths[0]}: ends before byte 7; it was cut off since it was opened")
        return read(self, start, count)

    monkeypatch.setattr(loop, "put_batch", put)
    monkeypatch.setattr(IdFile, "read", vanished)
    monkeypatch.setattr("cpt.data.loader.READ_AHEAD", (4, 4))  # the whole run would have been read by then
    with pytest.raises(
        DataError, match=r"^data error: .*cut off .*; checkpoints: the newest finished one is rolling/\d+;"
    ):
        train(config, tmp_path / "run")
    step_of_loss = 10**9
    assert train(config, tmp_path / "run").step == 12
    for name in ("metrics.jsonl", "eval.jsonl"):
        keep = ("step", "loss", "lr", "set", "nats")
        rows = [[json.loads(t) for t in (d / name).read_text().splitlines()] for d in (tmp_path / "run", finished)]
        assert [[r.get(k) for k in keep] for r in rows[0]] == [[r.get(k) for k in keep] for r in rows[1]]
