"""The parts of `--suite=gpu`: `python -m cpt.bench.gpu_parts PART FILE.json full|small [PYTHON]`.

Each item of a part is measured by itself; one that fails (memory, a kernel that is not there) is noted with its reason.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from cpt.bench.facts import matmul_rate, peak_memory, product_rate, stated_peak
from cpt.bench.peers.suite import PYTHIA_410M, SMALL, Shape, bench_peers
from cpt.bench.timing import Step, figures, rates
from cpt.bench.updates import Updates, as_batch, synthetic
from cpt.evaluators.losses import EvalSet, SetLosses
from cpt.evaluators.rows import write_atomic
from cpt.models.attention import attend, using
from cpt.models.spec import flops_per_token
from cpt.objectives.linear_cross_entropy import linear_cross_entropy
from cpt.training.checkpoint import Checkpoints
from cpt.training.evaluation import narrowing
from cpt.training.sharding import BATCH

Items = Iterator[tuple[str, Callable[[], dict[str, Any]]]]


@dataclass(frozen=True)
class Size:
    """How large the parts are: a shape, tokens of products and of the head, and rows of the updates that are tried."""

    shape: Shape
    tokens: int
    rows: tuple[int, ...]
    whole: int
    copied: int
    attention_rows: int


FULL = Size(PYTHIA_410M, 65_536, (32, 16, 64), 256, 2**30, 32)
TOY = Size(SMALL, 64, (2,), 4, 2**16, 2)


def seconds_of(call: Callable[..., Any], *args: Any, at_least_s: float = 0.5) -> float:
    """Per call, of calls one after the other, the last waited for; compiled before."""
    jax.block_until_ready(call(*args))
    calls, took = 1, 0.0
    while took < at_least_s:
        begun = time.perf_counter()
        for _ in range(calls):
            out = call(*args)
        jax.block_until_ready(out)
        took, each = time.perf_counter() - begun, calls
        calls *= 2
    return took / each


def ceilings(size: Size) -> Items:
    """Matrix products of the shapes of a block and of the head, forward and both gradients; a copy."""
    n, d = size.tokens, size.shape.width
    for f in (d, 3 * d, 4 * d, size.shape.vocab_size):
        for name, shape in (("forward", (n, d, f)), ("dX", (n, f, d)), ("dW", (d, n, f))):
            yield f"{name} {n}x{d}x{f}", lambda s=shape: {"tflops": product_rate(s, size.shape.dtype) / 1e12}
    yield "square", lambda: {"tflops": matmul_rate(size.shape.dtype) / 1e12}

    def copy() -> dict[str, Any]:
        x = jnp.zeros(size.copied // 4, jnp.float32)
        return {"gb_per_second": 2 * size.copied / seconds_of(jax.jit(lambda x: x + 1), x) / 1e9}

    yield "copy", copy


def attention(size: Size) -> Items:
    """Forward and backward of causal attention: JAX's implementations and ours."""
    shape, rows = size.shape, size.attention_rows
    head_dim = shape.width // shape.heads
    flops = 3 * 2 * rows * shape.heads * shape.length * (shape.length + 1) * head_dim  # visible half; 2 products

    def measured(mix: Callable[..., jax.Array], dims: tuple[int, ...]) -> dict[str, Any]:
        q, k, v = (jax.random.normal(jax.random.key(i), dims, jnp.dtype(shape.dtype)) for i in range(3))
        grad = jax.jit(jax.grad(lambda q, k, v: mix(q, k, v).astype(jnp.float32).sum(), argnums=(0, 1, 2)))
        took = seconds_of(grad, q, k, v)
        return {"ms": 1e3 * took, "tflops_causal": flops / took / 1e12}

    by_length = (rows, shape.length, shape.heads, head_dim)
    by_head = (rows, shape.heads, shape.length, head_dim)
    for name in ("xla", "cudnn"):
        mix = lambda q, k, v, n=name: jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=n)  # noqa: E731
        yield f"jax.nn {name}", lambda m=mix: measured(m, by_length)
    yield "ours", lambda: measured(asked("auto"), by_head)
    packed = jnp.broadcast_to(jnp.arange(shape.length) // max(shape.length // 4, 1), (rows, shape.length))
    yield "ours, four documents per row", lambda: measured(asked("auto", packed), by_head)


def asked(name: str, segments_BxL: jax.Array | None = None) -> Callable[..., jax.Array]:
    """Attention as a model whose `attention` is `name` computes it."""

    def mix(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        with using(name):
            return attend(q, k, v, segments_BxL)

    return mix


def head(size: Size) -> Items:
    """Output matrix and cross-entropy, forward and backward: all logits at once by autodiff, and ours."""
    shape, dtype = size.shape, jnp.dtype(size.shape.dtype)
    dims = (size.tokens // shape.length or 1, min(shape.length, size.tokens))
    flops = 6 * dims[0] * dims[1] * shape.width * shape.vocab_size

    def full(hidden_BxLxD: jax.Array, head_DxV: jax.Array, targets_BxL: jax.Array) -> jax.Array:
        logits = jnp.dot(hidden_BxLxD, head_DxV.astype(dtype), preferred_element_type=jnp.float32)
        target = jnp.take_along_axis(logits, targets_BxL[..., None], axis=-1)[..., 0]
        return (jax.nn.logsumexp(logits, axis=-1) - target).mean()

    def ours(hidden_BxLxD: jax.Array, head_DxV: jax.Array, targets_BxL: jax.Array) -> jax.Array:
        return linear_cross_entropy(hidden_BxLxD, head_DxV, targets_BxL, jnp.ones(dims), dims[0] * dims[1])[0]

    def measured(loss: Callable[..., jax.Array]) -> dict[str, Any]:
        hidden = jax.random.normal(jax.random.key(0), (*dims, shape.width), dtype)
        matrix = 0.02 * jax.random.normal(jax.random.key(1), (shape.width, shape.vocab_size))
        targets = jax.random.randint(jax.random.key(2), dims, 0, shape.vocab_size)
        grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
        compiled = grad.lower(hidden, matrix, targets).compile()
        took = seconds_of(compiled, hidden, matrix, targets)
        memory = compiled.memory_analysis().temp_size_in_bytes
        value = float(compiled(hidden, matrix, targets)[0])
        return {"ms": 1e3 * took, "tflops": flops / took / 1e12, "temporary_gb": memory / 1e9, "loss": value}

    yield "all logits", lambda: measured(full)
    yield "ours", lambda: measured(ours)


def step(size: Size) -> Items:
    """Whole updates at several micro-batches, with and without rematerialisation, and one of about 0.5M tokens."""
    matmul: list[float] = []

    def measured(rows: int, accumulate: int, remat: str, updates: int, scan_layers: bool = False) -> dict[str, Any]:
        matmul[:] = matmul or [matmul_rate(size.shape.dtype)]
        spec = dataclasses.replace(
            size.shape.spec, compute_dtype=size.shape.dtype, remat=remat, scan_layers=scan_layers
        )
        begun = time.perf_counter()
        running = Updates(synthetic(spec, rows * accumulate, size.shape.length, accumulate))
        shape = (rows * accumulate, size.shape.length + 1)
        batch = as_batch(np.random.default_rng(0).integers(0, spec.vocab_size, shape, np.int32))
        took = []
        for i in range(updates + 1):
            started = time.perf_counter()
            running.one(batch)
            if i == 0:
                running.last()
                compile_s = time.perf_counter() - begun
            else:
                took.append(Step(time.perf_counter() - started))
        running.last()
        tokens = rows * accumulate * size.shape.length
        palm, causal = (tokens * flops_per_token(spec, size.shape.length, a) for a in ("palm", "causal"))
        said = figures(took[1:])  # the first of them is only dispatched
        peak = stated_peak(jax.devices()[0].device_kind)
        return {
            "compile_s": compile_s,
            **said,
            **rates(said["median_s"], tokens, palm, causal, peak, matmul[0]),
            "memory_gb": peak_memory() / 1e9,
        }

    for rows in size.rows:
        yield f"{rows} rows, remat none", lambda r=rows: measured(r, 1, "none", 14)
    for remat in ("names", "full"):
        yield f"{size.rows[0]} rows, remat {remat}", lambda r=remat: measured(size.rows[0], 1, r, 14)
    yield f"{size.rows[0]} rows, layers in a loop", lambda: measured(size.rows[0], 1, "none", 14, scan_layers=True)
    accumulate = size.whole // size.rows[0]
    yield f"{size.whole} rows in {accumulate} micro-batches", lambda: measured(size.rows[0], accumulate, "none", 6)


def evaluation(size: Size) -> Items:
    """The evaluation program of the loop."""

    def measured() -> dict[str, Any]:
        spec = dataclasses.replace(size.shape.spec, compute_dtype=size.shape.dtype)
        updates = Updates(synthetic(spec, size.rows[0], size.shape.length))
        model, none = updates.machine.model.on(updates.machine.mesh), np.zeros(size.rows[0], np.int64)
        windows = np.random.default_rng(0).integers(0, spec.vocab_size, (len(none), size.shape.length + 1), np.int32)
        batch = NamedSharding(updates.machine.mesh, BATCH)
        losses = SetLosses(model, [EvalSet("rows", windows, None, none, none)], len(none), batch)
        narrow = narrowing(model)
        took = seconds_of(lambda params: losses(narrow(params)), updates.state.params, at_least_s=1.0)
        tokens = windows[:, 1:].size
        done = tokens * flops_per_token(spec, size.shape.length, "palm") / 3
        return {"ms": 1e3 * took, "tokens_per_second": tokens / took, "tflops_palm": done / took / 1e12}

    yield f"{size.rows[0]} rows", measured


def snapshot(size: Size) -> Items:
    """A bfloat16 copy of the parameters on the device."""

    def measured() -> dict[str, Any]:
        params = Updates(synthetic(size.shape.spec, 1, size.shape.length)).state.params
        cast = jax.jit(lambda tree: jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree))
        moved = sum(6 * leaf.size for leaf in jax.tree.leaves(params))  # 4 bytes read, 2 written
        took = seconds_of(cast, params)
        return {"ms": 1e3 * took, "gb_per_second": moved / took / 1e9}

    yield "bfloat16", measured


def checkpoint(size: Size) -> Items:
    """How long a full checkpoint keeps the loop waiting, and how long it is written."""

    def measured() -> dict[str, Any]:
        state = Updates(synthetic(size.shape.spec, 1, size.shape.length)).state
        with tempfile.TemporaryDirectory() as folder:
            there, blocked, written = Checkpoints(folder), [], []
            for i in range(3):
                begun = time.perf_counter()
                there.save("rolling", i, state, {})
                blocked.append(time.perf_counter() - begun)
                problem = there.wait()
                written.append(time.perf_counter() - begun)
                if problem is not None:
                    raise problem
            there.close()
        gigabytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e9
        return {"blocked_ms": 1e3 * min(blocked), "written_s": min(written), "state_gb": gigabytes}

    yield "full", measured


def peers(size: Size, python: str | None = None) -> Items:
    """Beside plain Flax on few rows, which is what it has memory for, and beside Hugging Face on more."""
    python = python or sys.executable
    small = size is TOY
    turns, updates = (2, 1) if small else (6, 5)
    for name, rows in (("hf_torch", size.shape.sequences), ("plain_flax", max(size.shape.sequences // 4, 1))):
        shape = dataclasses.replace(size.shape, sequences=rows)
        run = lambda n=name, s=shape: bench_peers(  # noqa: E731
            s, turns, python, None, lambda line: None, names=("ours", n), updates=updates
        )
        yield f"{name}, {rows} rows", run


PARTS = {f.__name__: f for f in (ceilings, attention, head, step, evaluation, snapshot, checkpoint, peers)}


def main(argv: list[str]) -> None:
    """Measure the items of a part and write what is known after each."""
    name, file, how, *python = argv
    found: dict[str, Any] = {}
    given = [p for p in python if p] if name == "peers" else []
    for item, measure in PARTS[name](TOY if how == "small" else FULL, *given):
        try:
            found[item] = measure()
        except Exception as e:  # a kernel that is not there, memory that does not suffice: the others are still wanted
            said = str(e).strip().splitlines() or [""]
            found[item] = {"failed": f"{type(e).__name__}: {said[0]}"[:300]}
        write_atomic(Path(file), json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
