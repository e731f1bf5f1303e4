"""Pictures show what the loop will ask for, step by step, and are drawn without an accelerator."""

import csv
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cpt import cli
from cpt.errors import ConfigError
from cpt.schedules.picture import BARS, _thinned, terminal_picture, trajectory, write_picture

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "configs" / "pile_to_slimpajama.py"


@pytest.fixture(scope="module")
def drawn():
    return trajectory("tiny", cli.read_plan(str(RECIPE), ["--config.phases.slimpajama.optimizer.policy=lr0_warm",
                                                          "--config.phases.slimpajama.optimizer.steps=5"]))  # fmt: skip


def test_every_step_is_what_the_loop_asks_for(drawn, tmp_path):
    with write_picture([drawn], tmp_path / "lr.csv").open() as f:
        rows = list(csv.DictReader(f))
    plan = drawn.plan
    assert len(rows) == plan.total_steps
    for step, row in enumerate(rows):
        clock = plan.clock(step)
        assert (int(row["step"]), int(row["tokens"]), row["phase"]) == (step, clock.tokens, clock.phase)
        assert float(row["lr"]) == plan.lr(step)
    assert [float(r["lr"]) for r in rows[300:305]] == [0.0] * 5 < [float(rows[305]["lr"])] * 5


def test_no_corner_is_cut(drawn):
    tokens, lr = _thinned(drawn)
    assert lr.max() == drawn.lr_T.max() and lr.min() == 0.0
    assert {int(t) for t in drawn.tokens_T[[0, 2, 3, 299, 300, 304, 305, 599]]} <= set(tokens.tolist())
    assert np.interp(drawn.tokens_T, tokens, lr) == pytest.approx(drawn.lr_T, abs=1e-9)


def test_png_and_html(drawn, tmp_path):
    other = trajectory("<other>", cli.read_plan(str(RECIPE), []))
    assert write_picture([drawn, other], tmp_path / "a" / "lr.png").read_bytes().startswith(b"\x89PNG")
    page = write_picture([drawn, other], tmp_path / "lr.html").read_text()
    assert "slimpajama" in page and "<other>" not in page and "cdn." not in page.split("</script>")[-2][-2000:]


def test_the_terminal_shows_phases_and_segments(drawn):
    name, bars, pile, slimpajama = terminal_picture([drawn]).splitlines()
    assert name == "tiny  (top 3e-3)" and set(bars[1:-1]) <= set(BARS) and BARS[7] in bars
    assert "ramp 3 > cosine 3e-3..3e-4" in pile and "614k to 1.23M tokens" in slimpajama


@pytest.mark.parametrize(
    ("out", "says"), [("lr.gif", "draws .png, .html, .csv, not '.gif'"), ("lr.csv", "one plan, 2")]
)
def test_what_cannot_be_written(drawn, tmp_path, out, says):
    with pytest.raises(ConfigError, match=says):
        write_picture([drawn, drawn], tmp_path / out)


def command(*arguments):
    return subprocess.run([sys.executable, "-m", "cpt.schedules", *arguments], capture_output=True, text=True, cwd=ROOT)


def test_the_command(tmp_path):
    started = time.monotonic()
    both = command(f"--config={RECIPE}:410m,{ROOT / 'configs' / 'rewarm_same_data.py'}")
    assert both.returncode == 0 and "pile_to_slimpajama_410m" in both.stdout and "rewarm_same_data" in both.stdout
    assert time.monotonic() - started < 30  # a timing is a benchmark; this only notices a backend that starts
    changed = command(f"--config={RECIPE}", "--config.phases.slimpajama.lr.kind=wsd", f"--out={tmp_path / 'lr.png'}")
    assert changed.returncode == 0 and (tmp_path / "lr.png").exists()
    for arguments, says in (
        ([], "--config: required"),
        (["--config=nope.py"], "--config=nope.py: no such file"),
        ([f"--config={RECIPE}", "--config.phases.slimpajama.lr.kind=wsdd"], "no 'wsdd' in cpt.schedules.library"),
        ([f"--config={RECIPE}", "--config.phases.slimpajama.lr.peek=1"], "peek"),
    ):
        wrong = command(*arguments)
        assert wrong.returncode == 2 and says in wrong.stderr and len(wrong.stderr.strip().splitlines()) == 1
