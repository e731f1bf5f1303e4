"""SLURM on this machine alone: munged, slurmctld and slurmd of one's own, in a directory, ended when the block ends.

    python tests/launch/slurm_cluster.py sbatch --wait launch/slurm.sbatch --config.seed=1

From Debian's packages `slurmctld slurmd slurm-client munge`; nothing of an installed cluster is read or changed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from getpass import getuser
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "srun")
SYSTEM = "/usr/sbin:/usr/local/sbin"  # where the daemons lie, which is not in everyone's PATH


def missing() -> str:
    """The programs that are not installed, as text; empty if a cluster can be had."""
    return ", ".join(p for p in PROGRAMS if not shutil.which(p, path=f"{os.environ['PATH']}:{SYSTEM}"))


class Cluster:
    """`with Cluster(DIR) as cluster: cluster.run("sinfo")`: one node, `cpus` jobs of one task side by side."""

    def __init__(self, root: Path, cpus: int = 2):
        self.root, self.cpus = root, cpus
        self.daemons: list[subprocess.Popen] = []
        conf = str(root / "slurm.conf")
        self.env = os.environ | {"SLURM_CONF": conf, "PATH": f"{os.environ['PATH']}:{SYSTEM}"}

    def __enter__(self) -> Cluster:
        self.root.mkdir(parents=True, exist_ok=True)
        key, munge = self.root / "munge.key", self.root / "munge.socket"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        self._configure(munge)
        try:
            files = [f"--{what}-file={self.root / f'munge.{what}'}" for what in ("key", "pid", "log", "seed")]
            self._start("munged", "--foreground", "--force", f"--socket={munge}", *files)
            self._until(munge.exists, "munged")
            self._start("slurmctld", "-D", "-i")
            self._start("slurmd", "-D")
            self._until(lambda: "idle" in self.run("sinfo", check=False), "a node")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if len(self.daemons) > 1:
            self.run("scancel", f"--user={getuser()}", check=False)
            deadline = time.monotonic() + 15
            while self.run("squeue", "-h", check=False).strip() and time.monotonic() < deadline:
                time.sleep(0.3)
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def run(self, *command: str, check: bool = True, **env: str) -> str:
        """The output of a command that sees this cluster."""
        done = subprocess.run(command, env=self.env | env, capture_output=True, text=True, timeout=120)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def _configure(self, munge: Path) -> None:
        name, user = socket.gethostname().split(".")[0], getuser()
        lines = {
            "ClusterName": "loopback",
            "SlurmctldHost": f"{name}(127.0.0.1)",
            "SlurmUser": user,
            "SlurmdUser": user,
            "SlurmctldPort": _free_port(),
            "SlurmdPort": _free_port(),
            "AuthType": "auth/munge",
            # A requeued job waits until its credentials are void, two minutes unless told otherwise; 5 s are the least.
            "AuthInfo": f"socket={munge},cred_expire=5",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_CPU",
            "SchedulerParameters": "sched_interval=1,sched_min_interval=0,batch_sched_delay=0",
            "ReturnToService": 2,
            "KillWait": 10,
            "MailProg": "/bin/true",
            "StateSaveLocation": self.root / "state",
            "SlurmdSpoolDir": self.root / "spool",
            "SlurmctldPidFile": self.root / "slurmctld.pid",
            "SlurmdPidFile": self.root / "slurmd.pid",
            "NodeName": f"{name} NodeAddr=127.0.0.1 CPUs={self.cpus} State=UNKNOWN",
            "PartitionName": "all Nodes=ALL Default=YES MaxTime=INFINITE State=UP",
        }
        (self.root / "state").mkdir(exist_ok=True)
        (self.root / "spool").mkdir(exist_ok=True)
        (self.root / "slurm.conf").write_text("".join(f"{k}={v}\n" for k, v in lines.items()))

    def _start(self, *command: str) -> None:
        with (self.root / f"{command[0]}.out").open("w") as out:
            self.daemons.append(subprocess.Popen(command, env=self.env, stdout=out, stderr=out))

    def _until(self, ready, what: str) -> None:
        deadline = time.monotonic() + 30
        while not ready():
            if time.monotonic() > deadline or any(d.poll() is not None for d in self.daemons):
                said = "".join(p.read_text()[-500:] for p in self.root.glob("*.out"))
                raise RuntimeError(f"{what} did not start: {said}")
            time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


if __name__ == "__main__":
    if missing():
        sys.exit(f"not installed: {missing()}; apt-get install slurmctld slurmd slurm-client munge")
    with tempfile.TemporaryDirectory() as directory, Cluster(Path(directory), os.cpu_count() or 1) as cluster:
        sys.exit(subprocess.run(sys.argv[1:] or ["sinfo"], env=cluster.env).returncode)
