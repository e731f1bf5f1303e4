"""Where every parameter and moment of known models lies on known meshes, as text.

python tests/training/sharding_dump.py      # writes tests/training/golden/sharding_*.txt anew
"""

import functools
import re
from collections import defaultdict
from pathlib import Path

import jax
from jax.sharding import AbstractMesh, AxisType

from cpt.config import OptimizerSpec
from cpt.models.base import Model, build
from cpt.models.layout import AXES
from cpt.models.llama_spec import LlamaSpec
from cpt.models.spec import ModelSpec
from cpt.optimizers.adamw import adamw
from cpt.training.machine import abstract_state
from cpt.training.mesh import shape_text
from cpt.training.sharding import shard_bytes
from cpt.training.state import State

GOLDEN = Path(__file__).parent / "golden"
MODELS = {
    "pythia_410m": lambda: ModelSpec(layers=24, width=1024, heads=16, vocab_size=50304, context=2048),
    "llama_2_7b": lambda: LlamaSpec(layers=32, width=4096, heads=32, ff=11008, vocab_size=32000, context=4096),
}
MESHES = {
    8: dict(data=1, fsdp=4, sequence=1, tensor=2),
    256: dict(data=2, fsdp=16, sequence=1, tensor=8),
}


def dump(name: str, devices: int) -> str:
    """One line per array; layers that lie alike share one."""
    sizes = MESHES[devices]
    mesh = AbstractMesh(tuple(sizes[a] for a in AXES), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    state = state_on(mesh, name)
    layers: dict[tuple[str, str], list[int]] = defaultdict(list)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        key = re.sub(r"[\[\]'.]+", "/", jax.tree_util.keystr(path)).strip("/")
        number = re.search(r"layers/(\d+)/", key)
        spec = ", ".join("-" if axis is None else str(axis) for axis in leaf.sharding.spec) or "whole"
        said = f"{leaf.dtype}{list(leaf.shape)}  ({spec})  {shard_bytes(leaf):,} bytes per device"
        layers[re.sub(r"layers/\d+/", "layers/*/", key), said].append(int(number.group(1)) if number else -1)
    lines = [f"{name} on {devices} devices: {shape_text(sizes)}", ""]
    for (key, said), numbers in layers.items():
        if "*" in key:
            assert sorted(numbers) == [*range(len(numbers))], f"{key}: not alike in all layers"
            key = key.replace("*", f"0..{max(numbers)}")
        lines.append(f"{key}  {said}")
    whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.params))
    lines += ["", f"params: {shard_bytes(state.params):,} of {whole:,} bytes per device"]
    lines += [f"opt_state: {shard_bytes(state.opt_state):,} bytes per device"]
    return "\n".join(lines) + "\n"


def state_on(mesh: AbstractMesh, name: str) -> State:
    return abstract_state(model_of(name), adamw(OptimizerSpec()), mesh)


@functools.cache
def model_of(name: str) -> Model:
    return build(MODELS[name]())


def path_of(name: str, devices: int) -> Path:
    return GOLDEN / f"sharding_{name}_{devices}.txt"


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name in MODELS:
        for devices in MESHES:
            path_of(name, devices).write_text(dump(name, devices))
