"""What the loop leaves on disk: metrics, evaluations, ledger; fetched from the devices one update late.

While update `t` runs, the results of update `t - 1` are fetched and written, so the host never makes the devices wait.
The files only ever hold rows that belong to one history: a resumed run cuts them back to its step first. Where several
processes train, all of them fetch and check the results, and the first one writes.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cpt.data.ledger import Ledger
from cpt.errors import DataError, RunError
from cpt.evaluators.rows import write_atomic
from cpt.plan import RunPlan
from cpt.sections import to_dict
from cpt.training.accounting import Account
from cpt.training.evaluation import Evaluation
from cpt.training.guard import Guard
from cpt.training.loggers import LoggerFacts, open_loggers
from cpt.training.logs import JsonLines, cut
from cpt.training.processes import here
from cpt.training.state import Sums

ROWS_WAIT_S = 0.5  # for others, those of `metrics.jsonl`
IN_LOOP = "in-loop"  # the `checkpoint` of an evaluation made while training


class Recorder:
    """Queue of results that the devices still compute, and the files they go to.

    Attributes:
      heard: gets the number of each update and what processes asked each other for with it (`Requests.heard`).

    Args:
      workdir: the run directory.
      plan, ledger, evaluation: what the rows mean.
      step: where the run starts or resumes; later rows on disk are cut.
      progress: shown to the person watching.
      guard: judges the updates; of a run that resumes, with what it knew.
      account: of the run's time.
    """

    def __init__(
        self,
        workdir: Path,
        plan: RunPlan,
        ledger: Ledger,
        evaluation: Evaluation,
        step: int,
        progress: Any,
        guard: Guard | None = None,
        account: Account | None = None,
    ):
        self.workdir, self.plan, self.ledger, self.progress = workdir, plan, ledger, progress
        self.evaluation, self.guard, self.account = evaluation, guard or Guard(plan), account or Account()
        self.heard: Callable[[int, np.ndarray | None], None] = lambda update, asked_2: None
        self.busy_s = {"step": 0.0, "eval": 0.0}  # between results, for the share that is shown
        self._pending: deque[tuple] = deque()
        self._evaluated: tuple[int, dict[str, float]] = (-1, {})  # the last evaluation that was written
        self._start_step, self._started, self._last_done = step, time.monotonic(), 0.0
        self._writes = here().first
        if self._writes:
            self._cut(step)
        self.metrics, self.evals, self.sequences, self.probes, self.board = self._open(step)

    def _cut(self, step: int) -> None:
        """Cut the files of before back to `step`."""
        workdir, plan = self.workdir, self.plan
        # metrics rows are numbered by the updates done after them, evaluations by the updates done before.
        cut(workdir / "metrics.jsonl", lambda row: row["step"] <= step)
        due = plan.sets_at(step)
        past = _past(step, "set", [name for name, s in plan.spec.evaluation.sets.items() if s.at in due])
        cut(workdir / "eval_sequences.jsonl", past)
        cut(workdir / "probes.jsonl", _past(step, "probe", plan.probes_at(step)))
        for row in cut(workdir / "eval.jsonl", past):
            if row["phase"] == plan.phase_at(step).name:
                self.progress.evaluated(row["step"], row)
        note_origin(workdir, self.evaluation.origin())

    def _open(self, step: int) -> tuple:
        workdir, plan = self.workdir, self.plan
        if not self._writes:
            return (Nowhere(),) * 5
        lines = [JsonLines(workdir / "metrics.jsonl", ROWS_WAIT_S)]
        lines += [JsonLines(workdir / f"{name}.jsonl") for name in ("eval", "eval_sequences")]
        probes = JsonLines(workdir / "probes.jsonl") if plan.spec.evaluation.probes else Nowhere()
        facts = LoggerFacts(workdir, plan.name, plan.hash, to_dict(plan.spec), step, self._say)
        return *lines, probes, open_loggers(plan.spec.loggers, facts)

    def _say(self, line: str, style: str | None = None) -> None:
        self.progress.console.print(line, style=style, highlight=False, soft_wrap=True)

    def resume_clock(self) -> None:
        """Do not charge the next update for the time since the last one (a checkpoint was saved, say)."""
        self._last_done = time.monotonic()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """For what is neither an update nor an evaluation and should be charged to neither."""
        self.drain()
        yield
        self.resume_clock()

    def evaluated(self, step: int, nats: dict[str, jax.Array]) -> None:
        """An evaluation of the parameters at `step` was dispatched."""
        self._pending.append(("eval", step, nats, time.monotonic(), 0.0, 0.0))

    def probed(self, step: int, name: str, ask: Callable[[], dict[str, Any]]) -> None:
        """Ask the probe `name` about the parameters at `step`; the time that takes is charged to evaluation."""
        self.drain()  # what the host does in a probe must not look like a slow update
        begun = time.monotonic()
        with self.account.to("eval"):
            values = ask()
        self.busy_s["eval"] += time.monotonic() - begun
        self._pending.append(("probe", step, {name: values}, time.monotonic(), 0.0, 0.0))
        self.resume_clock()

    def trained(self, step: int, sums: Sums, lr: float, data_wait_s: float) -> None:
        """Update `step` was dispatched; writes everything that came before it."""
        if step == self._start_step:
            self.resume_clock()  # until now the update was compiled
        ahead = len(self._pending)
        self._pending.append(("train", step, sums, time.monotonic(), lr, data_wait_s))
        for _ in range(ahead):
            self._write_next()

    def drain(self) -> None:
        """Wait for everything dispatched and write it."""
        while self._pending:
            self._write_next()
        self.metrics.flush()

    def losses_at(self, step: int) -> dict[str, float]:
        """Loss of every set in the evaluation of `step`, which was dispatched; waits for it.

        Raises:
          RunError: one of them is not finite.
        """
        self.drain()
        at, losses = self._evaluated
        wrong = [name for name, loss in losses.items() if not math.isfinite(loss)]
        if at != step or wrong:
            what = f"the loss of {wrong[0]} is not finite" if wrong else "nothing was evaluated"
            raise RunError(f"step {step}: {what}, so the mixer cannot decide; lower the learning rate")
        return losses

    def write_ledger(self) -> None:
        """Check the ledger and write `ledger.json`, and the rows that wait. Raises RunError if consumed and planned
        differ.
        """
        with self.account.to("log"):
            self.metrics.flush()
            self.board.flush()
            self.ledger.check()
            out = self.ledger.to_json()
            out["totals"] |= self.guard.not_learned(self.plan.spec.batch.sequences * self.plan.spec.batch.length)
            out["guard"] = [asdict(incident) for incident in self.guard.incidents]
            if self._writes:
                write_atomic(self.workdir / "ledger.json", json.dumps(out, indent=1))

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Close the files; rows of a run that ends with an error are written too, if they can be."""
        with self.account.to("log"), contextlib.ExitStack() as closing:
            if error is not None:
                closing.enter_context(contextlib.suppress(OSError))  # what went wrong first is what is told
            for f in (self.board, self.probes, self.sequences, self.evals, self.metrics):
                closing.callback(f.close)

    def _write_next(self) -> None:
        kind, step, result, dispatched, lr, data_wait_s = self._pending.popleft()
        with self.account.to("step" if kind == "train" else "eval"):
            host = jax.device_get(result)
        now = time.monotonic()
        # Since the result before: what the host spends between two updates counts, or it would look free.
        busy, self._last_done = now - (self._last_done or dispatched), now
        with self.account.to("log"):
            if kind != "train":
                self.busy_s["eval"] += busy
                (self._write_eval if kind == "eval" else self._write_probe)(step, host)
            else:
                self.busy_s["step"] += busy
                self.heard(step, host.asked)
                self._write_metrics(step, host, lr, data_wait_s, busy)

    @property
    def eval_share(self) -> float:
        """Of the time since the start, what evaluations and probes took."""
        return self.busy_s["eval"] / max(self.busy_s["eval"] + self.busy_s["step"], 1e-9)

    def _write_eval(self, step: int, nats: dict[str, np.ndarray]) -> None:
        clock, losses = self.plan.clock(step), {}
        for row, sequences in self.evaluation.rows(nats):
            losses[row["set"]] = row["loss"]
            row = {"step": step, "tokens": clock.tokens, "phase": clock.phase, **row, "checkpoint": IN_LOOP}
            self.sequences.write({"step": step, **sequences, "checkpoint": IN_LOOP})
            self.evals.write(row)
            if row["loss"] is not None:
                self.board.scalar(f"eval/{row['set']}/loss", row["loss"], step)
            self.progress.evaluated(step, row)
        if step >= self._evaluated[0]:  # not a snapshot of before
            self._evaluated = step, losses

    def _write_probe(self, step: int, named: dict[str, dict[str, Any]]) -> None:
        clock = self.plan.clock(step)
        for name, given in named.items():
            values = probe_values(name, given)
            row = {"step": step, "tokens": clock.tokens, "phase": clock.phase, "probe": name}
            self.probes.write({**row, "values": values, "checkpoint": IN_LOOP})
            if values.get("warning") == 1.0:
                told = ", ".join(f"{k} {v:.3g}" for k, v in values.items() if k != "warning")
                self._say(f"step {step}: the probe {name} warns ({told})", style="yellow")
            for key, value in values.items():
                if math.isfinite(value):
                    self.board.scalar(f"probe/{name}/{key}", value, step)

    def _write_metrics(self, step: int, sums: Sums, lr: float, data_wait_s: float, step_s: float) -> None:
        phase = self.plan.phase_at(step)
        self.ledger.add(step, sums.tokens_K)
        # Lists: NumPy costs more than it adds up, between two updates of a small model.
        nats_K, tokens_K = sums.nats_K.tolist(), sums.tokens_K.tolist()
        row = {
            "step": step + 1,
            "tokens": self.plan.clock(step).tokens + phase.tokens_per_step,
            "phase": phase.name,
            "loss": sum(nats_K) / sum(tokens_K) if any(tokens_K) else math.nan,
            "lr": lr,
            "grad_norm": float(sums.grad_norm),
            "tokens_per_second": round(phase.tokens_per_step / max(step_s, 1e-9), 1),
            "data_wait_s": round(data_wait_s, 6),
            "step_s": round(step_s, 6),
        }
        if phase.spec.weights or self.plan.spec.objective.z_loss:
            row["objective"] = float(sums.objective)
        for column, nats, tokens in zip(phase.columns, nats_K, tokens_K, strict=False):
            row[f"source/{column.name}/loss"] = nats / tokens if tokens else None
            row[f"source/{column.name}/tokens"] = tokens
        if not sums.finite:
            row |= {"skipped": True, "loss": None, "grad_norm": None}
            row |= {k: None for k in row if k.endswith("/loss") or k == "objective"}
        elif sums.spike:
            row |= {"skipped": True}
        self.metrics.write(row)
        for key in ("loss", "lr", "grad_norm"):
            if row[key] is not None:
                self.board.scalar(f"train/{key}", row[key], step + 1)
        self._judge(step, sums)
        done = step + 1 - self._start_step
        left = (time.monotonic() - self._started) / done * (self.plan.total_steps - step - 1) if done > 3 else None
        if sums.finite:
            self.progress.trained(row, left, self.eval_share)

    def _judge(self, step: int, sums: Sums) -> None:
        """What the guard says of an update: a line for the person watching, or the end of the run."""
        numbers = float(sums.objective), float(sums.grad_norm)
        incident = self.guard.saw(step, *numbers, bool(sums.finite), bool(sums.spike))
        if incident is None:
            return
        if incident.why == "spike":
            told = f"step {step}: loss {numbers[0]:.3f}, gradient norm {numbers[1]:.3g} are a spike"
            if incident.limits:
                told += f" (limits {incident.limits[0]:.3f}, {incident.limits[1]:.3g})"
            if self.plan.spec.guard.spike == "stop":
                raise Unstable(told)
            self._say(f"{told}; update skipped", style="yellow")
        else:
            self._say(f"step {step}: loss or gradient is not finite; update skipped", style="yellow")
        if self.guard.in_a_row >= self.plan.spec.guard.max_skipped:
            what = "a spike" if incident.why == "spike" else "not finite"
            raise Unstable(f"{self.guard.in_a_row} updates in a row were skipped, the last, {what}, at step {step}")


def _past(step: int, key: str, again: Iterable[str]) -> Callable[[dict[str, Any]], bool]:
    """Keeps the rows up to `step`; at `step` itself without what is evaluated `again` there."""
    return lambda row: row["checkpoint"] != IN_LOOP or row["step"] < step + (row[key] not in again)


def note_origin(workdir: Path, origin: dict[str, dict[str, Any]]) -> None:
    """Add the rows of some sets to `eval_sets.json`; what is known of others, added later, stays.

    Raises:
      DataError: a set has other rows now than before: its losses would not be comparable with those that are there.
    """
    path = workdir / "eval_sets.json"
    before = json.loads(path.read_text()) if path.is_file() else {}
    for name, now in origin.items():
        was = before.get(name, now)
        if any(was.get(key, now[key]) != now[key] for key in ("rows", "documents")):
            raise DataError(f"evaluation.sets.{name}: its rows are no longer those of the run; bring its store back")
    if origin:
        write_atomic(path, json.dumps({**before, **origin}))


def probe_values(name: str, given: dict[str, Any]) -> dict[str, float]:
    """What a probe gave, as floats. Raises RunError for what is no single number."""
    try:
        return {key: float(value) for key, value in given.items()}
    except (TypeError, ValueError) as e:
        raise RunError(f"evaluation.probes.{name}: gave what is no number ({e})") from e


class Nowhere:
    """Where the results of a process go that does not write."""

    def write(self, row: dict[str, Any]) -> None: ...

    def scalar(self, name: str, value: float, step: int) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class Unstable(Exception):
    """Training went wrong and is to end: too many updates in a row that were not finite, or a spike.

    Attributes:
      what: for the line that the run ends with.
    """

    def __init__(self, what: str):
        super().__init__(what)
        self.what = what
