"""Small from large: evenly spaced units of every dimension of the first blocks (2311.18823)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cpt.errors import ConfigError
from cpt.models.initialisers._base import OPTIONS, Keys, Leaf, Source, check_same, layer_of, read
from cpt.models.spec import DecoderSpec, check_name

SIZES = ("layers", "width", "heads", "kv_heads", "head_dim", "ff")


def weight_selection(source: Source, target: DecoderSpec, options: Mapping[str, Any]) -> Leaf:
    """Weight selection (Xu et al. 2024, arXiv 2311.18823): of t units the s at `round(linspace(0, t - 1, s))`.

    Where s divides t, every (t/s)-th from 0. The same units of the residual stream everywhere; a query head stays with
    its keys; channels that rotate are selected in their pairs, which for a whole t/s keep their frequencies exactly.
    The function is not kept.

    Options: `layers` ("first"), which blocks: the first ones, which the paper finds best, or "uniform".

    Raises:
      ConfigError: a size is above the source's, another field differs, an option is wrong.
    """
    given = read(options, "weight_selection", layers="first")
    check_name(f"{OPTIONS}.layers", given["layers"], ("first", "uniform"))
    spec = source.spec
    check_same(spec, target, "weight_selection", *SIZES, "rotary_fraction")
    group = [s.heads // s.kv_heads for s in (spec, target)]
    for name in (*SIZES[:-1], "ff_dim"):
        if getattr(target, name) > getattr(spec, name):
            _too_large(
                name.removesuffix("_dim") if name == "ff_dim" else name, getattr(target, name), getattr(spec, name)
            )
    if group[1] > group[0]:
        _too_large("heads / model.kv_heads", group[1], group[0])
    keys = selected(spec.kv_heads, target.kv_heads)
    units = {
        "embed": selected(spec.width, target.width),
        "mlp": selected(spec.ff_dim, target.ff_dim),
        "kv_heads": keys,
        "heads": (keys[:, None] * group[0] + selected(*group)[None, :]).reshape(-1),
        "head_dim": _channels(spec, target),
    }
    layers = selected(spec.layers, target.layers) if given["layers"] == "uniform" else np.arange(target.layers)

    def leaf(path: Keys) -> np.ndarray:
        if (i := layer_of(path)) is not None:
            path = ("layers", str(layers[i]), *path[2:])
        w = source(path)
        for axis, name in enumerate(source.axes(path)):
            w = np.take(w, units[name], axis) if name in units else w
        return w

    return leaf


def selected(large: int, small: int) -> np.ndarray:
    """Indices of `small` of `large` units."""
    if large % small == 0:
        return np.arange(small) * (large // small)
    return np.round(np.linspace(0, large - 1, small)).astype(int)


def _channels(source: DecoderSpec, target: DecoderSpec) -> np.ndarray:
    """Channels of a head: of each pair that rotates, i and i + R, both or none; then of those that pass through."""
    rotary, wanted = (getattr(s, "rotary_dim", s.head_dim) for s in (source, target))
    if wanted > rotary or target.head_dim - wanted > source.head_dim - rotary:
        raise ConfigError(
            f"model.rotary_fraction: of {target.head_dim} channels per head {wanted} rotate, in the source {rotary} of "
            f"{source.head_dim}; 'weight_selection' needs as many of either kind there"
        )
    first = selected(rotary // 2, wanted // 2) if wanted else np.zeros(0, int)
    rest = target.head_dim - wanted
    passing = rotary + selected(source.head_dim - rotary, rest) if rest else np.zeros(0, int)
    return np.concatenate([first, first + rotary // 2, passing])


def _too_large(name: str, ours: int, theirs: int) -> None:
    raise ConfigError(f"model.{name}: {ours} is above {theirs}, that of the source; 'weight_selection' shrinks")
