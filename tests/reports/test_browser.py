"""The page in a real browser: every figure draws and the console stays silent."""

import re
import shutil
import subprocess

import pytest
from synthetic_run import write_run

from cpt.reports.compare import write_comparison
from cpt.reports.page import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=10000",
    "--enable-logging=stderr",
    "--v=0",
]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome"),
]


def opened(page, tmp_path, *more):
    command = [CHROMIUM, *FLAGS, *more, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def drawn(dom):
    """Per figure of the rendered page its number of plotly canvases, and its HTML."""
    figures = re.findall(r"<figure>.*?</figure>", dom, re.DOTALL)
    return [len(re.findall(r'class="main-svg"', f)) for f in figures], figures


@pytest.mark.parametrize("dark", [False, True])
def test_report_draws_every_figure_silently(finished_run, tmp_path, dark):
    more = ["--blink-settings=preferredColorScheme=0"] if dark else []
    dom, console = opened(write_report(finished_run), tmp_path, *more)
    canvases, figures = drawn(dom)
    assert console == []
    assert len(figures) == 7
    assert all(canvases), canvases
    lines = [len(re.findall(r'class="js-line" d="M[^"]{20,}', f)) for f in figures]
    assert [lines[0], lines[5]] == [3, 3]  # two sets and the rate; batch and two sources
    assert lines[1] >= 1
    assert len(re.findall(r'class="heatmap-label"', figures[2])) == 6
    assert len(re.findall(r'<g class="point"><path', figures[4])) >= 5


def test_hostile_names_run_nothing(tmp_path):
    run = write_run(tmp_path / "r", old="</script><img src=x onerror=console.error('x')>", new="a\"b'c & <i>d</i>")
    dom, console = opened(write_report(run), tmp_path)
    canvases, _ = drawn(dom)
    assert console == []
    assert len(canvases) == 7 and all(canvases)


def test_comparison_draws_every_figure_silently(tmp_path):
    runs = [write_run(tmp_path / f"r{i}", lasting=0.1 * i, seed=i) for i in range(3)]
    dom, console = opened(write_comparison(runs, tmp_path / "answer.html"), tmp_path)
    canvases, _ = drawn(dom)
    assert console == []
    assert len(canvases) == 4 and all(canvases)


def test_a_broken_script_would_be_noticed(finished_run, tmp_path):
    page = write_report(finished_run)
    page.write_text(page.read_text().replace("Plotly.newPlot", "Plotly.newPlots"))
    dom, console = opened(page, tmp_path)
    assert console and not any(drawn(dom)[0])
