"""Who goes first on the processor."""

import gc
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from cpt.training.precedence import LOWEST, in_the_gaps, undisturbed


def test_what_is_changed_is_put_back_even_after_an_error():
    before = sys.getswitchinterval()
    with pytest.raises(ValueError), undisturbed():
        assert sys.getswitchinterval() < before and gc.get_freeze_count() > 0
        raise ValueError
    assert sys.getswitchinterval() == before and gc.get_freeze_count() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no niceness of their own")
def test_a_thread_in_the_gaps_and_those_it_starts_yield_and_no_other_does():
    nice = lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id())  # noqa: E731
    own, found = nice(), []

    def work():
        found.append(nice())
        child = threading.Thread(target=lambda: found.append(nice()))
        child.start()
        child.join()

    with ThreadPoolExecutor(1, initializer=in_the_gaps) as pool:
        pool.submit(work).result()
    assert found == [LOWEST, LOWEST] and nice() == own


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no niceness of their own")
def test_only_what_nobody_waits_for_is_written_in_the_gaps(tmp_path, monkeypatch):
    import jax.numpy as jnp

    from cpt.training.checkpoint import Checkpoints
    from cpt.training.state import State

    seen, real = {}, Checkpoints._write

    def write(self, saved, *rest):
        seen[saved.step] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        return real(self, saved, *rest)

    monkeypatch.setattr(Checkpoints, "_write", write)
    checkpoints, state = Checkpoints(tmp_path), State({"w": jnp.ones(3)}, {"m": jnp.zeros(3)})
    checkpoints.save("rolling", 1, state, {})
    checkpoints.save("rolling", 2, state, {}, must=True)
    checkpoints.save("rolling", 3, state, {})
    checkpoints.close()
    assert seen == {1: LOWEST, 2: os.getpriority(os.PRIO_PROCESS, 0), 3: LOWEST}
    assert [s.step for s in checkpoints.finished()] == [3, 2]
