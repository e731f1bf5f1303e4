"""The YAML files of `launch/`: fields as their engines know them, restarts as promised, the command of each host."""

import copy
import shlex
import subprocess
import sys

import jsonschema
import pytest
import schemas
import yaml
from launching import CLEAN, LAUNCH, program

JOBSETS = ("gke_jobset.yaml", "gke_jobset_gpu.yaml")
RUN = "python -m cpt.main --config=configs/pile_to_slimpajama.py:410m --workdir=gs://BUCKET/runs/410m"


def read(name):
    return yaml.safe_load((LAUNCH / name).read_text())


def faults(name, content):
    schema = schemas.SKY if name == "skypilot.yaml" else schemas.JOBSET
    return [e.message for e in jsonschema.Draft202012Validator(schema).iter_errors(content)]


def job_of(jobset):
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]


@pytest.mark.parametrize("name", sorted(p.name for p in LAUNCH.glob("*.yaml")))
def test_every_field_is_known_to_the_engine_and_of_its_type(name):
    assert faults(name, read(name)) == []


@pytest.mark.parametrize("name", JOBSETS)
def test_the_schema_would_notice(name):
    for spoil in (
        lambda job: job.update(backoffLimits=0),
        lambda job: job.update(parallelism="4"),
        lambda job: job["template"]["spec"].update(restartPolicy="OnFailure"),
        lambda job: job["podFailurePolicy"]["rules"][1]["onExitCodes"].update(values=[0, 75]),
        lambda job: job["podFailurePolicy"]["rules"][0].pop("onPodConditions"),
    ):
        content = copy.deepcopy(read(name))
        spoil(job_of(content))
        assert faults(name, content)


@pytest.mark.parametrize("name", JOBSETS)
def test_75_and_evictions_restart_the_set_and_all_else_ends_it(name):
    jobset = read(name)
    job, policy = job_of(jobset), jobset["spec"]["failurePolicy"]

    def restarts(code, evicted):
        """What Kubernetes and JobSet make of a pod that ends: the first rule that matches, else it counts."""
        reason = "BackoffLimitExceeded" if job["backoffLimit"] == 0 else None
        for rule in job["podFailurePolicy"]["rules"]:
            codes = rule.get("onExitCodes")
            hit = (code not in codes["values"]) == (codes["operator"] == "NotIn") if codes else evicted
            if hit:
                reason = "PodFailurePolicy" if rule["action"] == "FailJob" else reason
                break
        return not any(reason in r["onJobFailureReasons"] and r["action"] == "FailJobSet" for r in policy["rules"])

    assert [restarts(code, evicted=False) for code in (75, 2, 1, 137)] == [True, False, False, False]
    assert all(restarts(code, evicted=True) for code in (75, 137, 143))
    assert policy["maxRestarts"] > 0
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] >= 60


@pytest.mark.parametrize("name", JOBSETS)
def test_the_lines_on_top_reach_the_pods_and_agree_with_what_stands_below(name):
    jobset = read(name)
    top, job = jobset["metadata"]["annotations"], job_of(jobset)
    pod = job["template"]["spec"]
    box = pod["containers"][0]
    env = {e["name"]: e.get("value") for e in box["env"]}
    assert (box["image"], env["COMMAND"]) == (top["cpt/image"], top["cpt/command"])
    assert job["parallelism"] == job["completions"] and job["completionMode"] == "Indexed"
    assert job["podFailurePolicy"]["rules"][1]["onExitCodes"]["containerName"] == box["name"]
    if "cpt/nodes" in top:
        assert env["NODES"] == top["cpt/nodes"] == str(job["parallelism"])
        assert jobset["spec"]["coordinator"]["replicatedJob"] == jobset["spec"]["replicatedJobs"][0]["name"]
    else:
        chips = eval(top["cpt/topology"].replace("x", "*"))
        assert chips == job["parallelism"] * box["resources"]["limits"]["google.com/tpu"]
        assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == top["cpt/topology"]


def dry_run(*names):
    files = [str(LAUNCH / n) for n in names]
    return subprocess.run([sys.executable, LAUNCH / "dry_run.py", *files], env=CLEAN, capture_output=True, text=True)


def test_a_dry_run_prints_the_command_of_every_host():
    done = dry_run("gke_jobset.yaml", "gke_jobset_gpu.yaml", "skypilot.yaml")
    assert done.returncode == 0, done.stderr
    address = "--coordinator={}:8476 --processes=2 --process={}"
    assert done.stdout.splitlines() == [
        f"submit: kubectl apply -f {LAUNCH}/gke_jobset.yaml",
        *(f"cpt-slice-0-{i}: {RUN}" for i in range(4)),
        f"submit: kubectl apply -f {LAUNCH}/gke_jobset_gpu.yaml",
        *(f"cpt-node-0-{i}: {RUN} {address.format('cpt-node-0-0.cpt', i)}" for i in range(2)),
        f"submit: sky jobs launch {LAUNCH}/skypilot.yaml",
        *(f"cpt, node {i}: {RUN} {address.format('NODE_0', i)}" for i in range(2)),
    ]


def test_a_dry_run_of_what_is_not_there_is_one_line():
    done = dry_run("gke.yaml")
    assert done.returncode == 2 and done.stderr == f"launch error: {LAUNCH}/gke.yaml: no such file\n"


@pytest.mark.parametrize("codes, starts, code", [("0", 1, 0), ("75 0", 2, 0), ("2", 1, 2), ("75 75 75", 3, 75)])
def test_a_node_of_skypilot_starts_again_after_75_at_most_so_often(tmp_path, codes, starts, code):
    """The `run` of the file itself, with a program that ends with one code after the other."""
    (tmp_path / "codes").write_text("\n".join(codes.split()) + "\n")
    text = "echo run >> starts; code=$(head -n 1 codes); sed -i 1d codes; exit $code"
    programs = program(tmp_path / "bin", "end", text)
    place = dict(SKYPILOT_NUM_NODES="1", SKYPILOT_NODE_RANK="0", SKYPILOT_NODE_IPS="10.0.0.1")
    env = CLEAN | place | {"COMMAND": "end", "RELAUNCHES": "2", "PATH": f"{programs}:{CLEAN['PATH']}"}
    done = subprocess.run(["bash", "-c", read("skypilot.yaml")["run"]], cwd=tmp_path, env=env, capture_output=True)
    assert done.returncode == code
    assert (tmp_path / "starts").read_text().count("run") == starts


@pytest.mark.parametrize("name", JOBSETS)
def test_the_command_replaces_the_shell_so_that_sigterm_reaches_it(name):
    assert shlex.split(job_of(read(name))["template"]["spec"]["containers"][0]["args"][0])[0] == "exec"
