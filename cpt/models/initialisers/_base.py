"""What the initialisers share: the model they start from, how they read their options, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cpt.errors import ConfigError, nearest
from cpt.models.spec import MAY_DIFFER, DecoderSpec
from cpt.sections import to_dict

Keys = tuple[str, ...]
"""Where a parameter is in the tree: `("layers", "0", "mlp", "up", "kernel")`."""

Leaf = Callable[[Keys], np.ndarray]
"""A parameter of a model, float32 and on the host, by its place in the tree; it is not to be written into."""

OPTIONS = "init.transform.options"


@dataclass(frozen=True)
class Source:
    """A model to start from; a parameter is in host memory only while it is asked for.

    Attributes:
      spec: of the model.
      read: its parameters.
      axes: logical names of the dimensions of a parameter (`Model.logical_axes`).
      others: further models, for a method that takes several.
    """

    spec: DecoderSpec
    read: Leaf
    axes: Callable[[Keys], tuple[str | None, ...]]
    others: tuple[Source, ...] = ()

    def __call__(self, path: Keys) -> np.ndarray:
        """The parameter at `path`."""
        return self.read(path)


Initialiser = Callable[[Source, DecoderSpec, Mapping[str, Any]], Leaf]


def of_scratch(method: Initialiser) -> Initialiser:
    """Mark a method whose source is a fresh model of the target's spec, not a trained one."""
    method.of_scratch = True
    return method


def of_several(method: Initialiser) -> Initialiser:
    """Mark a method that reads `Source.others`."""
    method.of_several = True
    return method


def read(options: Mapping[str, Any], kind: str, **defaults: Any) -> dict[str, Any]:
    """The options of the method `kind` over their defaults.

    Raises:
      ConfigError: there is one that the method does not have; without that it would silently be its default.
    """
    for name in options:
        if name not in defaults:
            offered = f"  (options: {', '.join(defaults)})" if defaults else "  (it has none)"
            raise ConfigError(f"{OPTIONS}.{name}: no such option of '{kind}'{nearest(name, defaults)}{offered}")
    return {**defaults, **options}


def number(options: Mapping[str, Any], name: str, above: float = 0.0) -> float:
    """The option `name` as a float.

    Raises:
      ConfigError: it is not a finite number above `above`.
    """
    value = options[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < value < math.inf:
        raise ConfigError(f"{OPTIONS}.{name}: {value!r} is not a number above {above:g}")
    return float(value)


def whole(options: Mapping[str, Any], name: str, least: int = 0) -> int:
    """The option `name` as a whole number.

    Raises:
      ConfigError: it is not one of at least `least`.
    """
    value = options[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{OPTIONS}.{name}: {value!r} is not a whole number of at least {least}")
    return value


def flag(options: Mapping[str, Any], name: str) -> bool:
    """The option `name`. Raises ConfigError where it is neither True nor False."""
    if not isinstance(value := options[name], bool):
        raise ConfigError(f"{OPTIONS}.{name}: {value!r} must be True or False")
    return value


def check_same(source: DecoderSpec, target: DecoderSpec, kind: str, *changes: str) -> None:
    """That the two differ in nothing that parameters depend on, but in the fields `changes`.

    Raises:
      ConfigError: another field differs, which the method `kind` leaves as it is.
    """
    theirs, ours = (to_dict(spec) | {"ff": spec.ff_dim} for spec in (source, target))
    for name in dict.fromkeys(("family", *theirs, *ours)):
        if name in MAY_DIFFER or name in changes:
            continue
        if theirs.get(name) != ours.get(name):
            what = f"it changes {', '.join(changes)}" if changes else "it changes no size"
            raise ConfigError(
                f"model.{name}: is {theirs.get(name)!r} in the source, {ours.get(name)!r} here, and '{kind}' keeps it "
                f"({what}); set model.{name} to {theirs.get(name)!r}"
            )


def check_multiples(source: DecoderSpec, target: DecoderSpec, kind: str, *fields: str) -> None:
    """Raises ConfigError for the first of `fields` that in the target is no whole multiple of the source's."""
    for name in fields:
        theirs, ours = getattr(source, name), getattr(target, name)
        if ours % theirs:
            raise ConfigError(
                f"model.{name.removesuffix('_dim')}: {ours} is no whole multiple of the source's {theirs}, which "
                f"'{kind}' needs; nearest: {', '.join(str(m * theirs) for m in _around(ours / theirs))}"
            )


def check_not_below(source: DecoderSpec, target: DecoderSpec, kind: str, *fields: str) -> None:
    """Raises ConfigError for the first of `fields` that is smaller in the target than in the source."""
    for name in fields:
        theirs, ours = getattr(source, name), getattr(target, name)
        if ours < theirs:
            raise ConfigError(
                f"model.{name.removesuffix('_dim')}: {ours} is below {theirs}, that of the source; '{kind}' grows"
            )


def is_kernel(path: Keys) -> bool:
    """Whether it is the matrix of a linear layer; the embedding is none."""
    return path[-1] == "kernel"


def writes_stream(path: Keys) -> bool:
    """Whether it belongs to one of the two layers of a block whose outputs are added to the residual stream."""
    return path[-3:-1] in {("attention", "out"), ("mlp", "down")}


def is_norm(path: Keys) -> bool:
    """Whether it is the scale or bias of a norm of the residual stream's width."""
    return path[-2].startswith("ln_")


def layer_of(path: Keys) -> int | None:
    """The block, from 0, that the parameter is of; None outside the blocks."""
    return int(path[1]) if path[0] == "layers" else None


def _around(ratio: float) -> list[int]:
    return sorted({max(1, math.floor(ratio)), math.ceil(ratio)})
