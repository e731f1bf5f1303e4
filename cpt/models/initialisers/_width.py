"""Widening without a change of the function: units are copied, and what reads them shares their weights out.

The residual stream of width D becomes `k = D' // D` copies of itself and `r = D' mod D` entries that carry nothing:
the mean of the stream where a layer norm subtracts it, 0 where an RMS norm does not. A norm then sees
`eta^2 = k D / D'` times the variance, so its scale is multiplied by eta and its epsilon must be eta^2 times the old
one. Heads and MLP channels are copied whole.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cpt.errors import ConfigError
from cpt.models.initialisers._base import Keys, Leaf, Source, is_kernel, is_norm
from cpt.models.spec import DecoderSpec

Share = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
"""`(rows, copy_of_I, rng)`: the rows [I, ...] of a kernel after copying, shared among the copies of each input."""


@dataclass(frozen=True)
class Copies:
    """Which unit of the source each unit of the target is a copy of, by the logical name of the dimension.

    Attributes:
      of: indices into the source; for "embed" without the `rest`.
      rest: entries of the residual stream that are no copies.
      eta: square root of the share of copies in the stream.
    """

    of: dict[str, np.ndarray]
    rest: int
    eta: float

    @property
    def times(self) -> int:
        """How often the residual stream is repeated."""
        return int(np.sum(self.of["embed"] == 0))


def copies(source: DecoderSpec, target: DecoderSpec, kind: str) -> Copies:
    """The copies that make `target` of `source`, in turns: unit i of the target is unit i mod n of the source.

    Raises:
      ConfigError: the head dimension differs, heads cannot be copied with their keys and values.
    """
    if source.head_dim != target.head_dim:
        raise ConfigError(
            f"model.heads: heads have {target.head_dim} channels here and {source.head_dim} in the source, and "
            f"'{kind}' copies them whole, as rotary positions need; set model.heads to model.width / {source.head_dim}"
        )
    heads, kv_heads = _heads(source, target, kind)
    k = target.width // source.width
    of = {
        "embed": np.tile(np.arange(source.width), k),
        "heads": heads,
        "kv_heads": kv_heads,
        "mlp": np.arange(target.ff_dim) % source.ff_dim,
    }
    return Copies(of, target.width - k * source.width, math.sqrt(k * source.width / target.width))


def _heads(source: DecoderSpec, target: DecoderSpec, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Of each query head, and of each head of keys and values, the source's head that it is a copy of.

    A query head must stay with the keys it had. Where fewer queries share a key in the target, the groups of the source
    are split first, each part with the same keys.
    """
    theirs, ours = source.heads // source.kv_heads, target.heads // target.kv_heads
    if ours < theirs and theirs % ours:
        raise ConfigError(
            f"model.kv_heads: {ours} query heads share a key here and {theirs} in the source, and {ours} does not "
            f"divide {theirs}; set model.kv_heads to a multiple of {source.kv_heads} that does"
        )
    parts = theirs // ours if ours < theirs else 1
    group, groups = theirs // parts, source.kv_heads * parts
    if target.kv_heads < groups:
        raise ConfigError(
            f"model.kv_heads: {target.kv_heads} are too few for the {groups} groups of query heads of the source; "
            f"'{kind}' copies groups whole"
        )
    group_K = np.arange(target.kv_heads) % groups
    heads = group_K[:, None] * group + np.arange(ours)[None, :] % group
    return heads.reshape(-1), group_K // parts


def check_uniform(copies: Copies, source: DecoderSpec) -> None:
    """Raises ConfigError where a norm over all heads would see some of them more often than others."""
    for name, axis, count in (("heads", "heads", source.heads), ("kv_heads", "kv_heads", source.kv_heads)):
        if getattr(source, "qk_norm", "none") == "width" and len(set(np.bincount(copies.of[axis]))) > 1:
            raise ConfigError(
                f"model.{name}: {len(copies.of[axis])} is no whole multiple of {count}, that of the source, which a "
                "norm over all heads (model.qk_norm='width') needs"
            )


def widened(source: Source, copies: Copies, share: Share, seed: int) -> Leaf:
    """The parameters of the wider model; the blocks are those of the source.

    Args:
      share: see `Share`.
      seed: of what is random: shares, and weights that read nothing yet.
    """
    spec, eta = source.spec, copies.eta
    centred = spec.family == "gpt_neox"  # its norms subtract the mean
    normed_qk = getattr(spec, "qk_norm", "none") != "none"

    def outputs(w: np.ndarray, axis: int, name: str | None, norm: bool) -> np.ndarray:
        if name not in copies.of:
            return w
        out = np.take(w, copies.of[name], axis)
        if name != "embed" or not copies.rest:
            return out
        silent = w.mean(axis, keepdims=True) if centred and not norm else np.zeros_like(np.take(w, [0], axis))
        return np.concatenate([out, np.repeat(silent, copies.rest, axis)], axis)

    def inputs(w: np.ndarray, name: str, rng: np.random.Generator) -> np.ndarray:
        out = share(w[copies.of[name]], copies.of[name], rng)
        if name != "embed" or not copies.rest:
            return out
        # These rows multiply zeros; drawn like the others, so that once they get something they use it.
        fresh = w.std() * rng.standard_normal((copies.rest, *w.shape[1:]), np.float32)
        return np.concatenate([out, fresh])

    def leaf(path: Keys) -> np.ndarray:
        w, axes = source(path), source.axes(path)
        first = 1 if is_kernel(path) else 0
        for axis, name in list(enumerate(axes))[first:]:
            w = outputs(w, axis, name, is_norm(path))
        if first and axes[0] in copies.of:
            w = inputs(w, axes[0], np.random.default_rng([seed, zlib.crc32("/".join(path).encode())]))
        factor = 1.0
        if is_norm(path) and path[-1] == "scale":
            factor *= eta
            if path[0] == "ln_final" and spec.tied:  # the head reads every copy of the embedding in full
                factor /= copies.times
        if normed_qk and path[-3:-1] in {("attention", "q"), ("attention", "k")}:
            factor *= eta  # their norm has the epsilon of the others
        return w if factor == 1.0 else np.float32(factor) * w

    return leaf


def grouped_sum(rows: np.ndarray, copy_of_I: np.ndarray) -> np.ndarray:
    """The sum over all copies of the same input, for each of them: an array like `rows` [I, ...]."""
    order = np.argsort(copy_of_I, kind="stable")
    of, starts = np.unique(copy_of_I[order], return_index=True)
    return np.add.reduceat(rows[order], starts, axis=0)[np.searchsorted(of, copy_of_I)]


def equally(rows: np.ndarray, copy_of_I: np.ndarray) -> np.ndarray:
    """Each copy of an input gets the same part of its weights."""
    count_I = np.bincount(copy_of_I)[copy_of_I].astype(np.float32)
    return rows / count_I.reshape(-1, *[1] * (rows.ndim - 1))
