"""What each host of a YAML file of this folder would run; asks no cluster and starts nothing.

    python launch/dry_run.py launch/gke_jobset.yaml launch/skypilot.yaml

The shell line of the file itself is run, with the variables that host would have, and prints its command.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

Host = tuple[str, str, dict[str, str]]  # its name, its script, its variables


def jobset_hosts(spec: dict) -> Iterator[Host]:
    """The pods of a JobSet; its controller names them <set>-<replicated job>-<replica>-<index>."""
    name = spec["metadata"]["name"]
    subdomain = spec["spec"].get("network", {}).get("subdomain", name)
    known = {}
    if lead := spec["spec"].get("coordinator"):
        pod = f"{name}-{lead['replicatedJob']}-{lead.get('jobIndex', 0)}-{lead.get('podIndex', 0)}"
        known["metadata.annotations['jobset.sigs.k8s.io/coordinator']"] = f"{pod}.{subdomain}"
    for job in spec["spec"]["replicatedJobs"]:
        task = job["template"]["spec"]
        box = task["template"]["spec"]["containers"][0]
        fixed = {
            e["name"]: e["value"] if "value" in e else known[e["valueFrom"]["fieldRef"]["fieldPath"]]
            for e in box["env"]
        }
        for replica in range(job.get("replicas", 1)):
            for index in range(task["completions"]):
                env = fixed | {"JOB_COMPLETION_INDEX": str(index)}
                yield f"{name}-{job['name']}-{replica}-{index}", box["args"][0], env


def sky_hosts(spec: dict) -> Iterator[Host]:
    """The nodes of a SkyPilot task; NODE_0, ... stand for the addresses they will get."""
    nodes = spec.get("num_nodes", 1)
    for rank in range(nodes):
        place = {
            "SKYPILOT_NUM_NODES": str(nodes),
            "SKYPILOT_NODE_RANK": str(rank),
            "SKYPILOT_NODE_IPS": "\n".join(f"NODE_{i}" for i in range(nodes)),
        }
        yield f"{spec['name']}, node {rank}", spec["run"], spec["envs"] | place


def show(path: Path) -> None:
    """Print the command that submits `path`, and that of every host."""
    spec = yaml.safe_load(path.read_text())
    jobset = spec.get("kind") == "JobSet"
    print(f"submit: {'kubectl apply -f' if jobset else 'sky jobs launch'} {path}")
    for name, script, env in (jobset_hosts if jobset else sky_hosts)(spec):
        env = {"PATH": os.environ["PATH"], "HOME": "~", **env, "DRY_RUN": "1"}
        said = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True)
        if said.returncode:
            sys.exit(f"launch error: {path}: {name}: {said.stderr.strip()}")
        print(f"{name}: {' '.join(said.stdout.split())}")


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        sys.exit(__doc__.strip())
    for file in sys.argv[1:]:
        if not Path(file).is_file():
            print(f"launch error: {file}: no such file", file=sys.stderr)
            sys.exit(2)
        show(Path(file))
