"""What the update of known models moves between 8 devices, and the largest arrays of its program, as text.

python tests/training/structure_dump.py         # writes tests/training/golden/structure_*.txt anew
python tests/training/structure_dump.py pythia_70m "fsdp 8"     # prints a JSON object; for the tests

Read is the program as the partitioner leaves it. What comes after it on a CPU widens bfloat16 to float32 everywhere,
and so would say nothing of the bytes that an accelerator moves.
"""

import json
import math
import re
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import numpy as np
from jax.sharding import Mesh

sys.path.insert(0, str(Path(__file__).parents[1]))
import toy

from cpt import config as c
from cpt.plan import RunPlan, resolve
from cpt.training.compiled import Collective, collectives, facts, loop_bodies
from cpt.training.machine import make_machine
from cpt.training.sharding import device_mesh

GOLDEN = Path(__file__).parent / "golden"
ROWS, LENGTH, VOCAB = 64, 2048, 50304  # of 8 devices each has 16,384 tokens: four tiles of logits
MODELS = {
    "pythia_70m": dict(layers=6, width=512, heads=8),
    "pythia_410m": dict(layers=24, width=1024, heads=16, scan_layers=True),
}
MESHES = {
    "data 8": dict(data=8, fsdp=1, sequence=1, tensor=1),
    "fsdp 8": dict(data=1, fsdp=8, sequence=1, tensor=1),
    "data 2 x fsdp 2 x tensor 2": dict(data=2, fsdp=2, sequence=1, tensor=2),
}
LARGE = 2**20
"""Elements from which on an array is listed."""


@dataclass(frozen=True)
class Moved:
    """An array that a collective operation gives on each device.

    Attributes:
      axes: of the mesh, whose devices take part together.
      looped: whether it is in the body of a loop.
    """

    kind: str
    axes: str
    dtype: str
    dims: tuple[int, ...]
    looped: bool

    @property
    def bytes(self) -> int:
        return Collective(self.kind, ((self.dtype, self.dims),)).bytes

    def __str__(self) -> str:
        return f"{self.kind} over {self.axes}: {self.dtype}{list(self.dims)}{' in a loop' if self.looped else ''}"


@dataclass(frozen=True)
class Leaf:
    """A parameter on one device: elements of its shard, and of what is left of it once it is whole over `fsdp`."""

    shard: int
    gathered: int
    matrix: bool


@dataclass(frozen=True)
class Structure:
    """What is known of an update on one mesh; all of one device.

    Attributes:
      state: bytes of the state and batch.
      moved: what its collectives give.
      large: dtype and dimensions of every float array of `LARGE` elements and more.
      added: collectives that the compiler has put in after the partitioner.
      calls_host: whether it calls back into Python.
      leaves: its parameters.
    """

    state: int
    moved: tuple[Moved, ...]
    large: tuple[tuple[str, tuple[int, ...]], ...]
    added: tuple[str, ...]
    calls_host: bool
    leaves: tuple[Leaf, ...]


def structure(name: str, mesh_name: str) -> Structure:
    with TemporaryDirectory() as folder:
        plan = plan_of(name, folder)
        mesh = device_mesh(MESHES[mesh_name], jax.devices())
        options = {"xla_dump_to": folder, "xla_dump_hlo_pass_re": "spmd-partitioning"}
        compiled = make_machine(plan, mesh).lower().compile({**options, "xla_backend_optimization_level": 0})
        text = next(Path(folder).glob("*train_step*after_spmd-partitioning*")).read_text()
    found = facts(compiled)
    sizes = lambda all_: Counter((x.kind, math.prod(dims)) for x in all_ for _, dims in x.shapes)  # noqa: E731
    added = sizes(found.collectives) - sizes(collectives(text))
    floats = {(t, tuple(map(int, dims.split(",")))) for t, dims in re.findall(r"\b(f32|bf16)\[([\d,]+)\]", text)}
    return Structure(
        state=found.arguments,
        moved=tuple(moved(text, mesh)),
        large=tuple(sorted((t, dims) for t, dims in floats if math.prod(dims) >= LARGE)),
        added=tuple(f"{n} x {kind} of {size} elements" for (kind, size), n in sorted(added.items())),
        calls_host=found.calls_host,
        leaves=tuple(leaves(plan, mesh)),
    )


def plan_of(name: str, root: str) -> RunPlan:
    config = toy.get_config(root)
    config.model = c.model(**MODELS[name], vocab_size=VOCAB, context=LENGTH, compute_dtype="bfloat16")
    config.batch.sequences, config.batch.length = ROWS, LENGTH
    return resolve(c.load(config))


def leaves(plan: RunPlan, mesh: Mesh) -> list[Leaf]:
    out = []
    for x in jax.tree.leaves(make_machine(plan, mesh).abstract.params):
        shard = math.prod(x.sharding.shard_shape(x.shape))
        out.append(Leaf(shard, shard * (mesh.shape["fsdp"] if "fsdp" in x.sharding.spec else 1), len(x.shape) > 1))
    return out


def moved(text: str, mesh: Mesh) -> list[Moved]:
    """What the collectives in the text of an HLO module give, with the axes of the mesh that they go over."""
    numbers, axes_of = np.arange(mesh.size).reshape(*mesh.shape.values()), {}
    wide = [axis for axis, size in mesh.shape.items() if size > 1]
    for names in (x for n in range(1, len(wide) + 1) for x in combinations(wide, n)):
        at = [list(mesh.shape).index(axis) for axis in names]
        rows = np.moveaxis(numbers, at, range(-len(at), 0)).reshape(-1, math.prod(mesh.shape[a] for a in names))
        axes_of[as_groups(rows)] = ", ".join(names)
    looped = {line for body in loop_bodies(text) for line in body.splitlines()}
    out = []
    for line in text.splitlines():
        for x in collectives(line):
            axes = axes_of[groups(line)]
            out += [Moved(x.kind, axes, dtype, dims, line in looped) for dtype, dims in x.shapes]
    return out


def as_groups(rows: np.ndarray) -> frozenset[frozenset[int]]:
    return frozenset(frozenset(row) for row in rows.tolist())


def groups(line: str) -> frozenset[frozenset[int]]:
    """The devices that take part together in a collective, from any of the three ways in which XLA writes them."""
    integers = lambda digits: [int(x) for x in digits.split(",")]  # noqa: E731
    if listed := re.search(r"replica_groups=\{(\{[\d,{}]+\})\}", line):
        return frozenset(frozenset(integers(x)) for x in re.findall(r"\{([\d,]+)\}", listed[1]))
    if tiled := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        return as_groups(iota(*tiled.group(2, 3)).reshape(integers(tiled[1])))
    named = re.search(
        r"replica_groups=mesh\[(.*?)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{(.*?)\}", line
    )
    if named is None:
        raise ValueError(f"replica groups are not understood: {line[:300]}")
    sizes = {axis: int(size) for axis, size in re.findall(r"'([\w.]+)'=(\d+)", named[1])}
    order = iota(named[2] or str(math.prod(sizes.values())), named[3]).reshape(*sizes.values())
    at = [list(sizes).index(axis) for axis in re.findall(r"'([\w.]+)'", named[4])]
    return as_groups(np.moveaxis(order, at, range(len(at))).reshape(math.prod(order.shape[i] for i in at), -1).T)


def iota(dims: str, order: str | None) -> np.ndarray:
    sizes = [int(x) for x in dims.split(",")]
    numbers = np.arange(math.prod(sizes)).reshape(sizes)
    return numbers.transpose([int(x) for x in order.split(",")]) if order else numbers


def block(mesh_name: str, found: Structure) -> str:
    """A mesh's part of the golden text."""
    count, size = Counter(found.moved), Counter()
    lines = [f"== {mesh_name}", f"state and batch: {found.state:,} bytes"]
    for x, n in sorted(count.items(), key=lambda item: (item[0].kind, item[0].axes, -item[0].bytes, str(item[0]))):
        lines.append(f"{x}  {n} x {x.bytes:,} bytes")
        size[x.kind] += n * x.bytes
    lines += [f"all {kind}s of the program: {n:,} bytes" for kind, n in sorted(size.items())]
    dims = max((dims for dtype, dims in found.large if dtype == "f32"), key=math.prod)
    lines += [f"largest f32: {list(dims)}, {4 * math.prod(dims):,} bytes"]
    return "\n".join([*lines, f"calls the host: {'yes' if found.calls_host else 'no'}"]) + "\n"


def head(name: str) -> str:
    shape = ", ".join(f"{key} {value}" for key, value in MODELS[name].items())
    return f"{name} ({shape}), {ROWS} rows of {LENGTH:,} tokens in bfloat16; each device of 8, a loop's body once\n"


def path_of(name: str) -> Path:
    return GOLDEN / f"structure_{name}_8.txt"


def main(name: str, *meshes: str) -> dict:
    found = {mesh_name: structure(name, mesh_name) for mesh_name in meshes}
    return {mesh_name: {**asdict(x), "text": block(mesh_name, x)} for mesh_name, x in found.items()}


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_enable_compilation_cache", False)  # a program from the cache goes through no partitioner
    if sys.argv[1:]:
        print(json.dumps(main(*sys.argv[1:])))
    else:
        for name in MODELS:
            blocks = [x["text"] for x in main(name, *MESHES).values()]
            path_of(name).write_text("\n".join([head(name), *blocks]))
