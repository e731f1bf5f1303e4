"""The head's objective on meshes of 8 simulated devices, alone and in the update; prints a JSON object. For the tests.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/objectives/sharded_head.py DIR
"""

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

sys.path.insert(0, str(Path(__file__).parents[1]))
import toy

from cpt import config as c
from cpt.models.layout import AXES
from cpt.objectives import tiles
from cpt.objectives.linear_cross_entropy import linear_cross_entropy
from cpt.plan import resolve
from cpt.training.compiled import collectives, compile_update, facts, loop_bodies
from cpt.training.sharding import device_mesh

# 260 ids are split over `tensor` 2, and stay whole over 8; lanes of 16 pad both.
BATCH, LENGTH, WIDTH, VOCAB, LANES = 8, 16, 48, 260, 16
SIZES = ((8, 1, 1, 1), (2, 2, 1, 2), (1, 2, 2, 2), (1, 1, 1, 8))
ROWS = 4  # tokens of a tile in the update; each device has 32 or 64


def mesh_of(sizes: tuple[int, ...]) -> Mesh:
    return device_mesh(dict(zip(AXES, sizes, strict=True)), jax.devices())


def heads(dtype: str, meshes: tuple[tuple[int, ...], ...]) -> dict[str, dict[str, float]]:
    """Per mesh and tile the difference from one device with full logits, relative to the largest number."""
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.standard_normal((BATCH, LENGTH, WIDTH)), dtype)
    head = jnp.asarray(rng.standard_normal((WIDTH, VOCAB)), jnp.float32)
    targets = rng.integers(0, VOCAB, (BATCH, LENGTH))
    targets[0, :4] = 0, VOCAB // 2 - 1, VOCAB // 2, VOCAB - 1  # the ends of each part
    weights = jnp.asarray(rng.choice([0.0, 1.0, 2.5], (BATCH, LENGTH)), jnp.float32)

    def run(mesh, rows, lanes, place):
        def objective(hidden, head, targets, weights):
            return linear_cross_entropy(hidden, head, targets, weights, weights.sum(), 0.01, mesh, rows, lanes)

        given = place(hidden, "tokens"), place(head, "head"), place(targets, "tokens"), place(weights, "tokens")
        (total, nll), slopes = jax.jit(jax.value_and_grad(objective, (0, 1), has_aux=True))(*given)
        found = dict(objective=total, nll=nll, by_hidden=slopes[0], by_head=slopes[1])
        return {name: np.asarray(x, np.float64) for name, x in found.items()}

    one, out = run(None, None, 1, lambda x, _: x), {}
    for sizes in meshes:
        mesh = mesh_of(sizes)
        parts = {
            "tokens": PartitionSpec(("data", "fsdp"), "sequence"),
            "head": PartitionSpec("fsdp", "tensor" if VOCAB % sizes[3] == 0 else None),
        }
        place = lambda x, kind, m=mesh, p=parts: jax.device_put(x, NamedSharding(m, p[kind]))  # noqa: E731
        for rows, lanes in ((None, 1), (5, LANES)):
            many = run(mesh, rows, lanes, place)
            off = {name: float(np.abs(many[name] - x).max() / np.abs(x).max()) for name, x in one.items()}
            out[f"{dtype} {sizes} {rows} {lanes}"] = off
    return out


def update(root: str, sizes: tuple[int, ...]) -> dict:
    """The compiled update of the toy recipe whose head takes many tiles."""
    config = toy.get_config(root)
    config.model = c.model(layers=1, width=WIDTH, heads=2, vocab_size=VOCAB, context=32)
    compiled = compile_update(resolve(c.load(config)), mesh_of(sizes))
    text = compiled.as_text()
    floats = {tuple(map(int, dims.split(","))) for dims in re.findall(r"\bf32\[([\d,]+)\]", text)}
    vocab = VOCAB // sizes[3]
    return {
        "facts": asdict(facts(compiled)),
        "in_loops": [asdict(x) for x in collectives("\n".join(loop_bodies(text)))],
        "logits": sorted(dims for dims in floats if vocab in dims and WIDTH not in dims),
    }


def main(root: str) -> dict:
    out = {"heads": heads("float32", SIZES) | heads("bfloat16", SIZES[1:2])}
    for sizes in ((8, 1, 1, 1), (1, 8, 1, 1), (2, 2, 1, 2)):
        tiles.LOGITS_AT_ONCE = ROWS * VOCAB // sizes[3]
        out[f"update {sizes}"] = update(root, sizes)
    return out


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
