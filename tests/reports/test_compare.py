import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_run import write_run

from cpt.errors import ConfigError, RunError
from cpt.evaluators.summary import summarise
from cpt.report import make
from cpt.reports.compare import write_comparison
from cpt.reports.comparison import differing
from cpt.reports.comparisons.trade_off import Trade, pareto_front, trade

VALUES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12)


@given(VALUES)
def test_pareto_front_is_what_no_run_dominates(values):
    trades = [Trade(str(i), (f, None), (g, None)) for i, (f, g) in enumerate(values)]
    front = {t.name for t in pareto_front(trades)}
    for i, (f, g) in enumerate(values):
        beaten = any((a <= f and b >= g) and (a, b) != (f, g) for a, b in values)
        assert (str(i) in front) is not beaten


def test_trade_of_a_run(finished_run):
    summary = summarise(finished_run)
    t = trade("r", summary)
    assert t.forgetting[0] == pytest.approx(summary["sets"]["pile"]["forgetting"])
    assert t.learned[0] == pytest.approx(-summary["sets"]["slimpajama"]["forgetting"])
    assert t.learned[1] > 0


def test_averaging_two_sets_adds_half_widths_in_squares():
    def part(value, ci):
        return {"learned_in": "a", "upstream": True, "forgetting": value, "forgetting_ci95": ci}

    sets = {
        "x": part(0.2, [0.1, 0.3]),
        "y": part(0.4, [0.4, 0.4]),
        "z": {**part(-1.0, None), "learned_in": "b", "upstream": False},
    }
    t = trade("r", {"sets": sets, "matrix": {"phases": ["before", "a", "b"]}})
    assert t.forgetting == pytest.approx((0.3, 0.05))
    assert t.learned == (1.0, None)


def test_only_differing_fields_are_listed():
    configs = {"a": {"seed": 0, "m": {"x": 1, "y": 2}}, "b": {"seed": 0, "m": {"x": 3, "y": 2}, "z": 1}}
    assert differing(configs) == {"m.x": {"a": "1", "b": "3"}, "z": {"a": "–", "b": "1"}}


def sweep(tmp_path):
    for i, (share, lasting) in enumerate([(0.0, 0.5), (0.05, 0.16), (0.25, 0.03)]):
        write_run(tmp_path / "sweep" / f"share-{share}", replay=share, lasting=lasting, seed=i)
    (tmp_path / "sweep" / "notes").mkdir()
    return tmp_path / "sweep"


def test_command_compares_what_a_pattern_matches(tmp_path):
    page = make([f"{sweep(tmp_path)}/*"], str(tmp_path / "answer.html")).read_text()
    assert "3 runs compared" in page and "share-0.25 forgot least" in page
    assert "3 of 3 runs are on the Pareto front" in page
    assert "phases.slimpajama.replay.share" in page
    assert not (tmp_path / "sweep" / "share-0.0" / "summary.json").exists()


def test_command_errors(tmp_path, finished_run):
    with pytest.raises(ConfigError, match="--workdir: required"):
        make([], None)
    with pytest.raises(ConfigError, match="--out: required to compare 2 runs"):
        make([str(finished_run)] * 2, None)
    with pytest.raises(RunError, match="named twice"):
        make([str(finished_run)] * 2, str(tmp_path / "x.html"))
    with pytest.raises(RunError, match="matches no run"):
        make([f"{tmp_path}/none*"], None)


def test_runs_of_one_folder_name_are_told_apart(tmp_path):
    paths = [write_run(tmp_path / d / "run") for d in ("a", "b")]
    page = write_comparison(paths, tmp_path / "out.html").read_text()
    assert "a/run" in page and "b/run" in page


def command(*args):
    return subprocess.run([sys.executable, "-m", "cpt.report", *args], capture_output=True, text=True, check=False)


def test_the_command_itself(finished_run, tmp_path):
    good = command(f"--workdir={finished_run}")
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout.strip() == f"report: {finished_run / 'report.html'}"
    bad = command(f"--workdir={tmp_path / 'nowhere'}")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.count("\n") == 1 and bad.stderr.startswith("run error: ")
