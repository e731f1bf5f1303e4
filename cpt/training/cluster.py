"""Which processes make up a run, as flags or the environment of a launcher say; JAX itself connects them.

    --coordinator=HOST:PORT --processes=N --process=I     any machine
    srun python -m cpt.main ...                           SLURM, where a step has several tasks
    mpirun python -m cpt.main ...                         Open MPI (5 and later: give --coordinator as well)
    a TPU VM, a TPU node pool of GKE                      the metadata of the pod

One process alone needs none of them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from absl import flags

from cpt.errors import ConfigError

COORDINATOR = flags.DEFINE_string("coordinator", None, "Address HOST:PORT of process 0, for several processes.")
PROCESSES = flags.DEFINE_integer("processes", None, "Number of processes of the run.", lower_bound=1)
PROCESS = flags.DEFINE_integer("process", None, "Number of this process, from 0.", lower_bound=0)
CONNECT_SECONDS = flags.DEFINE_integer(
    "connect_seconds", 300, "How long the processes of a run wait for each other at the start.", lower_bound=1
)
FLAGS = (COORDINATOR, PROCESSES, PROCESS, CONNECT_SECONDS)


@dataclass(frozen=True)
class Cluster:
    """What `jax.distributed.initialize` is to be given; None is for JAX to find out.

    Attributes:
      by: what told so: `flags`, `SLURM`, `Open MPI`, `TPU`.
    """

    by: str
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None


def of_flags(environment: Mapping[str, str]) -> Cluster | None:
    """The cluster that the flags and the environment of this process describe; None for a process alone."""
    return cluster(environment, COORDINATOR.value, PROCESSES.value, PROCESS.value)


def cluster(
    environment: Mapping[str, str],
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> Cluster | None:
    """What is given, completed by the environment; None for a process alone.

    Raises:
      ConfigError: flags that contradict themselves, or miss what the environment does not say.
    """
    found = _of_launcher(environment)
    if coordinator is None and processes is None and process is None:
        return found
    count = processes if processes is not None else found and found.processes
    number = process if process is not None else found and found.process
    if count == 1 and coordinator is None:
        return None
    for flag, value in (("coordinator", coordinator), ("processes", count), ("process", number)):
        if value is None:
            raise ConfigError(f"--{flag}: needed as well; give --coordinator=HOST:PORT --processes=N --process=I")
    if not 0 <= number < count:
        raise ConfigError(f"--process={number}: the {count} processes of --processes are numbered 0..{count - 1}")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"--coordinator={coordinator}: not an address HOST:PORT")
    return Cluster("flags", coordinator, count, number)


def _of_launcher(environment: Mapping[str, str]) -> Cluster | None:
    number = lambda name: int(text) if (text := environment.get(name, "")).isdigit() else None  # noqa: E731
    # Inside a step only: a batch script is one process, however many tasks its job may start.
    if (number("SLURM_STEP_NUM_TASKS") or 1) > 1 and "SLURM_PROCID" in environment:
        return Cluster("SLURM", None, number("SLURM_STEP_NUM_TASKS"), number("SLURM_PROCID"))
    if (number("OMPI_COMM_WORLD_SIZE") or 1) > 1:
        return Cluster("Open MPI", None, number("OMPI_COMM_WORLD_SIZE"), number("OMPI_COMM_WORLD_RANK"))
    if "," in environment.get("TPU_WORKER_HOSTNAMES", "") or _is_tpu_vm(environment):
        return Cluster("TPU")
    return None


def _is_tpu_vm(environment: Mapping[str, str]) -> bool:
    """A machine with TPU chips and the library that drives them, unless JAX is told to use something else."""
    platforms = environment.get("JAX_PLATFORMS", "")
    chips = any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))
    return platforms in ("", "tpu") and chips and importlib.util.find_spec("libtpu") is not None
