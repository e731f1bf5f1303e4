"""The checkpoints of a run: three kinds of three items, written in the background, verified when read.

    checkpoints/anchor/<step>    params, opt_state, meta     phase edges, always kept
    checkpoints/rolling/<step>   params, opt_state, meta     the newest few
    checkpoints/grid/<step>      params, meta                kept, for evaluation later

Anchors and the grid have the format of Orbax, for whoever comes after the run; a rolling one, of which there are many
and which is gone soon, has one that costs a tenth (`cpt.training.parts`).

A checkpoint that cannot be written (a full disk, a quota, storage that is away) costs nothing but itself: training goes
on, what was saved before stays, and the next one is tried after a while. One that cannot be read is passed over for the
one before. Over several processes all of them come to the same decision.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, partial
from typing import Any

import jax
from etils import epath

from cpt.errors import RunError
from cpt.training import parts
from cpt.training.agreement import Meeting, OthersFailed
from cpt.training.digests import DamagedCheckpoint, Digests, copied, digests, list_files, sealed
from cpt.training.faults import is_storage_fault, quiet_writers, reason
from cpt.training.precedence import in_the_gaps
from cpt.training.preservation import (
    FULL_KINDS,
    KINDS,
    Saved,
    clear_unfinished,
    directory_of,
    finished,
    newest_first,
    remove,
    set_aside,
    superfluous,
)
from cpt.training.processes import here
from cpt.training.retries import SaveClock
from cpt.training.spec import CheckpointSpec
from cpt.training.state import State
from cpt.training.storage import WRITING_TIMEOUT_S, read_meta, restore, write

STEP_BACK_S = 0.005  # before a checkpoint is written
LAST_TRIES_S = (1.0, 5.0, 10.0)  # pauses between the tries of a checkpoint that must not be missed
__all__ = ["FULL_KINDS", "Checkpoints", "DamagedCheckpoint", "Saved", "read_meta", "restore"]
Say = Callable[[str], None]


class Checkpoints:
    """Save and restore the state of a run under `directory`.

    Args:
      directory: the run's `checkpoints/`, a path or a URL.
      spec: how many stay, how often by time, and how much memory writing may take.
      warn: receives a line for each checkpoint that could not be written.
      planned: steps whose rolling checkpoints are not to be pushed out by others (`preservation.superfluous`).
      before: called on the first process, in the writing thread, before each one is written; if that fails, so does it.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        spec: CheckpointSpec | None = None,
        warn: Say = lambda line: None,
        planned: Callable[[int], bool] | None = None,
        before: Callable[[], Any] = lambda: None,
    ):
        self.directory, self.spec, self.warn = directory_of(directory), spec or CheckpointSpec(), warn
        self._superfluous = partial(superfluous, keep_rolling=self.spec.keep_rolling, planned=planned)
        self._before = before
        minutes = self.spec.rolling_minutes
        self.clock = SaveClock(None if minutes is None else 60 * minutes)
        self._attempts = 0
        self._writing: tuple[Saved, Future[Exception | None]] | None = None

    # ---- saving ------------------------------------------------------------------------------------------------------
    def save(
        self, kind: str, step: int, state: State, meta: dict[str, Any], must: bool = False, copy: bool = True
    ) -> None:
        """Start saving; returns once the arrays are copied on their devices, the files are written in the background.

        What goes wrong is told through `warn` when it is known, and by `due` when to try again.

        Args:
          kind: `anchor`, `rolling` (both full) or `grid` (parameters only).
          step: the step `state` stands at.
          meta: JSON-able facts of the run; digests are added here.
          must: wait for it, try it again if need be, and raise if it cannot be written: there is no next one.
          copy: False for arrays that nobody changes, where there is no room for a second set of them. Orbax may hold
            them until Python collects its cycles.

        Raises:
          RunError: with `must`, when every try failed.
        """
        for pause_s in LAST_TRIES_S if must else ():
            self._start(kind, step, state, meta, self._urgent, copy)
            if self.wait() is None:
                return
            time.sleep(pause_s)
        self._start(kind, step, state, meta, self._urgent if must else self._patient, copy)
        if must and (problem := self.wait()) is not None:
            raise RunError(
                f"{self.directory}: a checkpoint could not be written ({reason(problem)}); {self.newest()}; "
                "make room there and run the same command again"
            ) from problem

    def _start(
        self, kind: str, step: int, state: State, meta: dict[str, Any], thread: ThreadPoolExecutor, copy: bool
    ) -> None:
        self.wait()  # first, so that no more than one copy of the state is held
        items = {"params": state.params}
        if kind in FULL_KINDS:
            items["opt_state"] = state.opt_state
        # The copy keeps the next update from writing into buffers that are still being read.
        items, sums = copied(items) if copy else (items, digests(items))
        self._attempts += 1
        saved = self._saved(kind, step)
        facts = {**meta, "step": step, "kind": kind, "saved": round(time.time(), 3)}
        meeting = Meeting(f"cpt/checkpoint/{self._attempts}", WRITING_TIMEOUT_S)
        self._writing = saved, thread.submit(self._write, saved, items, copy, sums, facts, meeting)

    def _write(
        self,
        saved: Saved,
        items: dict[str, Any],
        copied: bool,
        sums: Digests,
        facts: dict[str, Any],
        meeting: Meeting,
    ) -> Exception | None:
        """Everything that takes time, in a thread of its own; returns what went wrong."""
        problem: Exception | None = None
        try:
            problem = self._write_together(saved, items, sums, facts, meeting)
            if here().first:
                self._tidy(saved, problem)
            meeting.part()
        except Exception as e:  # a process that is gone; whoever waits for this thread must hear of it
            problem = problem or e
        # Orbax holds them in cycles that Python collects some day; the devices need that memory now.
        for copy in jax.tree.leaves(items) if copied else ():
            copy.delete()
        return problem

    def _write_together(
        self, saved: Saved, items: dict[str, Any], sums: Digests, facts: dict[str, Any], meeting: Meeting
    ) -> Exception | None:
        try:
            # Python does one thing at a time, and the next update is to be dispatched first.
            jax.block_until_ready(items)
            time.sleep(STEP_BACK_S)
            meta = sealed({**facts, "digests": sums.fetch()})
            if here().first:
                self._before()
            meeting.join()  # Orbax counts its saves, so either all processes call it or none
            write(saved, meeting, meta, items, self.spec.concurrent_gb)
        except OthersFailed as e:
            return e
        except Exception as e:  # what its writing threads met, Orbax raises as it is: OSError, ValueError, its own
            meeting.give_up(reason(e))
            return e
        return None

    def _tidy(self, saved: Saved, problem: Exception | None) -> None:
        """After a save: free what it left behind, or let go of the checkpoints that it makes superfluous."""
        try:
            if problem is not None:
                clear_unfinished(self.directory)
                return
            if not parts.suits(saved):  # those have their whole listing
                list_files(saved.path, final=True)
            self._let_go(self._superfluous(self.finished(KINDS)))
        except Exception as e:
            if not (isinstance(e, OSError) or is_storage_fault(e)):
                raise

    @staticmethod
    def _let_go(doomed: list[Saved]) -> None:
        try:
            for old in doomed:
                remove(old)
        except Exception as e:  # they take room, no more; the next save tries again
            if not (isinstance(e, OSError) or is_storage_fault(e)):
                raise

    @property
    def writing(self) -> bool:
        """Whether a checkpoint is being written now."""
        return self._writing is not None and not self._writing[1].done()

    def wait(self) -> Exception | None:
        """Block until the last save ended; returns what went wrong with it, if anything did, and tells it."""
        if self._writing is None:
            return None
        (saved, result), self._writing = self._writing, None
        problem = result.result()
        now_s = time.monotonic()
        if problem is None:
            self._known.add(saved)
            self._known.difference_update(self._superfluous(self._known))
            if saved.kind in FULL_KINDS:
                self.clock.saved(now_s)
        else:
            minutes = self.clock.failed(now_s) / 60
            self.warn(
                f"checkpoint {saved} could not be written ({reason(problem)}); {self.newest()}, and stays; training "
                f"goes on; the next try is in {minutes:.0f} minutes or at the next checkpoint; make room in "
                f"{self.directory}"
            )
        return problem

    def due(self, now_s: float | None = None) -> bool:
        """Whether a rolling checkpoint is due by the clock: `rolling_minutes` went by, or a failed one waits for a try.

        Over several processes one of them asks, and tells the others.

        Args:
          now_s: seconds of a clock that never goes back; this process's own by default.
        """
        if self._writing is not None and self._writing[1].done():
            self.wait()
        return self.clock.due(time.monotonic() if now_s is None else now_s)

    def has(self, kind: str, step: int) -> bool:
        """Whether that checkpoint is there; asks the file system once in its life, on one process."""
        asked = self._saved(kind, step)
        if self._writing is not None and self._writing[0] == asked:
            self.wait()
        return asked in self._known

    def close(self) -> None:
        """Wait for what is being written."""
        self.wait()
        self._urgent.shutdown()
        self._patient.shutdown()

    @cached_property
    def _known(self) -> set[Saved]:
        # Of one process: a directory can change between two looks.
        found = here().decide(lambda: [[s.kind, s.step] for s in self.finished(KINDS)])
        return {self._saved(kind, step) for kind, step in found}

    def _saved(self, kind: str, step: int) -> Saved:
        return Saved(kind, step, self.directory / kind / str(step))

    @cached_property
    def _urgent(self) -> ThreadPoolExecutor:
        """For what somebody waits for. One thread writes at a time, this one or the other."""
        quiet_writers()
        return ThreadPoolExecutor(1, "checkpoint")

    @cached_property
    def _patient(self) -> ThreadPoolExecutor:
        """For what is written while updates go on."""
        quiet_writers()
        return ThreadPoolExecutor(1, "checkpoint in the gaps", initializer=in_the_gaps)

    # ---- what there is -----------------------------------------------------------------------------------------------
    def newest(self) -> str:
        """`the newest finished one is rolling/100`, for messages."""
        found = self.finished()
        return f"the newest finished one is {found[0]}" if found else "none was finished before"

    def finished(self, kinds: tuple[str, ...] = FULL_KINDS) -> list[Saved]:
        """Finished checkpoints, newest first; an anchor before a rolling one of the same step."""
        return finished(self.directory, kinds)

    def clean(self) -> None:
        """Remove what a killed process left half-written."""
        if here().first:
            clear_unfinished(self.directory)
        here().meet()

    def restore_latest(self, abstract: State, say: Say) -> tuple[Saved, State, dict[str, Any]] | None:
        """The newest sound full checkpoint as (saved, state, meta); None if there is no checkpoint at all.

        A damaged one is passed over; once a sound one is found it is named through `say` and moved aside to
        `checkpoints/damaged/`. Every process calls this, and every one gets the same.

        Raises:
          RunError: there are checkpoints but none can be read; nothing is moved.
        """
        damaged: list[tuple[Saved, DamagedCheckpoint]] = []
        candidates = [s for s in newest_first(self._known) if s.kind in FULL_KINDS]
        for saved in candidates:
            try:
                state, meta = restore(saved, abstract, concurrent_gb=self.spec.concurrent_gb)
            except DamagedCheckpoint as e:
                damaged.append((saved, e))
                continue
            for bad, why in damaged:
                aside = set_aside(bad, self.directory) if here().first else self.directory / "damaged"
                self._known.discard(bad)
                say(f"checkpoint {bad} is damaged ({why}); moved to {aside}, using the one before")
            # A killed process had no time to remove them; a run that goes back must find what it would have found.
            doomed = self._superfluous(self._known)
            self._known.difference_update(doomed)
            if here().first:
                self._let_go(doomed)
            here().meet()
            return saved, state, meta
        if damaged:
            bad, why = damaged[0]
            raise RunError(
                f"{self.directory}: no full checkpoint can be read ({len(damaged)} tried; {bad}: {why}); nothing was "
                "changed; bring one back from a copy, or train anew in another --workdir"
            )
        return None
