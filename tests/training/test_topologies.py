"""Machines by name, and what a dry run says of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import toy

from cpt.cli import OptionalValue
from cpt.errors import ConfigError
from cpt.training import dry_run
from cpt.training.mesh import Devices
from cpt.training.topologies import topology


@pytest.mark.parametrize(
    ("name", "devices", "torus"),
    [
        ("v4-32", Devices(16, "TPU v4"), (2, 2, 4)),
        ("v5p-8", Devices(4, "TPU v5"), (2, 2, 1)),
        ("v5p-64", Devices(32, "TPU v5"), (2, 4, 4)),
        ("v5p-128", Devices(64, "TPU v5"), (4, 4, 4)),
        ("v5e-16", Devices(16, "TPU v5 lite"), (4, 4)),
        ("v5litepod-8", Devices(8, "TPU v5 lite"), (2, 4)),
        ("v6e-256", Devices(256, "TPU v6 lite"), (16, 16)),
        ("2xv5e-256", Devices(512, "TPU v5 lite", 2), (16, 16)),
        ("h100-4", Devices(4, "NVIDIA H100 80GB HBM3"), None),
        ("H200-64", Devices(64, "NVIDIA H200", 8), None),
        ("a100-8", Devices(8, "NVIDIA A100-SXM4-80GB"), None),
        ("cpu-3", Devices(3, "cpu"), None),
    ],
)
def test_a_name_says_what_the_machine_is(name, devices, torus):
    found = topology(name)
    assert found.devices == devices
    assert torus is None or found.torus == torus


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v5x-64", r"no such topology; did you mean 'v5p-64'\?  \(there are: v4-N, v5p-N"),
        ("v5p", "no such topology; did you mean"),
        ("v5p-63", "there is no machine of 63; v5p-N has N of 8, 16"),
        ("v5e-3", "there is no machine of 3; v5e-N has N of 1, 4, 8"),
        ("h100-12", "12 devices are no whole number of nodes of 8"),
        ("h100-0", "there is no machine of 0"),
    ],
)
def test_a_machine_that_is_not_is_one_line(name, says):
    with pytest.raises(ConfigError, match=says) as e:
        topology(name)
    assert str(e.value).startswith(f"config error: --dry_run={name}: ") and "\n" not in str(e.value)


def test_the_flag_may_stand_alone_be_denied_or_have_a_value():
    parse = OptionalValue().parse
    assert [parse(x) for x in ("true", True, "false", False, "v5p-64")] == ["", "", None, None, "v5p-64"]


def test_what_cannot_be_compiled_is_estimated_and_said_so(toy_plan):
    named, mesh, why = dry_run.topology_lines(toy_plan, "h100-8")
    assert named == "topology h100-8: 8 x NVIDIA H100 80GB HBM3"
    assert mesh.startswith("mesh: data 8 x fsdp 1 x tensor 1 (chosen: ") and mesh.endswith("of 80 GB")
    assert why.startswith("not compiled: ") and why.endswith("the memory above is an estimate from the config")


def test_rows_that_do_not_fit_the_machine_are_refused(toy_plan):
    with pytest.raises(ConfigError, match="8 rows per micro-batch cannot be split over data 16"):
        list(dry_run.topology_lines(toy_plan, "v5e-16"))


@pytest.mark.slow
def test_the_command_compiles_for_devices_that_are_not_there(toy_root):
    command = [sys.executable, "-m", "cpt.main", f"--config={Path(toy.__file__)}:{toy_root}"]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [*command, "--dry_run=cpu-4", "--config.mesh.fsdp=4"], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("mesh: data 1 x fsdp 4 x tensor 1 · per device: parameters ") for line in lines)
    assert any(line.startswith("compiled in ") and line.endswith("of 16 GB") for line in lines)
    assert any(line.startswith("collectives in the program: all-gather ") for line in lines)
    wrong = subprocess.run([*command, "--dry_run=v5q-8"], env=env, capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stderr.startswith("config error: --dry_run=v5q-8: no such topology")
