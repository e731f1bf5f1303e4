"""Make the report of a run again, or compare several runs on one page.

  python -m cpt.report --workdir=runs/demo-3f9c2a71
  python -m cpt.report --workdir='runs/replay_share/*' --out=answer.html --sort=sets.pile.forgetting
  python -m cpt.report --workdir='runs/replay_share/*' --out=answer.html --export=paper/    # CSV, LaTeX, PNG, SVG
  python -m cpt.report --workdir=runs/demo-3f9c2a71 --follow                                # again while it trains
  python -m cpt.report --list=runs/                                                         # what is there

One run: refreshes its summary.json and writes report.html into it (or to --out). Several runs (comma-separated; * and ?
are expanded, folders that hold no run are passed over): one page that overlays their curves, takes runs that differ in
their seed together, and shows which is worth having. The first config is the one that others are compared with.
"""

from __future__ import annotations

import glob
import time
from pathlib import Path

from absl import flags

from cpt.cli import run
from cpt.errors import ConfigError, RunError
from cpt.evaluators.rows import is_run, read_run
from cpt.reports.compare import write_comparison
from cpt.reports.comparison import compared
from cpt.reports.page import write_report

FOLLOW_S = 20.0


def define_flags() -> None:
    """The command's flags; only defined when it is run, since other commands use the same names."""
    flags.DEFINE_list("workdir", [], "run directory; several as D1,D2,... or with * and ?")
    flags.DEFINE_string("out", None, "the page to write (default: report.html in the run directory)")
    flags.DEFINE_string("sort", None, "number of summary.json to sort several runs by, e.g. sets.pile.forgetting")
    flags.DEFINE_string("reference", None, "run directory that several are measured against, a joint training, say")
    flags.DEFINE_string("export", None, "folder for CSV, LaTeX, PNG and SVG of the same")
    flags.DEFINE_bool("follow", False, f"write the page again every {FOLLOW_S:.0f} s until the runs are finished")
    flags.DEFINE_string("list", None, "folder of runs: print what is there and how far each is")


def main(argv: list[str]) -> None:
    """Read the flags, write the page, say where it is."""
    del argv
    given = flags.FLAGS
    if given.list is not None:
        from rich.console import Console

        from cpt.reports.run_list import run_table

        Console(highlight=False).print(run_table(Path(given.list).expanduser()))
        return
    print(f"report: {make(given.workdir, given.out, given.sort, reference=given.reference)}")
    if given.export:
        from cpt.reports.export import export  # matplotlib takes its time

        files = export(compared(directories(given.workdir), given.sort), Path(given.export).expanduser())
        print(f"exported {len(files)} files to {given.export}")
    if given.follow:
        follow(given.workdir, given.out, given.sort, given.reference)


def make(
    workdirs: list[str],
    out: str | None,
    sort: str | None = None,
    again_s: float | None = None,
    reference: str | None = None,
) -> Path:
    """The page of one run or of several; returns its path. The rest is as in `write_comparison`.

    Raises:
      ConfigError: no run directory given, several without `out`, or `sort` is no number of theirs.
      RunError: a folder is missing or no run directory, or a file cannot be read or written.
    """
    dirs = directories(workdirs)
    if len(dirs) == 1 and not reference:
        return write_report(dirs[0], Path(out) if out else None, again_s=again_s)
    if not out:
        raise ConfigError(f"--out: required to compare {len(dirs)} runs; e.g. --out=answer.html")
    return write_comparison(dirs, Path(out), sort, again_s, Path(reference) if reference else None)


def follow(
    workdirs: list[str], out: str | None, sort: str | None, reference: str | None = None, every_s: float = FOLLOW_S
) -> None:
    """Write the page again whenever rows were added, until all the runs are finished; a browser follows.

    Ctrl-C ends it.
    """
    seen = None
    try:
        while True:
            runs = [read_run(d) for d in directories(workdirs)]
            steps = [(r.last_step, r.plan.get("total_steps")) for r in runs]
            if steps != seen:
                path, seen = make(workdirs, out, sort, every_s, reference), steps
                told = ", ".join(f"{done:,} of {total:,}" if total else f"{done:,}" for done, total in steps[:8])
                print(f"{time.strftime('%H:%M:%S')} {path}: {told}{' ...' if len(steps) > 8 else ''}", flush=True)
            if all(total is not None and done >= total for done, total in steps):
                return
            time.sleep(every_s)
    except KeyboardInterrupt:
        return


def directories(workdirs: list[str]) -> list[Path]:
    """The run directories that were asked for.

    Raises:
      ConfigError: none was.
      RunError: a pattern matches none.
    """
    if not workdirs:
        raise ConfigError("--workdir: required; e.g. --workdir=runs/demo-3f9c2a71 or --workdir='runs/sweep/*'")
    return [d for entry in workdirs for d in _expand(entry)]


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
