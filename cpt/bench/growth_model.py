"""Seconds of one update at a size of the model, of its rows, or of the mix."""

from __future__ import annotations

import time

import numpy as np

from cpt.bench.updates import Updates, as_batch, synthetic
from cpt.models.spec import ModelSpec, flops_per_token

LAYERS, WIDTH, LENGTH, ROWS = 2, 128, 128, 4
AT_LEAST_S, AT_LEAST = 1.0, 3  # measured per point


def update_seconds(spec: ModelSpec, length: int, columns: int = 1, at_least_s: float = AT_LEAST_S) -> float:
    """The fastest of some updates on random rows: what the machine does beside can only add to it."""
    updates = Updates(synthetic(spec, ROWS, length, sources=columns))
    rows_BxM = np.random.default_rng(0).integers(0, spec.vocab_size, (ROWS, length + 1), np.int32)
    batch = as_batch(rows_BxM) | {"source_B": np.arange(ROWS, dtype=np.int32) % columns}
    took: list[float] = []
    while len(took) < AT_LEAST + 1 or sum(took[1:]) < at_least_s:
        begun = time.perf_counter()
        updates.one(batch)
        updates.last()
        took.append(time.perf_counter() - begun)
    return min(took[1:])  # the first one compiles


def _spec(layers: int = LAYERS, width: int = WIDTH, context: int = LENGTH) -> ModelSpec:
    return ModelSpec(layers=layers, width=width, heads=max(width // 32, 1), vocab_size=512, context=context)


def _flops(spec: ModelSpec, length: int) -> float:
    return ROWS * length * flops_per_token(spec, length, "palm")


def layers(size: int) -> float:
    return update_seconds(_spec(layers=size), LENGTH)


def layer_flops(size: int) -> float:
    return _flops(_spec(layers=size), LENGTH)


def width(size: int) -> float:
    return update_seconds(_spec(width=size), LENGTH)


def width_flops(size: int) -> float:
    return _flops(_spec(width=size), LENGTH)


def length(size: int) -> float:
    return update_seconds(_spec(context=size), size)


def length_flops(size: int) -> float:
    return _flops(_spec(context=size), size)


def sources(size: int) -> float:
    return update_seconds(_spec(), LENGTH, columns=size)
