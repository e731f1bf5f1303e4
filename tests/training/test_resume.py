"""A run that is cut anywhere and started again leaves the same rows as one that was never cut, bit for bit."""

import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from cpt.config import load
from cpt.data.preparing import open_sources
from cpt.evaluators.rows import write_atomic
from cpt.plan import resolve
from cpt.training import checkpoint, loop, recorder, workdir

TIMINGS = ("tokens_per_second", "data_wait_s", "step_s")


class Killed(BaseException):
    """Stands for kill -9 inside one process: nothing after it runs, no file is closed."""


def quiet() -> Console:
    return Console(file=open(os.devnull, "w"))


def train(config, root: Path, run: Path):
    plan = resolve(load(config))
    sources, tokenizer = open_sources(plan.spec.sources, plan.spec.tokenizer, root / "stores", lambda _: None)
    workdir.prepare_workdir(run)
    workdir.claim(run, plan, workdir.newest_step(run))
    return loop.train(plan, loop.Data(sources, tokenizer), run, quiet())


def rows(run: Path, name: str) -> list[dict]:
    out = [json.loads(line) for line in (run / name).read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in out]


def assert_same_history(a: Path, b: Path) -> None:
    for name in ("metrics.jsonl", "eval.jsonl", "eval_sequences.jsonl"):
        assert rows(a, name) == rows(b, name), name
    assert json.loads((a / "ledger.json").read_text()) == json.loads((b / "ledger.json").read_text())


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """An uninterrupted run of the toy recipe: (config, root, run directory)."""
    import toy

    root = tmp_path_factory.mktemp("reference")
    config = toy.get_config(str(root))
    config.phases.first.steps, config.phases.second.steps = 7, 9
    config.checkpoints.rolling.fraction, config.checkpoints.rolling.steps = None, 3
    run = root / "uncut"
    outcome = train(config, root, run)
    assert outcome.step == 16 and outcome.stopped_by is None
    return config, root, run


def test_the_reference_run_is_complete(reference):
    _, _, run = reference
    assert [r["step"] for r in rows(run, "metrics.jsonl")] == list(range(1, 17))
    grid = {r["step"] for r in rows(run, "eval.jsonl")}
    assert {0, 7, 8, 9, 10, 11, 15, 16} <= grid  # both switches, dense after the second
    ledger = json.loads((run / "ledger.json").read_text())
    assert ledger["exact"] and ledger["totals"]["tokens_consumed"] == 16 * 8 * 32


@pytest.mark.slow
def test_cut_at_every_step_twice_in_a_row(reference, monkeypatch):
    """Killed after each update of the run in turn, always resumed from what is on disk: 16 cuts, 17 starts."""
    config, root, uncut = reference
    run = root / "cut"
    dispatched, save, savers = recorder.Recorder.trained, checkpoint.Checkpoints.save, []

    def noted(self, *args, **how):
        savers.append(self)
        save(self, *args, **how)

    monkeypatch.setattr(checkpoint.Checkpoints, "save", noted)
    for cut in range(16):

        def killed_after(self, step, *args, cut=cut):
            dispatched(self, step, *args)
            if step == cut:
                raise Killed

        monkeypatch.setattr(recorder.Recorder, "trained", killed_after)
        with pytest.raises(Killed):
            train(config, root, run)
        # The threads of a process that is killed die with it; here they would write into the next one's files.
        for saver in savers:
            saver.wait()
    monkeypatch.setattr(recorder.Recorder, "trained", dispatched)
    assert train(config, root, run).step == 16
    assert_same_history(uncut, run)


def test_half_written_lines_and_rows_of_the_future_are_cut(reference, monkeypatch):
    config, root, uncut = reference
    run = root / "torn"
    shutil.copytree(uncut, run)
    shutil.rmtree(run / "checkpoints" / "anchor" / "16")  # back to the rolling checkpoint of step 13
    with (run / "metrics.jsonl").open("a") as f:
        f.write('{"step": 17, "loss": 1.0, "phase": "second"}\n{"step": 18, "lo')
    train(config, root, run)
    assert_same_history(uncut, run)


def test_flipped_bit_is_noticed_named_and_the_one_before_is_used(reference, capsys):
    config, root, uncut = reference
    run = root / "flipped"
    shutil.copytree(uncut, run)
    newest = run / "checkpoints" / "anchor" / "16"
    data = max((p for p in (newest / "params").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    raw = bytearray(data.read_bytes())
    raw[len(raw) // 2] ^= 0b1000
    data.write_bytes(raw)
    plan = resolve(load(config))
    sources, tokenizer = open_sources(plan.spec.sources, plan.spec.tokenizer, root / "stores", lambda _: None)
    loop.train(plan, loop.Data(sources, tokenizer), run, Console(width=500))
    said = capsys.readouterr().out
    assert "checkpoint anchor/16 is damaged (params" in said or "checkpoint anchor/16 is damaged (unreadable" in said
    assert "own checkpoint rolling/13" in said
    assert (run / "checkpoints" / "damaged" / "anchor-16").is_dir()
    assert_same_history(uncut, run)


@pytest.mark.parametrize("victim", ["meta", "truncate", "remove"])
def test_other_damage_falls_back_too(reference, victim, tmp_path):
    config, root, uncut = reference
    run = tmp_path / "run"
    shutil.copytree(uncut, run)
    newest = run / "checkpoints" / "anchor" / "16"
    if victim == "meta":
        meta = newest / "meta" / "metadata"
        meta.write_text(meta.read_text().replace('"tokens": 4096', '"tokens": 4097'))
    else:
        for data in [p for p in (newest / "opt_state").rglob("*") if p.is_file() and p.parent.name == "d"]:
            data.unlink() if victim == "remove" else data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    train(config, root, run)
    assert (run / "checkpoints" / "damaged" / "anchor-16").is_dir()
    assert_same_history(uncut, run)


def test_extending_the_future_in_place_keeps_the_past(reference, tmp_path):
    """A third phase is appended to a finished run: it goes on in the same directory, and the change is recorded."""
    import toy

    config, root, uncut = reference
    run = tmp_path / "run"
    shutil.copytree(uncut, run)
    longer = copy.deepcopy(config)
    longer.order = ("first", "second", "third")
    longer.phases.third = toy.c.phase(steps=4, mix={"old": 1.0}, lr=toy.c.lr(kind="constant"))
    assert train(longer, root, run).step == 20
    assert rows(run, "metrics.jsonl")[:16] == rows(uncut, "metrics.jsonl")
    assert json.loads((run / "plan.json").read_text())["history"] == [
        {"hash": resolve(load(config)).hash, "until_step": 16}
    ]


@pytest.mark.slow
def test_kill_9_and_sigterm_of_the_real_command(reference, tmp_path):
    """The command is killed at random moments, once politely; the rows at the end are those of the uncut command."""
    import toy

    root = tmp_path / "data"
    toy.write_corpora(root)
    command = [sys.executable, "-m", "cpt.main", f"--config={Path(toy.__file__)}:{root}"]
    command += ["--config.phases.first.steps=60", "--config.phases.second.steps=60"]
    uncut, cut = tmp_path / "uncut", tmp_path / "cut"
    subprocess.run([*command, f"--workdir={uncut}"], check=True, capture_output=True)
    rng = random.Random(0)
    # A relative directory, as the default one is.
    command.append("--workdir=cut")
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
        wait_for_progress(cut, process, more=rng.randint(5, 25))
        process.send_signal(number)
        out, _ = process.communicate(timeout=60)
        if number == signal.SIGTERM:
            assert process.returncode in (75, 0) and ("go on with: python -m cpt.main" in out or "report:" in out)
    last = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    assert "initialised from own checkpoint" in last.stdout
    assert_same_history(uncut, cut)


def wait_for_progress(run: Path, process: subprocess.Popen, more: int) -> None:
    """Return once `more` rows were written after this start, or the process ended."""
    path, deadline = run / "metrics.jsonl", time.monotonic() + 60
    started = None
    while process.poll() is None and time.monotonic() < deadline:
        lines = len(path.read_text().splitlines()) if path.exists() else 0
        started = lines if started is None or lines < started else started
        if lines >= started + more:
            return
        time.sleep(0.01)


def test_cut_keeps_only_whole_rows(tmp_path):
    from cpt.training.logs import cut

    path = tmp_path / "rows.jsonl"
    write_atomic(path, '{"step": 1}\n{"step": 2}\n{"step": 3')
    cut(path, lambda row: row["step"] <= 1)
    assert path.read_text() == '{"step": 1}\n'
