"""Processes that write a checkpoint together: whoever fails, and whenever, all hear of it at one meeting."""

import threading
import time

import pytest

from cpt.training import agreement
from cpt.training.agreement import Meeting, OthersFailed


class Service:
    """The coordination service of two processes; `late_s` is how long the first takes to read."""

    def __init__(self, late_s):
        self.late_s, self.values, self.barriers, self.lock = late_s, {}, {}, threading.Lock()

    def wait_at_barrier(self, name, timeout_ms):
        with self.lock:
            barrier = self.barriers.setdefault(name, threading.Barrier(2))
        barrier.wait(timeout_ms / 1000)

    def key_value_set(self, key, value):
        self.values[key] = value

    def key_value_dir_get(self, prefix):
        if threading.current_thread().name == "first":
            time.sleep(self.late_s)
        return [(k, v) for k, v in self.values.items() if k.startswith(prefix)]


@pytest.mark.parametrize("fails_after", [0, 1, 2])
@pytest.mark.parametrize("late_s", [0.0, 0.1])
def test_a_failure_is_heard_at_the_meeting_that_it_waits_at(monkeypatch, fails_after, late_s):
    """One process passes a meeting and fails at once, before the other has read what was said at that meeting."""
    monkeypatch.setattr(agreement.jax, "process_count", lambda: 2)
    monkeypatch.setattr(agreement.jax, "process_index", lambda: int(threading.current_thread().name == "second"))
    service, heard = Service(late_s), {}
    monkeypatch.setattr(agreement, "_client", lambda: service)

    def write(name, fails_at):
        meeting, joined = Meeting("m", 3.0), 0
        try:
            for stage in range(3):
                if stage == fails_at:
                    meeting.give_up("no room")
                    heard[name] = ("gave up", joined)
                    break
                meeting.join()
                joined += 1
        except OthersFailed as e:
            heard[name] = (str(e), joined)
        try:
            meeting.part()
        except threading.BrokenBarrierError:
            heard[name] = ("alone at the end", joined)

    first = threading.Thread(target=write, args=("first", None), name="first")
    second = threading.Thread(target=write, args=("second", fails_after), name="second")
    for thread in (first, second):
        thread.start()
    for thread in (first, second):
        thread.join(10)
    assert heard == {"first": ("no room", fails_after), "second": ("gave up", fails_after)}
