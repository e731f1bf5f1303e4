"""What a person sees while a run trains: one bar per phase on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from cpt.plan import RunPlan
from cpt.units import compact, human


class TrainingProgress:
    """Bars with loss, learning rate, tokens per second, share of replay, change of each old set, and the time left.

    Args:
      plan: for phases and totals.
      console: where to draw; without a terminal a line is printed about every `line_every_s` seconds.
    """

    def __init__(self, plan: RunPlan, console: Console, line_every_s: float = 20.0):
        self.plan, self.console, self.line_every_s = plan, console, line_every_s
        self.live = console.is_terminal
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._tasks: dict[str, Any] = {}
        self._last_line = time.monotonic()
        self._reference: dict[str, float] = {}
        self._newest = 0  # step evaluated; snapshots of earlier ones come later
        # Per set: the change since the phase began, the largest one, and the tokens of the phase at that one.
        self._change: dict[str, tuple[float, float, int]] = {}
        # Per phase: tokens trained on since this process began, those of replay and all.
        self._replayed: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> TrainingProgress:
        if self.live:
            self.bars.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.live:
            self.bars.stop()

    def evaluated(self, step: int, row: dict[str, Any]) -> None:
        """Note an evaluation; at the start of a phase it becomes the level that changes are shown against."""
        phase, name = self.plan.phase_at(step), row["set"]
        if row["loss"] is None:
            return
        if step == phase.first_step or name not in self._reference:
            self._reference[name], self._change[name] = row["loss"], (0.0, 0.0, 0)
            self._newest = max(step, self._newest)
            return
        if phase is not self.plan.phase_at(max(step, self._newest)):
            return  # a snapshot of the phase before
        change = row["loss"] - self._reference[name]
        last, peak, at = self._change[name]
        if change > peak:
            peak, at = change, row["tokens"] - phase.first_token
        self._change[name] = (change if step >= self._newest else last, peak, at)
        self._newest = max(step, self._newest)

    def trained(self, row: dict[str, Any], seconds_left: float | None, eval_share: float = 0.0) -> None:
        """Draw the state after the update of `row` (a row of metrics.jsonl).

        Args:
          seconds_left: of the run, None while that cannot be said.
          eval_share: of the time since this process began, what evaluations took; 0 is not shown.
        """
        phase = self.plan.phase_at(row["step"] - 1)
        done = row["step"] - phase.first_step
        replayed = self._replay(phase, row)
        if self.live:
            if phase.name not in self._tasks:
                width = max(len(p.name) for p in self.plan.phases)
                self._tasks[phase.name] = self.bars.add_task(phase.name.ljust(width), total=phase.steps, note="")
            note = self._note(phase, row, replayed, eval_share, seconds_left)
            self.bars.update(self._tasks[phase.name], completed=done, note=note)
        elif time.monotonic() - self._last_line > self.line_every_s or done == phase.steps:
            self._last_line = time.monotonic()
            note = self._note(phase, row, replayed, eval_share, seconds_left)
            self.console.print(f"{phase.name} {done}/{phase.steps}  {note}", highlight=False, soft_wrap=True)

    def _note(
        self, phase: Any, row: dict[str, Any], replayed: float | None, eval_share: float, seconds_left: float | None
    ) -> str:
        note = f"loss {row['loss']:.3f}  lr {compact(row['lr'])}  {human(row['tokens_per_second'])} tok/s"
        if replayed is not None:
            note += f"  replay {100 * replayed:.1f} %"
        note += self._gap(phase)
        if eval_share > 0:
            note += f"  eval {100 * eval_share:.0f} %"
        if seconds_left is not None:
            note += f"  eta {int(seconds_left) // 60}:{int(seconds_left) % 60:02d}"
        return note

    def _replay(self, phase: Any, row: dict[str, Any]) -> float | None:
        """The share of replay in what was trained on since this process began; None in a phase without."""
        if not phase.spec.replay.active:
            return None
        old, every = self._replayed.get(phase.name, (0, 0))
        for column in phase.columns:
            tokens = row.get(f"source/{column.name}/tokens", 0)
            old, every = old + tokens * (column.role == "replay"), every + tokens
        self._replayed[phase.name] = old, every
        return old / max(every, 1)

    def _gap(self, phase: Any) -> str:
        """`  pile +0.31 (peak +0.44 at 23k tokens)` for the sets that this phase can forget."""
        old = []
        for name, spec in self.plan.spec.evaluation.sets.items():
            learned = self.plan.learned_in(spec.source)
            before = phase.index > 0 and learned != phase.name if learned else "upstream" in spec.tags
            if name in self._change and before and spec.at == "grid":
                change, peak, at = self._change[name]
                top = f" (peak {peak:+.2f} at {human(at)} tokens)" if peak > 0 else ""
                old.append(f"  {name} {change:+.2f}{top}")
        return "".join(old)
