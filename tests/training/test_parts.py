"""Checkpoints as safetensors files of each process: any part of any array, wherever it was and wherever it goes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from cpt.tensors import Tensor, write_file
from cpt.training import parts
from cpt.training.agreement import Meeting
from cpt.training.checkpoint import Checkpoints
from cpt.training.digests import DamagedCheckpoint
from cpt.training.preservation import Saved, directory_of
from cpt.training.state import State


def state() -> State:
    rng = np.random.default_rng(0)
    params = {"embed": {"kernel": jnp.asarray(rng.random((8, 6), np.float32))}, "scale": jnp.ones(3, jnp.bfloat16)}
    return State(params, optax.adam(1e-3).init(params))


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


@pytest.fixture
def saved(tmp_path) -> Saved:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save("rolling", 5, state(), {"plan_hash": "x"}, must=True)
    checkpoints.close()
    (found,) = checkpoints.finished()
    return found


def test_any_reader_of_safetensors_opens_a_rolling_checkpoint(saved):
    there = load_file(Path(saved.path) / "arrays" / "00000.safetensors")
    assert sorted(there) == [
        "opt_state/0/count", "opt_state/0/mu/embed/kernel", "opt_state/0/mu/scale", "opt_state/0/nu/embed/kernel",
        "opt_state/0/nu/scale", "params/embed/kernel", "params/scale",
    ]  # fmt: skip
    np.testing.assert_array_equal(there["params/embed/kernel"], state().params["embed"]["kernel"])
    assert there["opt_state/0/count"].shape == () and json.loads((saved.path / "meta" / "metadata").read_text())["step"]


def test_other_kinds_are_those_of_orbax(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for kind in ("anchor", "grid"):
        checkpoints.save(kind, 5, state(), {}, must=True)
        assert not parts.is_one(Saved(kind, 5, directory_of(tmp_path) / kind / "5"))
    checkpoints.close()
    assert not parts.suits(Saved("rolling", 5, epath.Path("gs://bucket/rolling/5")))


def test_what_is_not_what_is_wanted_is_named(saved):
    def wrong(change):
        target = {"params": abstract(state().params)}
        change(target["params"])
        with pytest.raises(DamagedCheckpoint) as e:
            parts.read(saved, target)
        return str(e.value)

    like = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=jnp.ones(1).sharding)  # noqa: E731
    assert wrong(lambda p: p.update(scale=like((4,), jnp.bfloat16))) == (
        "params/scale: bfloat16[3], and bfloat16[4] is wanted"
    )
    assert "float32[3] is wanted" in wrong(lambda p: p.update(scale=like((3,), jnp.float32)))
    assert wrong(lambda p: p.update(bias=like((3,), jnp.float32))) == "params/bias: missing"
    assert wrong(lambda p: p.pop("scale")) == "params/scale: not wanted"


def test_a_part_that_is_missing_is_damage(tmp_path):
    """As where the file of one of several processes is gone; the others' would be read as garbage beside nothing."""
    (tmp_path / "arrays").mkdir()
    half = np.ones((2, 3), np.float32)
    file = tmp_path / "arrays" / "00001.safetensors"
    write_file(file, [Tensor("params/a[2:4,0:3]", half.dtype, half.shape, lambda: half)])
    saved = Saved("rolling", 1, directory_of(tmp_path))
    target = {"params": {"a": jax.ShapeDtypeStruct((4, 3), jnp.float32, sharding=jnp.ones(1).sharding)}}
    with pytest.raises(DamagedCheckpoint, match="params/a: parts of it are missing"):
        parts.read(saved, target)
    write_file(file, [Tensor("params/a[2:5,0:3]", half.dtype, half.shape, lambda: half)])
    with pytest.raises(DamagedCheckpoint, match="its name and its shape"):
        parts.read(saved, target)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_region_is_put_together_from_any_parts(tmp_path_factory, data):
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    whole = np.random.default_rng(0).random(shape, np.float32)
    cuts = [sorted({0, n, *data.draw(st.lists(st.integers(0, n), max_size=2))}) for n in shape]
    tensors = []
    for index in np.ndindex(*(len(c) - 1 for c in cuts)):
        bounds = [(c[i], c[i + 1]) for c, i in zip(cuts, index, strict=True)]
        part = np.ascontiguousarray(whole[tuple(slice(*b) for b in bounds)])
        name = f"params/a[{','.join(f'{a}:{b}' for a, b in bounds)}]"
        tensors.append(Tensor(name, part.dtype, part.shape, lambda part=part: part))
    folder = tmp_path_factory.mktemp("parts")
    (folder / "arrays").mkdir()
    for process in range(2):
        write_file(folder / "arrays" / f"{process:05d}.safetensors", tensors[process::2])
    stored = parts.stored(Saved("rolling", 1, directory_of(folder)), "params")["params/a"]
    assert (stored.shape, stored.dtype) == (shape, whole.dtype)
    stored.check()
    region = tuple(slice(*sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n))))) for n in shape)
    np.testing.assert_array_equal(stored.read(region), whole[region])


class Killed(BaseException):
    """Nothing catches this, as nothing catches SIGKILL."""


POINTS = {
    "folders are there": (parts, "write_file"),
    "numbers are being written": (os, "write"),
    "numbers are written": (Path, "write_text"),
    "facts are written": (parts, "list_files"),
    "all is written": (parts, "_sync"),
    "the older one of the same step is gone": (Path, "rename"),
}


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_point_it_is_no_checkpoint_and_the_one_before_is(tmp_path, monkeypatch, point):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save("rolling", 5, state(), {}, must=True)
    checkpoints.close()
    saved = Saved("rolling", 6, directory_of(tmp_path) / "rolling" / "6")
    items = {"params": state().params, "opt_state": state().opt_state}
    with monkeypatch.context() as patch:

        def killed(*_, **__):
            raise Killed

        patch.setattr(*POINTS[point], killed)
        with pytest.raises(Killed):
            parts.write(saved, Meeting("cpt/checkpoint/2", 1.0), {"step": 6}, items)
    again = Checkpoints(tmp_path)
    assert [str(s) for s in again.finished()] == ["rolling/5"]
    assert len(list((tmp_path / "rolling").iterdir())) == 2
    again.clean()
    assert [p.name for p in (tmp_path / "rolling").iterdir()] == ["5"]
    found, state_5, _ = again.restore_latest(abstract(state()), print)
    assert found.step == 5 and state_5.opt_state[0].count == 0


MANY_DEVICES = """
import jax, jax.numpy as jnp, numpy as np, sys
from jax.sharding import NamedSharding, PartitionSpec as P
from cpt.training.checkpoint import Checkpoints, restore
from cpt.training.state import State

mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
whole = np.random.default_rng(0).random((8, 12), np.float32)
specs = [P("fsdp", "tensor"), P(None, ("fsdp", "tensor")), P(), P("tensor"), P(("data", "fsdp", "tensor"))]
put = lambda spec: jax.device_put(whole, NamedSharding(mesh, spec))
checkpoints = Checkpoints(sys.argv[1])
for step, spec in enumerate(specs, 1):
    checkpoints.save("rolling", step, State({"a": put(spec)}, {"b": put(specs[0])}), {}, must=True)
    saved = checkpoints.finished()[0]
    size = sum(p.stat().length for p in (saved.path / "arrays").iterdir())
    assert whole.nbytes * 2 < size < whole.nbytes * 2 + 3000, size  # what several devices hold is written once
    for other in specs:
        like = jax.ShapeDtypeStruct(whole.shape, jnp.float32, sharding=NamedSharding(mesh, other))
        found, _ = restore(saved, State({"a": like}, {"b": like}))
        for array in jax.tree.leaves(found):
            assert array.sharding == like.sharding
            np.testing.assert_array_equal(np.asarray(array), whole)
checkpoints.close()
print("same")
"""


@pytest.mark.slow
def test_every_sharding_reads_what_every_other_saved(tmp_path):
    env = os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-c", MANY_DEVICES, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "same", done.stderr[-2000:]
