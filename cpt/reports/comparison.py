"""Several runs as the page that compares them sees them: named, summarised, in groups of seeds, in order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cpt.errors import RunError
from cpt.evaluators.formatting import DASH
from cpt.evaluators.naming import flatten
from cpt.evaluators.objective import objective
from cpt.evaluators.replicates import Group, replicates
from cpt.evaluators.rows import RunFiles, read_run
from cpt.evaluators.summary import summary_of
from cpt.reports.figures import style

NAMED = 20
"""Runs beyond which a figure names them only where the mouse is."""


@dataclass(frozen=True)
class Comparison:
    """What a section of the page gets.

    Attributes:
      runs: by name, each with its `summary`, in the order of the page.
      groups: the same runs by config, seeds together; the first one is the baseline.
      fields: config fields that are not the same in all runs: field -> run -> text.
      styles: line style of each run.
      sort: path in `summary.json` by which the runs are sorted, smallest first; None keeps the order given.
      reference: a run that the others are measured against, trained on everything at once, say; None for none.
      one_tokenizer: whether a token is the same in all runs, so that their losses per token can be compared. Otherwise
        all losses here are in bits per byte.
    """

    runs: dict[str, RunFiles]
    groups: list[Group]
    fields: dict[str, dict[str, str]]
    styles: dict[str, dict[str, Any]]
    sort: str | None
    one_tokenizer: bool
    reference: RunFiles | None = None

    @property
    def unit(self) -> str:
        """That of losses and of their changes."""
        return "nats per token" if self.one_tokenizer else "bits per byte"

    @property
    def area_unit(self) -> str:
        """That of the area of a stability gap."""
        return "nat·tok" if self.one_tokenizer else "bit·tok/byte"

    @property
    def sets(self) -> list[str]:
        """Evaluation sets of all runs, in order of their first appearance."""
        return list(dict.fromkeys(name for run in self.runs.values() for name in run.curves))


def compared(run_dirs: list[Path], sort: str | None = None, reference: Path | None = None) -> Comparison:
    """The comparison of some run directories, which are only read.

    Raises:
      RunError: one is no run directory, or named twice.
      ConfigError: `sort` is no number of their summaries.
    """
    runs = [read_run(Path(d)) for d in run_dirs]
    seen = [r.path.resolve() for r in runs]
    if twice := [r.path for r in runs if seen.count(r.path.resolve()) > 1]:
        raise RunError(f"{twice[0]}: named twice; give each run once in --workdir")
    against = None if reference is None else read_run(reference)
    known = [*runs, *([against] if against else [])]
    tokenizers = {str(r.environment.get("tokenizer") or (r.config.get("tokenizer") or "")) for r in known}
    one_tokenizer = len(tokenizers) == 1
    if not one_tokenizer:
        runs = [replace(r, per_byte=True) for r in runs]
        against = against and replace(against, per_byte=True)
    named = {n: replace(r, summary=summary_of(r)) for n, r in zip(short_names(seen), runs, strict=True)}
    groups = replicates(named)
    if sort is not None:
        values = {n: objective(r.summary, sort) for n, r in named.items()}
        # A run without the number comes last.
        named = dict(sorted(named.items(), key=lambda item: np.nan_to_num(values[item[0]], nan=np.inf)))
    fields = differing({n: r.config for n, r in named.items()})
    return Comparison(named, groups, fields, style(named), sort, one_tokenizer, against)


def differing(configs: dict[str, dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Config fields that are not the same in all runs: field -> run -> text (a dash where the run lacks the field)."""
    flat = {name: flatten(c) for name, c in configs.items()}
    keys = dict.fromkeys(k for f in flat.values() for k in f)
    values = {k: {name: f.get(k, DASH) for name, f in flat.items()} for k in keys}
    return {k: v for k, v in values.items() if len(set(v.values())) > 1}


def short_names(paths: list[Path]) -> list[str]:
    """Folder names, with as many parents as are needed to tell them apart."""
    for parts in range(1, max(len(p.parts) for p in paths) + 1):
        names = ["/".join(p.parts[-parts:]) for p in paths]
        if len(set(names)) == len(names):
            return names
    return [str(p) for p in paths]


def _set_names(runs: dict[str, RunFiles]) -> list[str]:
    return list(dict.fromkeys(n for r in runs.values() for n in r.curves))
