"""What the tests of `launch/` share: running a script with programs of one's own in front of PATH."""

import os
import subprocess
import sys
from pathlib import Path

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
STUB = f"{sys.executable} {Path(__file__).with_name('stub_run.py')}"
# Settings of whoever runs the tests must not reach the scripts.
CLEAN = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "TMPDIR", "LANG")}


def launch(script, *flags: str, cwd: Path | None = None, programs: Path | None = None, **env: str):
    """Run `launch/<script>` to its end; `programs` is a folder in front of PATH."""
    path = f"{programs}:{CLEAN['PATH']}" if programs else CLEAN["PATH"]
    return subprocess.run(
        ["bash", str(LAUNCH / script), *flags],
        cwd=cwd,
        env=CLEAN | {"PATH": path} | env,
        capture_output=True,
        text=True,
        timeout=60,
    )


def program(folder: Path, name: str, text: str) -> Path:
    """An executable shell script `name` in `folder`; returns the folder."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/usr/bin/env bash\n{text}\n")
    file.chmod(0o755)
    return folder
