"""Sizes of the mesh: what is filled in, what is chosen from model and memory, what is refused with one line."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt import config as c
from cpt.config import MeshSpec, RunSpec, load
from cpt.errors import ConfigError
from cpt.models.spec import parameter_count
from cpt.training.memory import device_memory, estimate
from cpt.training.mesh import COMFORT, Devices, across_slices, choose, mesh_line, shape_text, solve

H100 = "NVIDIA H100 80GB HBM3"


def run(sequences: int = 64, accumulate: int = 1, mesh: dict | None = None, **model: object) -> RunSpec:
    shape = dict(layers=2, width=64, heads=4, vocab_size=256, context=128) | model
    return load(
        c.run(
            name="a",
            model=c.model(**shape),
            batch=c.batch(sequences=sequences, length=128, accumulate=accumulate),
            sources={"s": c.source(corpus="jsonl", path="s.jsonl")},
            order=("p",),
            phases={"p": c.phase(steps=10, mix={"s": 1.0})},
            mesh=c.mesh(**(mesh or {})),
        )
    )


BIG = dict(layers=32, width=4096, heads=32, vocab_size=32000, compute_dtype="bfloat16", remat="full")


def sizes(data: int, fsdp: int, sequence: int = 1, tensor: int = 1) -> dict[str, int]:
    return dict(data=data, fsdp=fsdp, sequence=sequence, tensor=tensor)


def test_a_small_model_is_copied_and_a_large_one_is_split_as_little_as_it_needs():
    assert choose(run(), Devices(8, H100)).sizes == sizes(8, 1)
    large = choose(run(**BIG), Devices(64, H100))
    assert large.sizes["fsdp"] > 1 and large.sizes["data"] * large.sizes["fsdp"] == 64
    # 7 billion parameters are 27 GB, with moments, gradients and the snapshot 7 times that.
    total = lambda s: estimate(run(**BIG), s).total  # noqa: E731
    half = sizes(large.sizes["data"] * 2, large.sizes["fsdp"] // 2)
    assert total(large.sizes) <= COMFORT * 80e9 < total(half)
    assert "fewest parts" in large.why


def test_what_is_chosen_is_said_with_the_memory_per_device():
    line = mesh_line(run(), Devices(8, H100))
    assert line.startswith("mesh: data 8 x fsdp 1 x tensor 1 (chosen: a whole copy stays under 60 % of the memory)")
    assert "per device: parameters " in line and line.endswith("of 80 GB")
    assert "chosen" not in mesh_line(run(), Devices(1)) and mesh_line(run(), Devices(1)).endswith("of 16 GB assumed")
    assert "chosen" not in mesh_line(run(mesh=dict(fsdp=8)), Devices(8, H100))
    assert "memory of 'Abacus' is not known" in mesh_line(run(), Devices(8, "Abacus"))
    assert "still over 60 %" in mesh_line(run(sequences=8, **BIG | dict(remat="none")), Devices(8, "TPU v5 lite"))


@given(
    st.integers(0, 6), st.integers(0, 3), st.integers(0, 3), st.integers(0, 2), st.sampled_from([1, 2, 8, 12, 64, 96])
)
def test_sizes_multiply_to_the_devices_or_are_refused(data, fsdp, tensor, sequence, devices):
    try:
        found = solve(MeshSpec(data, fsdp, sequence, tensor), Devices(devices))
    except ConfigError as e:
        assert str(e).startswith("config error: mesh: ") and "\n" not in str(e)
    else:
        assert math.prod(found.values()) == devices
        given = dict(data=data, fsdp=fsdp, sequence=sequence, tensor=tensor)
        assert all(found[axis] == n for axis, n in given.items() if n)


@pytest.mark.parametrize(
    ("spec", "devices", "says"),
    [
        (run(mesh=dict(data=3)), Devices(8), r"mesh: data 3 x fsdp 2 x tensor 1 is not the number of devices, 8"),
        (run(mesh=dict(data=1, fsdp=1)), Devices(8), "is not the number of devices, 8; mesh.data or mesh.fsdp may be"),
        (run(mesh=dict(tensor=0)), Devices(8), "data, fsdp, tensor are 0, and only data and fsdp can share"),
        (run(mesh=dict(tensor=8)), Devices(8), r"mesh.tensor: 8 does not divide model.heads=4; choose one of 1, 2, 4"),
        (run(mesh=dict(sequence=3, data=1)), Devices(3), r"mesh.sequence: 3 does not divide batch.length=128"),
        (
            run(sequences=12),
            Devices(8),
            "12 rows per micro-batch cannot be split over data 8 x fsdp 1 x tensor 1; choose",
        ),
        (run(sequences=64, accumulate=16), Devices(8), "4 rows per .*; choose batch.accumulate of 1, 2, 4, 8$"),
        (run(mesh=dict(tensor=4)), Devices(8, H100, slices=8), "does not fit 8 slices; data x fsdp must be a multiple"),
    ],
)
def test_a_mesh_that_cannot_be_is_one_line(spec, devices, says):
    with pytest.raises(ConfigError, match=says) as e:
        choose(spec, devices)
    assert "\n" not in str(e.value)


def test_a_negative_size_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"mesh\.sequence: -1 is not at least 0"):
        run(mesh=dict(sequence=-1))


@pytest.mark.parametrize(
    ("shape", "slices", "between"),
    [
        (sizes(4, 8), 2, (2, 1)),
        (sizes(2, 16, tensor=2), 4, (2, 2)),
        (sizes(1, 16), 2, (1, 2)),
        (sizes(6, 4), 3, (3, 1)),
    ],
)
def test_slices_are_joined_by_data_then_by_fsdp(shape, slices, between):
    found = across_slices(shape, slices)
    assert (found["data"], found["fsdp"]) == between and found["tensor"] == found["sequence"] == 1


@dataclass(frozen=True)
class Device:
    """What JAX asks of a device to lay out a mesh."""

    id: int
    slice_index: int
    process_index: int
    platform: str = "gpu"
    device_kind: str = H100
    client: None = None


def test_the_devices_of_a_slice_stay_together():
    from cpt.training.sharding import describe, device_mesh

    devices = [Device(id=i, slice_index=i // 4, process_index=i // 4) for i in range(16)]
    np.random.default_rng(0).shuffle(devices)
    assert describe(devices) == Devices(16, H100, 4)
    mesh = device_mesh(sizes(4, 2, tensor=2), devices)
    slices_FxSxT = np.vectorize(lambda d: d.slice_index)(mesh.devices)
    assert mesh.axis_names == ("data", "fsdp", "sequence", "tensor")
    assert [len(np.unique(part)) for part in slices_FxSxT] == [1] * 4 and len(np.unique(slices_FxSxT)) == 4


@pytest.mark.parametrize(
    ("kind", "gigabytes"),
    [
        (H100, 80),
        ("NVIDIA A100-SXM4-40GB", 40),
        ("NVIDIA H200", 141),
        ("TPU v5 lite", 16),
        ("TPU v5", 95),
        ("TPU v5p", 95),
        ("TPU v6 lite", 32),
        ("cpu", 16),
        ("NVIDIA GB10000", None),
    ],
)
def test_memory_is_known_by_the_name_of_the_device(kind, gigabytes):
    assert device_memory(kind) == (None if gigabytes is None else gigabytes * 1e9)


def test_the_estimate_splits_what_each_axis_splits():
    spec = run(sequences=64, compute_dtype="bfloat16")
    one, split = estimate(spec, sizes(1, 1)), estimate(spec, sizes(2, 4, tensor=2))
    assert one.parameters == 4 * parameter_count(spec.model) and one.optimizer == 2 * one.parameters
    assert one.snapshot == one.parameters + one.optimizer
    for field in ("parameters", "optimizer", "gradients", "snapshot"):
        assert getattr(split, field) == getattr(one, field) / 8
    assert split.weights == one.weights / 2 == one.parameters / 4
    assert one.activations / 16 < split.activations < one.activations / 8
    again = replace(spec, model=replace(spec.model, remat="full"), batch=replace(spec.batch, accumulate=2))
    assert estimate(again, sizes(1, 1)).activations < one.activations / 2
    assert estimate(again, sizes(1, 1)).gradients == 2 * one.gradients


def test_attention_weights_count_where_they_are_kept():
    """[heads, L, L / 2] of each row and layer in float32 and the compute dtype, of short rows and the plain square."""

    def kept(length: int) -> float:
        blocks = run(context=length)
        blocks = replace(blocks, batch=replace(blocks.batch, length=length))
        square = replace(blocks, model=replace(blocks.model, attention="reference"))
        return estimate(square, sizes(1, 1)).activations - estimate(blocks, sizes(1, 1)).activations

    assert kept(128) == 0
    assert kept(1024) == 64 * 2 * 4 * 1024**2 / 2 * 8


def test_shapes_are_said_with_sequence_only_where_it_is_used():
    assert shape_text(sizes(1, 8)) == "data 1 x fsdp 8 x tensor 1"
    assert shape_text(sizes(2, 1, 4)) == "data 2 x fsdp 1 x tensor 1 x sequence 4"
