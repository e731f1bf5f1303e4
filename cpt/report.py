"""Make the report of a run again, or compare several runs on one page.

  python -m cpt.report --workdir=runs/demo-3f9c2a71
  python -m cpt.report --workdir='runs/replay_share/*' --out=answer.html

One run: refreshes its summary.json and writes report.html into it (or to --out). Several runs (comma-separated; * and ?
are expanded, folders that hold no run are passed over): one page that overlays their curves and shows which is worth
having.
"""

from __future__ import annotations

import glob
from pathlib import Path

from absl import flags

from cpt.cli import run
from cpt.errors import ConfigError, RunError
from cpt.evaluators.rows import is_run
from cpt.reports.compare import write_comparison
from cpt.reports.page import write_report


def define_flags() -> None:
    """The command's flags; only defined when it is run, since other commands use the same names."""
    flags.DEFINE_list("workdir", [], "run directory; several as D1,D2,... or with * and ?")
    flags.DEFINE_string("out", None, "the page to write (default: report.html in the run directory)")


def main(argv: list[str]) -> None:
    """Read the flags, write the page, say where it is."""
    del argv
    print(f"report: {make(flags.FLAGS.workdir, flags.FLAGS.out)}")


def make(workdirs: list[str], out: str | None) -> Path:
    """The page of one run or of several; returns its path.

    Raises:
      ConfigError: no run directory given, or several without `out`.
      RunError: a folder is missing or no run directory, or a file cannot be read or written.
    """
    if not workdirs:
        raise ConfigError("--workdir: required; e.g. --workdir=runs/demo-3f9c2a71 or --workdir='runs/sweep/*'")
    dirs = [d for entry in workdirs for d in _expand(entry)]
    if len(dirs) == 1:
        return write_report(dirs[0], Path(out) if out else None)
    if not out:
        raise ConfigError(f"--out: required to compare {len(dirs)} runs; e.g. --out=answer.html")
    return write_comparison(dirs, Path(out))


def _expand(entry: str) -> list[Path]:
    """A pattern stands for the runs it matches. (A shell does not expand one inside `--workdir=...`.)"""
    if Path(entry).exists() or not glob.has_magic(entry):
        return [Path(entry)]
    found = [Path(p) for p in sorted(glob.glob(entry)) if is_run(Path(p))]
    if not found:
        raise RunError(f"{entry}: matches no run directory; check the pattern against `ls`")
    return found


if __name__ == "__main__":
    define_flags()
    run(main)
