"""The reproducer of jax issue 39103 is right here, and a wrong sum stops the run."""

import pytest

from cpt.errors import RunError
from cpt.training import selfcheck


def test_this_backend_sums_rightly():
    assert selfcheck.summed_squares() == 32768.0**2
    selfcheck.selfcheck()


def test_a_wrong_sum_is_refused(monkeypatch):
    monkeypatch.setattr(selfcheck, "summed_squares", lambda: 1065369600.0)  # what jaxlib 0.10.2 returns
    with pytest.raises(RunError, match="sums wrongly: 1065369600 for 1073741824"):
        selfcheck.selfcheck()
