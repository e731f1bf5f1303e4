"""The first updates of the toy recipe on several meshes of 8 simulated devices; prints a JSON object. For the tests.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/training/sharded_steps.py DIR FAMILY
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import toy

from cpt import config as c
from cpt.data.preparing import open_sources
from cpt.plan import RunPlan, resolve
from cpt.training.compiled import compile_step
from cpt.training.feed import Data, check_data, host_batches
from cpt.training.machine import make_machine
from cpt.training.sharding import device_mesh, put_batch, shard_bytes
from cpt.training.state import State

UPDATES = 20
AXES = ("data", "fsdp", "sequence", "tensor")
# Rows of a batch, and devices along each axis. With 2 rows there is nothing but their length to split over 8 devices.
TRAINED = (
    (8, (1, 1, 1, 1)),
    (8, (2, 2, 1, 2)),
    (8, (2, 1, 2, 2)),
    (2, (1, 1, 1, 1)),
    (2, (2, 1, 4, 1)),
)
COMPILED = ((8, (8, 1, 1, 1)), (8, (1, 8, 1, 1)), (8, (2, 2, 1, 2)), (2, (2, 1, 4, 1)))
MODELS = {
    "gpt_neox": c.model(layers=1, width=48, heads=2, vocab_size=260, context=32),
    # One head of keys: `tensor` cannot split it, and both devices keep it.
    "llama": c.llama(layers=1, width=48, heads=2, kv_heads=1, ff=80, vocab_size=260, context=32),
}


def plan_of(root: str, family: str, rows: int) -> RunPlan:
    config = toy.get_config(root)
    config.model, config.batch.sequences = MODELS[family], rows
    return resolve(c.load(config))


def train(plan: RunPlan, mesh: jax.sharding.Mesh) -> dict:
    """Losses of the first updates, and bytes per device."""
    machine = make_machine(plan, mesh)
    # Made on one device: what is compared are the updates.
    params = machine.model.init(jax.random.key(0))
    fresh = State(params, machine.tx.init(params))
    state = jax.device_put(fresh, jax.tree.map(lambda leaf: leaf.sharding, machine.abstract))
    sources, tokenizer = open_sources(plan.spec.sources, plan.spec.tokenizer, Path(plan.spec.stores), lambda _: None)
    data = Data(sources, tokenizer)
    batches, losses = host_batches(plan, data, check_data(plan, data)), []
    for step in range(UPDATES):
        batch = put_batch(mesh, batches[step], plan.spec.batch.sequences)
        state, sums = machine.update(state, batch, *machine.inputs(step, plan.lr(step), None))
        losses.append(float(sums.objective))
    matrices = [x for x in jax.tree.leaves(machine.abstract.params) if len(x.shape) > 1]
    return {
        "losses": losses,
        "matrix_bytes": shard_bytes(matrices),
        "matrix_bytes_of_one": sum(x.size * x.dtype.itemsize for x in matrices),
        "held": [sum(s.data.nbytes for s in x.addressable_shards[:1]) for x in jax.tree.leaves(state.params)],
        "planned": [shard_bytes(x) for x in jax.tree.leaves(machine.abstract.params)],
    }


def main(root: str, family: str) -> dict:
    out = {}
    mesh_of = lambda n: device_mesh(dict(zip(AXES, n, strict=True)), jax.devices()[: int(np.prod(n))])  # noqa: E731
    for rows, sizes in TRAINED:
        out[f"train {rows} {sizes}"] = train(plan_of(root, family, rows), mesh_of(sizes))
    for rows, sizes in COMPILED if family == "gpt_neox" else ():
        out[f"compile {rows} {sizes}"] = asdict(compile_step(plan_of(root, family, rows), mesh_of(sizes)))
    return out


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
