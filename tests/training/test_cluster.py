"""Which processes a run has: flags, launchers, and what contradicts itself."""

import pytest

from cpt.errors import ConfigError
from cpt.training import cluster as clusters
from cpt.training.cluster import Cluster, cluster

SLURM = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2", "SLURM_NTASKS": "4"}
MPI = {"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "1"}


@pytest.fixture(autouse=True)
def no_chips(monkeypatch):
    monkeypatch.setattr(clusters, "_is_tpu_vm", lambda environment: False)


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, None),
        (SLURM, Cluster("SLURM", None, 4, 2)),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),  # a batch script, outside of any step
        (MPI, Cluster("Open MPI", None, 3, 1)),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, Cluster("TPU")),
        ({"TPU_WORKER_HOSTNAMES": "a"}, None),
    ],
)
def test_what_launchers_say(environment, found):
    assert cluster(environment) == found


def test_flags_win_and_the_launcher_fills_in():
    assert cluster(SLURM, "h:1", 2, 0) == Cluster("flags", "h:1", 2, 0)
    assert cluster(MPI, "h:80") == Cluster("flags", "h:80", 3, 1)  # Open MPI 5 names no address
    assert cluster({}, "[::1]:80", 2, 1) == Cluster("flags", "[::1]:80", 2, 1)
    assert cluster({}, None, 1, 0) is None


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("h:1", None, None), "--processes: needed as well; give --coordinator=HOST:PORT"),
        ((None, 2, 1), "--coordinator: needed as well"),
        (("h:1", 2, None), "--process: needed as well"),
        (("h:1", 2, 2), r"--process=2: the 2 processes of --processes are numbered 0\.\.1"),
        (("h", 2, 1), "--coordinator=h: not an address HOST:PORT"),
        (("h:port", 2, 1), "--coordinator=h:port: not an address"),
        ((":80", 2, 1), "--coordinator=:80: not an address"),
        (("h:70000", 2, 1), "--coordinator=h:70000: not an address"),
    ],
)
def test_flags_that_do_not_fit(flags, says):
    with pytest.raises(ConfigError, match=says):
        cluster({}, *flags)
