"""Two real processes write, lose and read checkpoints together: what one of them meets, both decide on, and none hangs.

The file is also the program that each of them runs.
"""

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

PROCESSES, DEVICES, ROWS, WIDTH = 2, 2, 8, 4096


def work(kind: str, directory: str, port: str, index: int) -> None:
    """One process: what it saw, one JSON line per scene."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import multihost_utils
    from jax.sharding import NamedSharding, PartitionSpec

    from cpt.errors import RunError
    from cpt.training import checkpoint, storage
    from cpt.training.cluster import Cluster
    from cpt.training.digests import list_files
    from cpt.training.processes import joined
    from cpt.training.state import State

    stack = contextlib.ExitStack()
    stack.enter_context(joined(Cluster("test", f"127.0.0.1:{port}", PROCESSES, index), 60))
    mesh = jax.make_mesh((PROCESSES * DEVICES,), ("all",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = NamedSharding(mesh, PartitionSpec("all")), NamedSharding(mesh, PartitionSpec())
    target = State(
        {"kernel": jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32, sharding=rows)},
        {"count": jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)},
    )

    def values(step):  # what does not compress, so that each process has a file of its own
        return np.random.default_rng(step).random((ROWS, WIDTH), np.float32)

    def state(step):
        make = jax.make_array_from_callback
        return State(
            {"kernel": make((ROWS, WIDTH), rows, lambda at: values(step)[at])},
            {"count": make((), whole, lambda at: np.int32(step))},
        )

    def told(scene, **facts):
        print(json.dumps({"scene": scene, **facts}), flush=True)
        multihost_utils.sync_global_devices(scene)

    def restored(where):
        said = []
        saved, found, _ = where.restore_latest(target, said.append)
        same = all(
            (np.asarray(s.data) == values(saved.step)[s.index]).all() for s in found.params["kernel"].addressable_shards
        )
        return {"step": saved.step, "same": bool(same), "said": said}

    warned = []
    first = checkpoint.Checkpoints(directory, warn=warned.append)
    assert first.restore_latest(target, print) is None
    for step in (1, 2, 3):
        first.save(kind, step, state(step), {})
    first.close()
    told("saved", finished=[str(s) for s in first.finished()], has=[first.has(kind, s) for s in (1, 2, 3)])
    told("restored", **restored(checkpoint.Checkpoints(directory)))

    newest = first.finished()[0].path
    if index == 0:  # in a way that only process 1 can meet: its own rows, and a listing that has nothing to say
        of_both = newest / "arrays" / "00001.safetensors"
        for path in [of_both] if kind == "rolling" else (newest / "params" / "ocdbt.process_1" / "d").iterdir():
            Path(path).write_bytes(path.read_bytes()[:100])
        list_files(newest, final=True)
    multihost_utils.sync_global_devices("cut off")
    told("one cannot read", **restored(checkpoint.Checkpoints(directory)))

    again = checkpoint.Checkpoints(directory, warn=warned.append)
    again.has(kind, 1)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    if index == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
    begun = time.monotonic()
    again.save(kind, 4, state(4), {})
    problem = again.wait()
    took_s = time.monotonic() - begun
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    left = [p.name for p in (Path(directory) / kind).iterdir()]
    told("one cannot write", problem=repr(problem), warned=list(warned), left=sorted(left), took_s=took_s)
    again.save(kind, 5, state(5), {}, must=True)
    told("room again", finished=[str(s) for s in again.finished()], **restored(checkpoint.Checkpoints(directory)))

    if index == 1:  # a machine that cannot read now says nothing about the files

        def broken(*_):
            raise OSError(5, "Input/output error")

        storage._read = broken
    try:
        restored(checkpoint.Checkpoints(directory))
    except RunError as e:
        told("one has a fault", error=str(e))
    stack.close()


@pytest.fixture(scope="module", params=["rolling", "anchor"])
def scenes(tmp_path_factory, request) -> dict[str, Any]:
    """What the processes saw, by scene; with checkpoints of our own format and of Orbax."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    directory = str(tmp_path_factory.mktemp("run") / "checkpoints")
    env = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={DEVICES}",
        "JAX_PLATFORMS": "cpu",
    }
    started = [
        subprocess.Popen(
            [sys.executable, __file__, request.param, directory, port, str(index)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, cwd=Path(__file__).parents[2],
        )
        for index in range(PROCESSES)
    ]  # fmt: skip
    out: dict[str, Any] = {"kind": request.param}
    try:
        for process in started:
            stdout, stderr = process.communicate(timeout=150)
            assert process.returncode == 0, stderr[-3000:]
            for line in stdout.splitlines():
                if line.startswith("{"):  # gloo says hello there as well
                    seen = json.loads(line)
                    out.setdefault(seen["scene"], []).append(seen)
    finally:
        for process in started:
            process.kill()
    return out


@pytest.mark.slow
def test_what_two_processes_saved_both_restore(scenes):
    kind, all_stay = scenes["kind"], scenes["kind"] == "anchor"
    for seen in scenes["saved"]:
        assert seen["finished"] == [f"{kind}/{step}" for step in ([3, 2, 1] if all_stay else [3, 2])]
        assert seen["has"] == [all_stay, True, True]
    for seen in scenes["restored"]:
        assert seen["step"] == 3 and seen["same"] and not seen["said"]


@pytest.mark.slow
def test_a_file_that_one_process_cannot_read_makes_both_fall_back(scenes):
    for seen in scenes["one cannot read"]:
        assert seen["step"] == 2 and seen["same"]
        assert len(seen["said"]) == 1 and f"{scenes['kind']}/3 is damaged (" in seen["said"][0]
    why = {"anchor": "process 1: unreadable", "rolling": "arrays/00001.safetensors: "}[scenes["kind"]]
    assert why in scenes["one cannot read"][0]["said"][0]


@pytest.mark.slow
def test_a_part_that_one_process_cannot_write_fails_for_both_and_soon(scenes):
    kind = scenes["kind"]
    for seen in scenes["one cannot write"]:
        assert "File too large" in seen["problem"] and seen["took_s"] < 30
        assert len(seen["warned"]) == 1 and f"{kind}/4 could not be written (File too large)" in seen["warned"][0]
        assert seen["left"] == (["1", "2"] if kind == "anchor" else ["2"])
    for seen in scenes["room again"]:
        assert seen["finished"][0] == f"{kind}/5" and seen["step"] == 5 and seen["same"]


@pytest.mark.slow
def test_a_fault_of_one_machine_stops_both_and_moves_nothing(scenes):
    for seen in scenes["one has a fault"]:
        assert "cannot be read now (Input/output error)" in seen["error"]


if __name__ == "__main__":
    work(*sys.argv[1:4], int(sys.argv[4]))
