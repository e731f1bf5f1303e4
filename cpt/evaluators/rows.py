"""The files of a run directory, read back as rows: everything the evaluators and the report know about a run.

A run writes JSON and JSON lines and nothing else is needed to say what was learned and forgotten. A young run has only
some of the files; what is missing reads as empty. A row written twice (a resumed run repeats the steps since its
checkpoint) counts once, the later one.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from cpt.errors import RunError

Row = dict[str, Any]
_MARKS_OF_A_RUN = ("plan.json", "models.json", "metrics.jsonl", "eval.jsonl", "summary.json")


@dataclass(frozen=True)
class Curve:
    """Loss of one evaluation set over the run; arrays of shape [T], sorted by step, one entry per evaluated step.

    Attributes:
      steps: optimizer updates done.
      tokens: tokens trained on so far.
      loss: nats per token, or bits per byte of a run that is read so; higher = worse; NaN where an evaluation had no
        finite loss.
      bits_per_byte: bits per UTF-8 byte of raw text, NaN where the row has none.
    """

    steps: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    bits_per_byte: np.ndarray

    def since(self, step: int) -> Curve:
        """The part at `step` and later."""
        keep = self.steps >= step
        return Curve(self.steps[keep], self.tokens[keep], self.loss[keep], self.bits_per_byte[keep])

    def until(self, step: int) -> Curve:
        """The part at `step` and earlier."""
        keep = self.steps <= step
        return Curve(self.steps[keep], self.tokens[keep], self.loss[keep], self.bits_per_byte[keep])


@dataclass(frozen=True)
class RunFiles:
    """What lies in one run directory. Missing files are empty dicts and lists.

    With `per_byte` losses are bits per byte of text instead of nats per token, and so is all that is derived from them:
    runs of different tokenizers have nothing else in common. A set scores the same tokens and bytes at every step, so
    that is one factor for its curve and its sequences; a set whose bytes nobody knows has no losses then.
    """

    path: Path
    plan: Row
    metrics: list[Row]
    evals: list[Row]
    ledger: Row
    config: Row
    environment: Row
    summary: Row
    eval_sets: Row
    probes: list[Row] = field(default_factory=list)
    per_byte: bool = False

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def phases(self) -> list[Row]:
        return self.plan.get("phases") or []

    @property
    def last_step(self) -> int:
        """Updates done, as far as the rows tell."""
        return max((r["step"] for r in (*self.metrics, *self.evals)), default=0)

    @property
    def last_tokens(self) -> int:
        """Tokens trained on, as far as the rows tell."""
        return max((r["tokens"] for r in (*self.metrics, *self.evals)), default=0)

    @cached_property
    def set_names(self) -> list[str]:
        """Evaluation sets in the order of the plan, then any that only the rows know."""
        return list(dict.fromkeys([*(self.plan.get("sets") or {}), *(r["set"] for r in self.evals)]))

    def about(self, set_name: str) -> Row:
        """What is known of a set: `source`, `tags`, `learned_in`; of one that was added later as well."""
        return (self.plan.get("sets") or {}).get(set_name) or self.eval_sets.get(set_name) or {}

    def learned_in(self, set_name: str) -> int | None:
        """Index of the first phase whose mix holds the set's source; None for a set that no phase trains on."""
        phase = self.about(set_name).get("learned_in")
        return next((i for i, p in enumerate(self.phases) if p["name"] == phase), None)

    def is_upstream(self, set_name: str) -> bool:
        """Whether a set can be forgotten: learned before the last phase, or brought along by the starting model."""
        learned = self.learned_in(set_name)
        if learned is not None:
            return learned < len(self.phases) - 1
        return "upstream" in (self.about(set_name).get("tags") or ())

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """Each evaluated set's loss curve."""
        by_set: dict[str, dict[int, Row]] = {name: {} for name in self.set_names}
        for row in self.evals:
            by_set[row["set"]][row["step"]] = row
        curves = {name: _curve([rows[s] for s in sorted(rows)]) for name, rows in by_set.items() if rows}
        return {n: replace(c, loss=c.bits_per_byte) for n, c in curves.items()} if self.per_byte else curves

    @cached_property
    def sequences(self) -> dict[str, dict[int, Row]]:
        """Per set and step the row of per-sequence sums: the population that the bootstrap resamples."""
        by_set: dict[str, dict[int, Row]] = {}
        factors = self._bits_per_byte_of_a_nat() if self.per_byte else {}
        for row in _lines(self.path / "eval_sequences.jsonl", ("step", "set", "nats", "tokens")):
            if self.per_byte:
                row = row | {"nats": [number(n) * factors.get(row["set"], math.nan) for n in row["nats"]]}
            by_set.setdefault(row["set"], {})[row["step"]] = row
        return by_set

    def _bits_per_byte_of_a_nat(self) -> dict[str, float]:
        """Of each set that says how many bytes it scores: what turns its nats per token into bits per byte."""
        known = [r for r in self.evals if r.get("bytes") and r.get("tokens_scored")]
        return {r["set"]: r["tokens_scored"] / r["bytes"] / math.log(2) for r in known}

    def bytes_scored(self, set_name: str) -> int | None:
        """UTF-8 bytes of the text that each evaluation of a set scores; None where the tokenizer cannot say."""
        return next((r.get("bytes") for r in reversed(self.evals) if r["set"] == set_name), None)

    def documents(self, set_name: str) -> list[int] | None:
        """The document that each sequence of a set begins in; None for a run that does not say."""
        return (self.eval_sets.get(set_name) or {}).get("documents")

    def domains(self, set_name: str) -> list[str] | None:
        """The domain of that document; None where there is only one."""
        return (self.eval_sets.get(set_name) or {}).get("domains")

    @cached_property
    def probe_curves(self) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(steps, tokens, values), each [T] and sorted by step, of every number of every probe: `probe.value`."""
        found: dict[str, dict[int, tuple[int, float]]] = {}
        for row in self.probes:
            for key, value in row["values"].items():
                found.setdefault(f"{row['probe']}.{key}", {})[row["step"]] = (row["tokens"], number(value))
        return {
            name: (np.array(sorted(at)), *(np.array([at[s][i] for s in sorted(at)]) for i in (0, 1)))
            for name, at in found.items()
        }


def is_run(path: Path) -> bool:
    """Whether `path` is a folder in which a run has written something."""
    return path.is_dir() and any((path / name).exists() for name in _MARKS_OF_A_RUN)


def read_run(path: Path) -> RunFiles:
    """The files of the run directory `path`.

    Raises:
      RunError: there is no such folder, it holds no run, or one of its files cannot be read.
    """
    path = Path(path)
    if not path.is_dir():
        raise RunError(f"{path}: no such run directory; give the folder that training printed as 'run'")
    if not is_run(path):
        raise RunError(
            f"{path}: not a run directory (no plan.json in it); give the folder that training printed as 'run'"
        )
    metrics = {r["step"]: r for r in _lines(path / "metrics.jsonl", ("step", "tokens"))}
    return RunFiles(
        path=path,
        plan=_object(path / "plan.json"),
        metrics=[metrics[s] for s in sorted(metrics)],
        evals=_lines(path / "eval.jsonl", ("step", "tokens", "set")),
        ledger=_object(path / "ledger.json"),
        config=_object(path / "config.json"),
        environment=_object(path / "environment.json"),
        summary=_object(path / "summary.json"),
        eval_sets=_object(path / "eval_sets.json"),
        probes=_lines(path / "probes.jsonl", ("step", "tokens", "probe", "values")),
    )


def number(value: Any) -> float:
    """A row's value as a float; a missing one as NaN."""
    return float(value) if isinstance(value, Real) else math.nan


def plain(value: Any) -> Any:
    """JSON-able copy of nested data: numpy scalars as Python numbers, and None for what is not finite."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_atomic(path: Path, text: str) -> Path:
    """Write `text` so that a reader sees the old file or the new one, never half of one.

    Raises:
      RunError: the folder cannot be written (missing, read-only, full).
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as e:
        part.unlink(missing_ok=True)
        raise RunError(f"{path}: cannot write ({e.strerror}); free space or choose another place with --out") from e
    return path


def _curve(rows: list[Row]) -> Curve:
    return Curve(
        steps=np.array([r["step"] for r in rows], np.int64),
        tokens=np.array([r["tokens"] for r in rows], np.int64),
        loss=np.array([number(r.get("loss")) for r in rows]),
        bits_per_byte=np.array([number(r.get("bits_per_byte")) for r in rows]),
    )


def _object(path: Path) -> Row:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise RunError(f"{path}: cannot be read as JSON ({e}); run the training command again to rewrite it") from e
    if not isinstance(value, dict):
        raise RunError(f"{path}: expected a JSON object; run the training command again to rewrite it")
    return value


def _lines(path: Path, required: tuple[str, ...]) -> list[Row]:
    """Rows of a JSON-lines file. A last line without its newline is still being written and is left out."""
    if not path.exists():
        return []
    try:
        *lines, _unfinished = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as e:
        raise RunError(f"{path}: cannot be read ({e})") from e
    rows = []
    for i, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as e:
            raise RunError(f"{path}, line {i}: not a JSON object; delete that line and try again") from e
        if not isinstance(row, dict) or any(k not in row for k in required):
            raise RunError(f"{path}, line {i}: a row needs {', '.join(required)}; delete that line and try again")
        rows.append(row)
    return rows
