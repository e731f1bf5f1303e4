"""`launch/tpu_pod.sh` against a gcloud that answers from a folder, whose hosts are folders in which commands run."""

import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest
from launching import LAUNCH, launch, program

# A queued resource is the file `state`, a host a folder; those of a pod that is taken away go with it.
GCLOUD = """
all="$*"
echo "$all" >> "$CLOUD/calls"
case "$*" in
  *describe*) cat "$CLOUD/state" 2> /dev/null ;;
  *" create "*) echo ACTIVE > "$CLOUD/state" && mkdir -p "$CLOUD/host0" "$CLOUD/host1" ;;
  *" delete "*) rm -r "$CLOUD"/host? "$CLOUD/state" ;;
  *" scp "*) [ "$(cat "$CLOUD/state")" = ACTIVE ] && for h in "$CLOUD"/host?; do cp "$5" "$6" "$h"; done ;;
  *" ssh "*)
    [ "$(cat "$CLOUD/state")" = ACTIVE ] || exit 255
    hosts="$CLOUD/host0"
    case "$*" in *--worker=all*) hosts="$hosts $CLOUD/host1" ;; esac
    for h in $hosts; do HOME="$h" bash -c "cd; ${all##*--command=}" || exit; done ;;
esac
"""
RUN = """
import os, pathlib, sys, time
home, cloud = pathlib.Path(os.environ["HOME"]), pathlib.Path(os.environ["CLOUD"])
codes = (cloud / "codes").read_text().split()
launches = sum(1 for line in open(cloud / "runs") if line == home.name + chr(10)) if (cloud / "runs").exists() else 0
with open(cloud / "runs", "a") as f:
    f.write(home.name + chr(10))
print("launch", launches, os.getcwd(), sys.argv[1:], flush=True)
if codes[launches] == "preempted":
    (cloud / "state").write_text("SUSPENDED")
    os._exit(137)
sys.exit(int(codes[launches]))
"""
DEFAULTS = {"COMMAND": f"{sys.executable} -S run.py", "WAIT": "0.2"}


@pytest.fixture
def pod(tmp_path):
    """`pod("75", "0")` launches a run that ends so, launch after launch; returns the outcome and gcloud's calls."""
    cloud, checkout = tmp_path / "cloud", tmp_path / "checkout"
    cloud.mkdir()
    (checkout / "launch").mkdir(parents=True)
    for name in ("tpu_pod.sh", "tpu_worker.sh"):
        (checkout / "launch" / name).write_text((LAUNCH / name).read_text())
    (checkout / "run.py").write_text(RUN)
    (checkout / ".gitignore").write_text("runs\n")
    (checkout / "runs").write_text("big")
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=checkout, check=True)
    (checkout / "new_config.py").write_text("not yet added")
    programs = program(tmp_path / "bin", "gcloud", GCLOUD)
    program(programs, "python3", 'echo "$HOME: python3 $*" >> "$CLOUD/installs"')

    def go(*codes, flags=(), **env):
        (cloud / "codes").write_text(" ".join(codes))
        env = DEFAULTS | {"CLOUD": str(cloud), "TMPDIR": str(tmp_path)} | env
        done = launch(checkout / "launch" / "tpu_pod.sh", *flags, programs=programs, **env)
        calls = cloud / "calls"
        return done, calls.read_text().splitlines() if calls.exists() else []

    go.cloud = cloud
    return go


def kinds(calls):
    """The calls that change something, by their verb."""
    words = [next(w for w in c.split() if w in ("create", "delete", "scp", "ssh", "describe")) for c in calls]
    return [w for w in words if w in ("create", "delete", "scp")]


def test_a_dry_run_prints_every_call_and_makes_none(pod):
    done, calls = pod("0", flags=("--dry_run", "--config.seed=1"), COMMAND="python -m cpt.main --config=c.py")
    ssh = "gcloud compute tpus tpu-vm ssh cpt --zone=us-east5-a --worker={} --ssh-flag=-oServerAliveInterval=30 "
    ssh += "'--command=bash tpu_worker.sh {}'"
    archive = f"{pod.cloud.parent}/cpt.tar.gz"
    assert done.stdout.splitlines() == [
        "gcloud compute tpus queued-resources create cpt --zone=us-east5-a --node-id=cpt --accelerator-type=v5p-64 "
        "--runtime-version=v2-alpha-tpuv5 --spot",
        f"gcloud compute tpus tpu-vm scp {archive} launch/tpu_worker.sh cpt:~/ --zone=us-east5-a --worker=all",
        ssh.format("all", "install"),
        ssh.format("all", "start python -m cpt.main --config=c.py --config.seed=1"),
        ssh.format("0", "follow"),
        ssh.format("0", "result"),
        ssh.format("all", "end"),
    ]
    assert done.returncode == 0 and not calls and not Path(archive).exists()


def test_the_run_goes_over_all_hosts_with_the_checkout_as_it_is(pod):
    word = "--name=a 'b' $c"
    done, calls = pod("0", flags=(word,))
    assert done.returncode == 0, done.stderr
    assert "launch: done" in done.stdout
    assert sorted((pod.cloud / "runs").read_text().split()) == ["host0", "host1"]
    assert kinds(calls) == ["create", "scp"]
    # Words arrive as they were given, through two shells.
    host = pod.cloud / "host1"
    assert (host / "cpt.log").read_text() == f"launch 0 {host / 'cpt'} {[word]}\n"
    with tarfile.open(host / "cpt.tar.gz") as archive:
        names = set(archive.getnames())
    assert {"run.py", "new_config.py", "launch/tpu_worker.sh"} <= names and "runs" not in names
    assert f"{host}: python3 -m uv pip install -q --python=env/bin/python -e ./cpt[tpu] gcsfs" in (
        pod.cloud / "installs"
    ).read_text().split("\n")


def test_a_saved_run_is_started_again_on_the_same_pod(pod):
    done, calls = pod("75", "0")
    assert done.returncode == 0, done.stderr
    assert kinds(calls) == ["create", "scp", "scp"]
    assert "relaunch 1 of 20" in done.stdout
    assert [line[:8] for line in (pod.cloud / "host0/cpt.log").read_text().splitlines()] == ["launch 0", "launch 1"]


def test_a_preempted_pod_is_asked_for_anew(pod):
    done, calls = pod("preempted", "0")
    assert done.returncode == 0, done.stderr
    assert kinds(calls) == ["create", "scp", "delete", "create", "scp"]
    assert "is SUSPENDED; asking anew" in done.stdout


@pytest.mark.parametrize("codes, code, launches", [(["2"], 2, 1), (["1"], 1, 1), (["75", "75"], 75, 2)])
def test_a_mistake_ends_it_and_relaunches_are_bounded(pod, codes, code, launches):
    done, _ = pod(*codes, RELAUNCHES="1")
    assert done.returncode == code
    assert (pod.cloud / "runs").read_text().count("host0") == launches


def test_a_run_that_still_goes_is_followed_and_left_alone(pod):
    pod("0", flags=("--dry_run",))
    (pod.cloud / "state").write_text("ACTIVE")
    for host in ("host0", "host1"):
        (pod.cloud / host).mkdir()
    running = subprocess.Popen(["sleep", "2"])
    try:
        for host in ("host0", "host1"):
            (pod.cloud / host / "cpt.pid").write_text(str(running.pid))
            (pod.cloud / host / "cpt.exit").write_text("0\n")
            (pod.cloud / host / "cpt.log").write_text("step 7\n")
        threading.Thread(target=running.wait).start()  # a zombie would still count as running
        done, calls = pod("0")
    finally:
        running.wait()
    assert done.returncode == 0 and "step 7" in done.stdout and "the run still goes" in done.stdout
    assert kinds(calls) == ["scp"] and not (pod.cloud / "runs").exists()


@pytest.mark.parametrize(
    "env, line",
    [
        (dict(ACCELERATOR="h100-8"), "ACCELERATOR=h100-8: not known here"),
        (dict(POD="spot"), "POD=spot: queued or existing"),
        (dict(RELAUNCHES="x"), "RELAUNCHES=x: a whole number"),
        (dict(COMMAND="python -m cpt.main --workdir=gs://BUCKET/x"), "put your bucket where BUCKET stands"),
        (dict(POD="existing", NAME="mine"), "TPU VM mine in us-east5-a: no such one"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line_and_costs_nothing(pod, env, line):
    done, calls = pod("0", **env)
    assert done.returncode == 2
    assert line in done.stderr and done.stderr.count("\n") == 1
    assert not kinds(calls)


def test_the_pod_can_be_given_back(pod):
    pod("0")
    done, calls = pod("0", flags=("--delete",))
    assert done.returncode == 0
    assert calls[-1] == "compute tpus queued-resources delete cpt --zone=us-east5-a --force --quiet"
