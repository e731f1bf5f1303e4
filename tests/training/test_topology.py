"""One run on 1, 8, 4 devices: the same losses, and each topology restores what another saved."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import toy

from cpt.config import MeshSpec
from cpt.errors import ConfigError
from cpt.training.sharding import make_mesh

pytestmark = pytest.mark.slow


def run(root: Path, workdir: Path, devices: int, *flags: str) -> str:
    command = [
        sys.executable,
        "-m",
        "cpt.main",
        f"--config={Path(toy.__file__)}:{root}",
        f"--workdir={workdir}",
        *flags,
    ]
    env = {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def losses(workdir: Path, name: str = "metrics.jsonl") -> np.ndarray:
    return np.array([json.loads(line)["loss"] for line in (workdir / name).read_text().splitlines()])


@pytest.fixture(scope="module")
def on_8(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("topology")
    toy.write_corpora(root)
    said = run(root, root / "on_8", 8, "--config.mesh.data=2")
    assert "8 x cpu" in said and "mesh: data 2 x fsdp 4 x tensor 1 · per device: parameters" in said
    return root, root / "on_8"


def test_eight_devices_give_the_losses_of_one(on_8):
    root, eight = on_8
    run(root, root / "on_1", 1)
    np.testing.assert_allclose(losses(eight)[:20], losses(root / "on_1")[:20], rtol=1e-5)
    np.testing.assert_allclose(losses(eight), losses(root / "on_1"), rtol=1e-3)
    np.testing.assert_allclose(losses(eight, "eval.jsonl"), losses(root / "on_1", "eval.jsonl"), rtol=1e-3)


@pytest.mark.parametrize(
    ("devices", "flags"),
    [(4, ()), (1, ()), (8, ("--config.mesh.tensor=2", "--config.mesh.data=2", "--config.mesh.sequence=2"))],
)
def test_a_checkpoint_of_eight_goes_on_elsewhere(on_8, tmp_path, devices, flags):
    root, eight = on_8
    workdir = tmp_path / "moved"
    shutil.copytree(eight, workdir)
    shutil.rmtree(workdir / "checkpoints" / "anchor" / "40")
    said = run(root, workdir, devices, *flags)
    assert "own checkpoint rolling/35" in said and "damaged" not in said
    assert (losses(workdir)[:35] == losses(eight)[:35]).all()
    np.testing.assert_allclose(losses(workdir)[35:], losses(eight)[35:], rtol=1e-4)


def test_mesh_errors_name_the_numbers():
    with pytest.raises(ConfigError, match="mesh: data 3 x fsdp"):
        make_mesh(MeshSpec(data=3), 8)
    with pytest.raises(ConfigError, match="is not the number of devices"):
        make_mesh(MeshSpec(data=64, fsdp=1), 64)
