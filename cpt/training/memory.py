"""What a training step takes of a device's memory, estimated from the config alone. Pure Python.

Parameters, moments and gradients are counted. Activations are what the backward pass of these models keeps, and are
rough: `python -m cpt.main --dry_run=<topology>` has the compiler count them where it can.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from cpt.config import RunSpec
from cpt.models.spec import BY_HAND_FROM, parameter_count
from cpt.objectives.tiles import rows_per_tile

GB = 1e9

MEMORY_GB = {
    "TPU v3": 16,
    "TPU v4": 32,
    "TPU v5 lite": 16,
    "TPU v5e": 16,
    "TPU v5p": 95,
    "TPU v5": 95,
    "TPU v6 lite": 32,
    "TPU v6e": 32,
    "NVIDIA A100": 40,
    "NVIDIA H100": 80,
    "NVIDIA H200": 141,
    "NVIDIA B200": 180,
    "cpu": 16,  # what one asks of a machine without accelerators; the real one differs between hosts
}


def device_memory(kind: str) -> float | None:
    """Bytes of a device, by what its backend calls it; None for one that is not known.

    Not what the process finds free: every process must come to the same number.
    """
    if said := re.search(r"(\d+) ?GB\b", kind):
        return int(said.group(1)) * GB
    known = [name for name in MEMORY_GB if kind == name or kind.startswith(f"{name} ") or kind.startswith(f"{name}-")]
    return MEMORY_GB[max(known, key=len)] * GB if known else None


@dataclass(frozen=True)
class Memory:
    """Bytes per device.

    Attributes:
      parameters: float32.
      optimizer: two moments per parameter.
      gradients: float32; twice while micro-batches are added up.
      snapshot: the copy that is written while training goes on (parameters and moments).
      kept: snapshots of the parameters after a switch, that are evaluated later (`evaluate.snapshots`).
      weights: what the forward pass multiplies: parameters in the compute dtype, gathered over `fsdp`.
      activations: what is kept for the backward pass, and the logits of one tile.
    """

    parameters: float
    optimizer: float
    gradients: float
    snapshot: float
    kept: float
    weights: float
    activations: float

    @property
    def total(self) -> float:
        return sum(getattr(self, f.name) for f in fields(self))

    def text(self) -> str:
        """`parameters 0.20 GB, optimizer 0.41 GB, ..., activations ~1.1 GB: 2.3 GB`."""
        used = [(f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name)]
        parts = [f"{name} {'~' * (name == 'activations')}{size_text(size)}" for name, size in used]
        return f"{', '.join(parts)}: ~{size_text(self.total)}"


def size_text(size: float) -> str:
    """`1.24 GB`, `81.3 MB`."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size / 1e3:.3g} kB"


def estimate(spec: RunSpec, sizes: Mapping[str, int]) -> Memory:
    """Memory per device of a run on a mesh with these sizes."""
    model, batch = spec.model, spec.batch
    item = 2 if model.compute_dtype == "bfloat16" else 4
    whole = 4.0 * parameter_count(model)
    parts = sizes["fsdp"] * sizes["tensor"]
    shard = whole / parts
    # A product reads a copy where it is cast to another dtype or gathered from other devices.
    copied = item == 2 or sizes["fsdp"] > 1
    tokens = batch.sequences // batch.accumulate * batch.length / (sizes["data"] * sizes["fsdp"] * sizes["sequence"])
    return Memory(
        parameters=shard,
        optimizer=2 * shard,
        gradients=shard * (2 if batch.accumulate > 1 else 1),
        snapshot=3 * shard,
        kept=max((p.evaluate.snapshots for p in spec.phases.values()), default=0) * shard * item / 4,
        weights=whole * item / 4 / sizes["tensor"] if copied else 0.0,
        activations=tokens * activation_bytes(spec, sizes["tensor"]) + logit_bytes(spec, tokens, sizes["tensor"]),
    )


def activation_bytes(spec: RunSpec, tensor: int) -> float:
    """Bytes kept per token for the backward pass of all layers; what `model.remat` keeps is in `models.recomputing`.

    Without recomputation a layer keeps the residual stream and what each norm gives, whole in width, and split over
    `tensor` queries, keys and values, what attention gives, the MLP's hidden layer (three arrays, as in SwiGLU), and
    the attention weights of the visible half, of short rows or where attention is the plain square. With it, one layer
    at a time has the rest.
    """
    model, length = spec.model, spec.batch.length
    item = 2 if model.compute_dtype == "bfloat16" else 4
    residual = item * model.width
    projected = item * (model.heads + 2 * model.kv_heads) * model.head_dim / tensor
    mixed = item * model.heads * model.head_dim / tensor
    hidden = item * model.ff_dim / tensor
    square = length < BY_HAND_FROM or spec.mesh.sequence > 1 or model.attention == "reference"
    weights = (4 + item) * model.heads * length / 2 / tensor if square else 0.0
    layer = 2 * residual + projected + mixed + 3 * hidden + weights
    if model.remat == "none":
        return model.layers * (residual + layer)
    kept = {
        "names": residual + projected + mixed + 2 * hidden,
        "dots": 3 * residual + projected + 2 * hidden,
        "full": residual,
        "offload": 0.0,
    }
    return model.layers * kept[model.remat] + layer


def logit_bytes(spec: RunSpec, tokens: float, tensor: int) -> float:
    """Logits of one tile, float32, and their gradient in the compute dtype."""
    item, vocab = 2 if spec.model.compute_dtype == "bfloat16" else 4, spec.model.vocab_size
    vocab = vocab // tensor if vocab % tensor == 0 else vocab
    return (4 + item) * vocab * rows_per_tile(math.ceil(tokens), vocab, half=item == 2)
