"""A program compiled in a thread is the program; what goes wrong there is told to whoever calls it."""

import json
import subprocess
import sys
import textwrap
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cpt.backend import COMPILER
from cpt.training.accounting import Account
from cpt.training.ahead import CompiledAhead

SHAPE = jax.ShapeDtypeStruct((3,), jnp.float32)


class Lowered:
    """A lowered program whose compiler waits, or fails."""

    def __init__(self, function=lambda x: x + 1, go_on=None, error=None):
        self.lowered, self.go_on, self.error = jax.jit(function).lower(SHAPE), go_on, error

    def compile(self):
        assert self.go_on is None or self.go_on.wait(60)
        if self.error is not None:
            raise self.error
        return self.lowered.compile()


def test_it_is_the_program_that_was_lowered():
    ahead = CompiledAhead(jax.jit(lambda x: 2 * x).lower(SHAPE))
    assert ahead(np.arange(3, dtype=np.float32)).tolist() == [0, 2, 4]
    with pytest.raises(TypeError, match="4"):  # compiled for what it was lowered for, and nothing else
        ahead(np.arange(4, dtype=np.float32))


def test_the_caller_goes_on_while_it_is_compiled_and_waits_for_it_where_it_calls():
    go_on = threading.Event()
    ahead = CompiledAhead(Lowered(go_on=go_on))
    assert any(t.name == COMPILER and not t.daemon for t in threading.enumerate())
    with Account().watching() as account:
        threading.Timer(0.3, go_on.set).start()
        with account.to("step"):
            assert ahead(np.zeros(3, np.float32)).tolist() == [1, 1, 1]
        assert account.seconds()["compile"] > 0.25 and account.seconds()["step"] < 0.25


@pytest.mark.parametrize("times", [1, 2])
def test_what_goes_wrong_is_raised_where_it_is_called(times):
    ahead = CompiledAhead(Lowered(error=ValueError("no such layout")))
    for _ in range(times):
        with pytest.raises(ValueError, match="no such layout"):
            ahead(np.zeros(3, np.float32))


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        ('DataError("stores/new: not there")', 2, "data error: stores/new: not there"),
        ('OSError("torn")', 1, "OSError: torn"),
    ],
)
def test_an_error_ends_a_command_while_it_still_compiles(error, code, told):
    program = textwrap.dedent(
        f"""
        import threading, time
        from cpt import cli
        from cpt.errors import DataError

        def main(argv):
            threading.Thread(target=time.sleep, args=(60,), name={COMPILER!r}).start()
            raise {error}

        cli.run(main)
        """
    )
    begun = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.returncode == code and ended.stderr.splitlines()[-1] == told
    assert len(ended.stderr.splitlines()) == 1 or code == 1  # and a traceback for what is not the user's mistake
    assert time.monotonic() - begun < 50


def test_a_run_compiles_its_update_once_and_ahead(tmp_path, monkeypatch):
    """The update that the loop calls is the one that the thread compiled, for every input of the run."""
    import toy
    from rich.console import Console

    from cpt.config import load
    from cpt.plan import resolve
    from cpt.training import machine, run

    made, jit_train_step = [], machine.jit_train_step

    def noted(*args, **kwargs):
        made.append(jit_train_step(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(machine, "jit_train_step", noted)
    config = toy.get_config(str(tmp_path))
    config.guard.spike = "skip"
    workdir = tmp_path / "run"
    run.prepare_workdir(workdir)
    outcome = run.run_training(resolve(load(config)), workdir, Console(quiet=True))
    assert outcome.stopped_by is None and len((workdir / "metrics.jsonl").read_text().splitlines()) == outcome.step
    assert len(made) == 1 and made[0]._cache_size() == 0, "it was compiled again when it was called"
    assert json.loads((workdir / "environment.json").read_text())["seconds/compile"] > 0
