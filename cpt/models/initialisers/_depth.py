"""A model of more blocks, each a copy of blocks of the source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cpt.errors import ConfigError
from cpt.models.initialisers._base import Keys, Leaf, is_norm, layer_of, writes_stream
from cpt.models.spec import DecoderSpec

Output = Literal["kept", "zero", "cancel"]


@dataclass(frozen=True)
class Block:
    """A block of the deeper model.

    Attributes:
      of: the blocks of the source, from 0, whose mean it is.
      output: what it adds to the residual stream: as the source; nothing because its last weights are `zero`; nothing
        because its second half of heads and MLP channels repeats the first with the opposite sign (`cancel`).
    """

    of: tuple[int, ...]
    output: Output = "kept"


def stacked(read: Leaf, axes: Leaf, spec: DecoderSpec, blocks: Sequence[Block]) -> Leaf:
    """The parameters of a model of these blocks; embedding, final norm and head are as they were.

    Args:
      read: parameters of a model of the target's width.
      axes: logical names of their dimensions.
      spec: the target.
    """
    after = getattr(spec, "norm_placement", "before") == "after"

    def silenced(path: Keys, w: np.ndarray) -> np.ndarray:
        # A norm that comes last turns any output into one of size 1, but for its scale. Where a zero goes before such a
        # norm its gradient is divided by sqrt(epsilon).
        last = is_norm(path) if after else writes_stream(path)
        return np.zeros_like(w) if last else w

    def leaf(path: Keys) -> np.ndarray:
        if (i := layer_of(path)) is None:
            return read(path)
        block = blocks[i]
        w = sum(read(("layers", str(j), *path[2:])) for j in block.of) / np.float32(len(block.of))
        if block.output == "cancel":
            return _cancelled(path, w, axes(("layers", str(block.of[0]), *path[2:])), spec)
        return silenced(path, w) if block.output == "zero" else w

    return leaf


def check_cancels(spec: DecoderSpec) -> None:
    """Raises ConfigError where heads or MLP channels cannot be paired, or a norm would see what is left."""
    if getattr(spec, "norm_placement", "before") == "after":
        raise ConfigError(
            "init.transform.options.blocks: what cancels leaves rounding errors, which a norm after it "
            "(model.norm_placement='after') makes as large as the stream; use 'zero'"
        )
    if spec.ff_dim % 2:
        raise ConfigError(f"model.ff: {spec.ff_dim} channels cannot cancel in pairs; choose an even number")
    if spec.kv_heads % 2 and (spec.heads // spec.kv_heads) % 2:
        raise ConfigError(
            f"model.heads: {spec.heads} heads over {spec.kv_heads} of keys and values cannot cancel in pairs; choose "
            "an even number of either"
        )


def _cancelled(path: Keys, w: np.ndarray, axes: tuple[str | None, ...], spec: DecoderSpec) -> np.ndarray:
    """The second half of the units as the first; where their outputs are summed, with the opposite sign."""
    if writes_stream(path):
        if path[-1] == "bias":
            return np.zeros_like(w)
        return _mirrored(w, 0, axes[0], spec, -1.0)
    for axis, name in enumerate(axes):
        if name in ("mlp", "heads", "kv_heads"):
            w = _mirrored(w, axis, name, spec, 1.0)
    return w


def _mirrored(w: np.ndarray, axis: int, name: str | None, spec: DecoderSpec, sign: float) -> np.ndarray:
    w = np.moveaxis(w, axis, 0)
    if name != "mlp" and spec.kv_heads % 2:  # pairs within each group; then keys and values stay as they are
        if name == "kv_heads":
            return np.moveaxis(w, 0, axis)
        shape = w.shape
        grouped = w.reshape(spec.kv_heads, -1, *shape[1:])
        half = grouped[:, : grouped.shape[1] // 2]
        return np.moveaxis(np.concatenate([half, np.float32(sign) * half], 1).reshape(shape), 0, axis)
    half = w[: len(w) // 2]
    return np.moveaxis(np.concatenate([half, np.float32(sign) * half]), 0, axis)
