"""Attention over a mesh of 8 devices against one device; run as a program, as devices are fixed when JAX starts."""

import os
from functools import partial
from importlib.util import find_spec
from itertools import product

os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cpt.models import attention, layout
from cpt.models.attention.blocked import blocked
from cpt.models.attention.reference import reference
from cpt.models.attention.splash import splash
from cpt.models.attention.spread import per_device


def mesh_of(devices: list, *sizes: int) -> Mesh:
    return Mesh(np.array(devices).reshape(sizes), layout.AXES, axis_types=(AxisType.Auto,) * 4)


def both(attend, q, k, v, weight, segments):
    mixed, pull = jax.vjp(lambda *qkv: attend(*qkv, segments), q, k, v)
    return mixed, *pull(weight)


def spread() -> int:
    """Meshes x heads of keys, fewer than devices too, x kernels; rows that cannot be split among them."""
    rng, cases = np.random.default_rng(0), 0
    sizes = {(2, 2, 1, 2): 4, (1, 2, 1, 4): 4, (8, 1, 1, 1): 3}
    kernels = {2: partial(splash, interpret=True), 4: partial(blocked, by_hand=True)}
    for (shape, rows), kv_heads in product(sizes.items(), (1, 2, 4)):
        q, k, v, w = (jnp.asarray(rng.standard_normal((rows, h, 40, 8)), "float32") for h in (4, kv_heads, kv_heads, 4))
        segments = jnp.asarray(np.sort(rng.integers(0, 3, (rows, 40)), axis=1), jnp.int32)
        kernel = kernels.get(kv_heads, blocked)
        with layout.over(mesh_of(jax.devices(), *shape)):
            ours = jax.jit(partial(both, partial(per_device, kernel)))(q, k, v, w, segments)
        for a, b in zip(ours, jax.jit(partial(both, reference))(q, k, v, w, segments), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)
        cases += 1
    return cases


def kernels_for_tpu() -> list[int]:
    """How many Pallas kernels are in programs for v5e chips: forward, dq, and dk with dv."""
    from jax.experimental import topologies

    mesh, found = mesh_of(topologies.get_topology_desc("v5e:2x4", platform="tpu").devices, 2, 2, 1, 2), []
    rows = PartitionSpec(("data", "fsdp"))
    for heads, length, channels, dtype in (
        (4, 1024, 64, "bfloat16"),
        (2, 1000, 128, "bfloat16"),
        (1, 512, 80, "float32"),
    ):
        arrays = [
            jax.ShapeDtypeStruct((4, n, length, channels), dtype, sharding=NamedSharding(mesh, rows))
            for n in (4, heads, heads, 4)
        ]
        segments = jax.ShapeDtypeStruct((4, length), "int32", sharding=NamedSharding(mesh, rows))
        with layout.over(mesh), attention.using("auto"):
            program = jax.jit(partial(both, attention.attend)).lower(*arrays, segments).compile().as_text()
        found.append(program.count('custom_call_target="tpu_custom_call"'))
    return found


if __name__ == "__main__":
    print(f"spread: {spread()} cases agree")
    if find_spec("libtpu") is None:
        print("tpu: no libtpu")
    else:
        counts = kernels_for_tpu()
        print(f"tpu: {counts[0] if len(set(counts)) == 1 else counts} kernels in each of {len(counts)} programs")
