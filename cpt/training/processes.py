"""The processes of one run: one of them decides and writes, and when one ends all end, with the reason.

`jax.distributed` connects them; its own answer to a process that is gone is to wait for 100 seconds and abort. Here
every process tells the others that it lives, and why it stops, through the key-value store of JAX's coordinator, and a
thread of each ends it when another one has ended: with one line, and with an exit code by which a launcher knows
whether starting again makes sense. A process alone has the same methods, and they cost it nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from cpt.errors import RunError, UserError
from cpt.training.aborts import explain_aborts
from cpt.training.cluster import Cluster
from cpt.training.signals import STOPPED_BY_SIGNAL

POLL_S = 1.0  # how often a process says that it lives, and asks whether another has ended
LOST_AFTER_S = 30.0  # a process that said nothing for so long is gone
JAX_LOST_AFTER_S = 100  # when JAX's own coordinator aborts everybody; ours comes first
# What a collective says that another process left in the middle of.
CONNECTION_LOST = ("Gloo", "NCCL", "Connection reset", "Connection closed", "Broken pipe", "coordination service")
LONG_MS = 7 * 24 * 3600 * 1000  # waiting for others has no limit of its own: the thread ends it when one is gone

Exit = Callable[[int], Any]


class Processes:
    """The processes of a run, as one of them sees them.

    Attributes:
      index, count: number of this process, and of all.
      first: whether it is the one that decides, prints and writes.
    """

    index, count = 0, 1

    @property
    def first(self) -> bool:
        return self.index == 0

    def decide(self, ask: Callable[[], Any]) -> Any:
        """What `ask` gives process 0, for all: JSON data. To be called by all of them, in the same order."""
        return ask()

    def meet(self) -> None:
        """Wait until every process is here."""

    def fail(self, line: str, code: int) -> None:
        """Tell the others that this process ends, and let them end."""


class Connected(Processes):
    """Several processes.

    Args:
      client: of JAX's coordinator.
      index, count: as above.
      leave: ends this process.
    """

    def __init__(self, client: Any, index: int, count: int, leave: Exit = os._exit):
        self.client, self.index, self.count, self._leave = client, index, count, leave
        self._asked = 0
        self._seen: dict[int, tuple[str, float]] = {}
        self._over = threading.Event()
        self._beat(0)  # one that never said anything cannot be missed
        self._thread = threading.Thread(target=self._watch, name="processes", daemon=True)
        self._thread.start()

    def decide(self, ask: Callable[[], Any]) -> Any:
        self._asked += 1
        key = f"cpt/decided/{self._asked}"
        if self.first:
            self.client.key_value_set(key, json.dumps(ask()))
        return json.loads(self.client.blocking_key_value_get(key, LONG_MS))

    def meet(self) -> None:
        self._asked += 1
        self.client.wait_at_barrier(f"cpt/met/{self._asked}", LONG_MS)

    def fail(self, line: str, code: int) -> None:
        self._over.set()
        with contextlib.suppress(Exception):  # the coordinator may be what is gone
            said = {"process": self.index, "line": line, "code": code}
            self.client.key_value_set("cpt/ended", json.dumps(said), allow_overwrite=False)
        self._linger()

    def close(self) -> None:
        """The regular end; returns when all have come to it."""
        self.meet()
        self._over.set()
        self._thread.join()

    def _linger(self) -> None:
        # With process 0 goes the coordinator, and JAX aborts whoever has not read the reason by then.
        if self.first:
            time.sleep(4 * POLL_S)

    def _watch(self) -> None:
        beat = 0
        while not self._over.wait(POLL_S):
            beat += 1
            try:
                self._beat(beat)
                said = _get(self.client, "cpt/ended")
                if said is None and self.first and (lost := self._lost(time.monotonic())) is not None:
                    line = f"process {lost} of {self.count} has not answered for {LOST_AFTER_S:.0f} s"
                    said = {"process": lost, "line": f"run error: {line}", "code": STOPPED_BY_SIGNAL}
                    self.client.key_value_set("cpt/ended", json.dumps(said), allow_overwrite=False)
            except Exception as e:  # whatever the coordinator's client raises: it is not there any more
                if not self._over.is_set():
                    self._end(f"run error: process 0 does not answer ({str(e).splitlines()[0][:100]})", 75)
                return
            if said is not None and not self._over.is_set():
                self._end(f"process {said['process']} ended: {said['line']}", said["code"])
                return

    def _beat(self, beat: int) -> None:
        self.client.key_value_set(f"cpt/alive/{self.index}", str(beat), allow_overwrite=True)

    def _lost(self, now: float) -> int | None:
        """A process whose beat has not changed for too long; those that never had one are still on their way."""
        for key, beat in self.client.key_value_dir_get("cpt/alive/"):
            index = int(key.rpartition("/")[2])
            if self._seen.get(index, ("", 0.0))[0] != beat:
                self._seen[index] = (beat, now)
            elif now - self._seen[index][1] > LOST_AFTER_S:
                return index
        return None

    def _end(self, line: str, code: int) -> None:
        again = "; start the same command again on all of them" if code == STOPPED_BY_SIGNAL else ""
        print(f"{line}{again}", file=sys.stderr, flush=True)
        self._linger()
        self._leave(code)


def _get(client: Any, key: str) -> dict[str, Any] | None:
    try:
        return json.loads(client.key_value_try_get(key))
    except Exception as e:  # a key that is not there is an error of no type of its own
        if "NOT_FOUND" in str(e):
            return None
        raise


_here = Processes()


def here() -> Processes:
    """The processes of the run that this process trains or evaluates; itself alone where nothing was connected."""
    return _here


@contextlib.contextmanager
def joined(cluster: Cluster | None, connect_s: int) -> Iterator[Processes]:
    """Connect the processes of `cluster` for as long as the block runs; an error in one of them ends all.

    Raises:
      RunError: they cannot be connected.
    """
    global _here
    if cluster is None:
        yield _here
        return
    _here = _connect(cluster, connect_s)
    try:
        yield _here
        _here.close()
    except BaseException as e:
        # Not through an orderly exit: JAX would wait there for processes that will not come.
        code, line = _code(e), str(e) if isinstance(e, UserError) else f"{type(e).__name__}: {e}"
        if code == 1 and any(words in line for words in CONNECTION_LOST):
            time.sleep(4 * POLL_S)  # whoever ended may have said why: the thread then ends this process as well
            code, line = STOPPED_BY_SIGNAL, f"run error: another process is gone ({str(e).splitlines()[0][:200]})"
            print(f"{line}; start the same command again on all of them", file=sys.stderr)
        elif code == 1:
            sys.excepthook(type(e), e, e.__traceback__)
        elif code == 2:
            print(line, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        _here.fail(line, code)
        os._exit(code)
    finally:
        _here = Processes()


def _code(error: BaseException) -> int:
    if isinstance(error, UserError):
        return 2
    if isinstance(error, KeyboardInterrupt):
        return STOPPED_BY_SIGNAL
    return error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1


def _connect(cluster: Cluster, connect_s: int) -> Processes:
    import jax
    from jax._src import distributed  # the coordinator's client has no public name; Orbax takes it from here, too

    where = cluster.coordinator or f"the coordinator that {cluster.by} names"
    late = (
        f"run error: {where}: not all processes met there within {connect_s} s (--connect_seconds); is process 0 "
        "running, and can its port be reached from here?"
    )

    def too_late() -> None:
        print(late, file=sys.stderr, flush=True)
        os._exit(2)

    # JAX aborts the process when it waited for too long; this thread comes first, with a line.
    timer = threading.Timer(connect_s, too_late)
    timer.daemon = True
    timer.start()
    # It would take SIGTERM for itself, and nobody here asks it; `cpt.training.requests` does what it is for.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            cluster.coordinator,
            cluster.processes,
            cluster.process,
            initialization_timeout=connect_s + 60,
            heartbeat_timeout_seconds=JAX_LOST_AFTER_S,
        )
    except (RuntimeError, ValueError) as e:
        first_line = (str(e).strip().splitlines() or ["no reason given"])[0]
        raise RunError(f"{where}: the processes cannot be connected there ({first_line})") from e
    finally:
        timer.cancel()
    if jax.process_count() == 1:
        return Processes()
    if jax.process_index() > 0:
        explain_aborts(distributed.global_state.coordinator_address)
    return Connected(distributed.global_state.client, jax.process_index(), jax.process_count())
