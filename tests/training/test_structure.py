"""What the update of Pythia 70M and 410M in bfloat16 moves between 8 devices, and how large its arrays become.

The rules hold for every version of XLA; the golden text, which says what else has changed, is that of one.
"""

import functools
import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jaxlib
import numpy as np
import pytest
import structure_dump
from structure_dump import LENGTH, MESHES, MODELS, ROWS, VOCAB, Leaf, Moved

from cpt.objectives.tiles import rows_per_tile

GOLDEN_OF = "0.10.1"
UPDATE = "python tests/training/structure_dump.py"
CUBE = "data 2 x fsdp 2 x tensor 2"
# Of 410M the mesh on which everything moves that can, of 70M the one that moves most; the other golden texts are for
# whoever changes them: `structure_dump.py NAME MESH` says how it is now.
CASES = [("pythia_70m", ("fsdp 8",)), ("pythia_410m", (CUBE,))]
each = pytest.mark.parametrize(
    ("name", "mesh"), [pytest.param(name, mesh, marks=pytest.mark.slow) for name, meshes in CASES for mesh in meshes]
)


@pytest.fixture(scope="module")
def found() -> Callable[[str, str], dict]:
    """What `structure_dump.py` finds; in a process of its own: the number of CPU devices is fixed when JAX starts."""

    @functools.cache
    def find(name: str) -> dict:
        flags = {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
        }
        command = [sys.executable, Path(structure_dump.__file__), name, *dict(CASES)[name]]
        done = subprocess.run(command, env={**os.environ, **flags}, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    return lambda name, mesh: find(name)[mesh]


class Update:
    """What the rules ask about an update."""

    def __init__(self, name: str, mesh: str, facts: dict):
        sizes, model = MESHES[mesh], MODELS[name]
        self.data, self.fsdp, self.tensor = (sizes[axis] for axis in ("data", "fsdp", "tensor"))
        self.layers, self.width = 1 if model.get("scan_layers") else model["layers"], model["width"]
        self.tokens, self.vocab = ROWS * LENGTH // (self.data * self.fsdp), VOCAB // self.tensor
        self.tile = rows_per_tile(self.tokens, self.vocab, half=True)
        self.moved = [Moved(**{**x, "dims": tuple(x["dims"])}) for x in facts["moved"]]
        self.large = [(dtype, tuple(dims)) for dtype, dims in facts["large"]]
        self.leaves = [Leaf(**x) for x in facts["leaves"]]
        self.facts = facts

    def purpose(self, x: Moved) -> str | None:
        """What an array travels for; None where there is no reason for it."""
        size, axes = math.prod(x.dims), set(x.axes.split(", "))
        if size <= 2:
            return "number"
        if axes == {"tensor"}:
            # What is added up are the columns of own tokens.
            of_rows = {(self.tokens, self.width): "stream", (self.tile,): "softmax", (2, self.tile): "softmax"}
            return of_rows.get(x.dims) if x.kind == "all-reduce" else None
        if x.kind == "all-gather":
            fits = axes == {"fsdp"} and size in {leaf.gathered for leaf in self.leaves if leaf.matrix}
            return "parameter" if fits else None
        fits = axes <= {"data", "fsdp"} and size in {n for leaf in self.leaves for n in (leaf.gathered, leaf.shard)}
        return "gradient" if fits and x.kind in ("all-reduce", "reduce-scatter") else None

    def of(self, purpose: str) -> list[Moved]:
        return [x for x in self.moved if self.purpose(x) == purpose]


@pytest.fixture
def update(found, name, mesh) -> Update:
    return Update(name, mesh, found(name, mesh))


@each
def test_nothing_moves_without_a_reason(update):
    """Parameters over `fsdp`, gradients over what splits rows, sums of own tokens over `tensor`; never rows."""
    odd = Counter(str(x) for x in update.moved if update.purpose(x) is None)
    assert not odd, f"neither parameters, gradients nor sums of own tokens: {dict(odd)}"
    kinds = {"all-reduce"} | ({"all-gather", "reduce-scatter"} if update.fsdp > 1 else set())
    assert {x.kind for x in update.moved} == kinds


@each
def test_each_matrix_is_gathered_once_in_its_dtype(update):
    """Once each unrolled, where the backward pass finds it there; in loops once forward and once backward."""
    split = [leaf for leaf in update.leaves if leaf.gathered > leaf.shard]
    got, want = (Counter(math.prod(x.dims) for x in update.of("parameter")), Counter(leaf.gathered for leaf in split))
    assert got.keys() == want.keys()
    assert got <= want, f"gathered more often than there are matrices: {got - want}"
    # All but the embedding in bfloat16: that is looked up in float32.
    wide = [x for x in update.of("parameter") if x.dtype == "f32"]
    assert [x.dims for x in wide] == ([(update.vocab, update.width)] if update.fsdp > 1 else [])


@each
def test_each_gradient_is_added_up_once(update):
    """Over `fsdp` whole, and then over `data` what one device owns of it."""
    got = Counter(math.prod(x.dims) for x in update.of("gradient"))
    most = Counter(leaf.gathered for leaf in update.leaves)
    if update.fsdp > 1:
        most += Counter(leaf.shard for leaf in update.leaves if leaf.matrix)
    assert got and got <= most, f"added up more often than there are parameters: {got - most}"


@each
def test_tensor_parallel_adds_up_the_stream_four_times_a_layer(update):
    """After attention and MLP and before them on the way back; and once after the embedding and before the head."""
    count = len(update.of("stream"))
    assert count == (4 * update.layers + 2 if update.tensor > 1 else 0)
    softmax = update.of("softmax")
    assert len(softmax) == (2 if update.tensor > 1 else 0) and all(x.looped for x in softmax)


@each
def test_logits_exist_for_one_tile_only(update):
    assert update.tile < update.tokens  # there are several, or this says nothing
    most = max(update.tile * update.vocab, *(leaf.gathered for leaf in update.leaves))
    floats = {dims for dtype, dims in update.large if dtype == "f32"}
    assert not [dims for dims in floats if math.prod(dims) > most], "float32 beyond a tile of logits"
    of_words = {dims for _, dims in update.large if update.vocab in dims}
    allowed = {update.tile, update.width, update.width // update.fsdp}
    assert (update.tile, update.vocab) in of_words
    assert {math.prod(dims) // update.vocab for dims in of_words} <= allowed


@each
def test_the_state_is_split_and_the_host_is_left_alone(update):
    parameters = sum(leaf.shard for leaf in update.leaves)
    batch = 4 * (3 * update.tokens + ROWS)
    assert 12 * parameters < update.facts["state"] <= 12 * parameters + batch + 4096  # in float32, and two moments
    assert not update.facts["calls_host"], "the program calls back into Python"
    assert not update.facts["added"], f"moved beyond what the partitioner asks for: {update.facts['added']}"


@each
def test_the_update_is_as_it_was(found, name, mesh):
    if jaxlib.__version__ != GOLDEN_OF:
        pytest.skip(f"the text is that of jaxlib {GOLDEN_OF}")
    golden = structure_dump.path_of(name).read_text()
    assert golden.startswith(structure_dump.head(name)), f"if that is meant: {UPDATE}"
    blocks = {part.splitlines()[0]: part for part in golden.split("== ")[1:]}
    assert found(name, mesh)["text"].removeprefix("== ").rstrip() == blocks[mesh].rstrip(), (
        f"if that is meant: {UPDATE}"
    )


def test_groups_of_devices_are_read_in_each_notation():
    listed = structure_dump.groups("replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={0}")
    assert listed == structure_dump.as_groups(np.arange(8).reshape(4, 2))
    for text in ("[4,2]<=[8]", "mesh['axis_0'=4,'axis_1'=1,'axis_2'=2] {'axis_2'}"):
        assert structure_dump.groups(f"replica_groups={text}, channel_id=1") == listed
    crossed = structure_dump.groups("replica_groups={{0,2},{1,3},{4,6},{5,7}}, dimensions={0}")
    for text in ("[4,2]<=[2,2,2]T(0,2,1)", "mesh['a'=2,'b'=4], device_ids=([2,2,2]T(1,0,2)) {'a'}"):
        assert structure_dump.groups(f"replica_groups={text}, channel_id=1") == crossed
    with pytest.raises(ValueError, match="not understood"):
        structure_dump.groups("replica_groups=every, channel_id=1")
