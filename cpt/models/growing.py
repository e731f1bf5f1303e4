"""Parameters of one model from those of another, by a method of `cpt/models/initialisers`, one array at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from cpt.errors import ConfigError
from cpt.models import base
from cpt.models.initialisers._base import Initialiser, Keys, Source
from cpt.models.spec import SPECS, DecoderSpec
from cpt.registry import find

ROOM = "cpt.models.initialisers"
FIELD = "init.transform.kind"

Given = tuple[DecoderSpec, base.Params]
"""A model: its spec, and its parameters (numpy or JAX arrays)."""


def method(kind: str) -> Initialiser:
    """The initialiser `kind`, or that at `package.module:name`. Raises ConfigError where there is none."""
    return find(ROOM, kind, FIELD)


def is_of_scratch(kind: str) -> bool:
    """Whether the method takes a fresh model of the target's own spec, not a trained one."""
    return getattr(method(kind), "of_scratch", False)


def is_of_several(kind: str) -> bool:
    """Whether the method takes several models."""
    return getattr(method(kind), "of_several", False)


def grow(
    kind: str,
    given: Sequence[Given],
    target: DecoderSpec,
    options: Mapping[str, Any] | None = None,
    place: Callable[[Keys, np.ndarray], Any] | None = None,
) -> base.Params:
    """Parameters of `target` as the method `kind` makes them.

    Every process of a run calls this with the same arguments: arrays that lie on devices of several processes are
    gathered, one at a time. Beside the models given and what is kept of the result, a few arrays are in host memory.

    Args:
      kind: a file of `cpt/models/initialisers`, or `package.module:name`.
      given: the model to start from, and further ones for a method that takes several.
      target: of the result.
      options: of the method.
      place: receives the path of each parameter and its float32 array; what it returns is kept in its place.

    Returns:
      As `Model.init` shapes them: float32 numpy arrays, or what `place` made of them.

    Raises:
      ConfigError: no such method; it does not make such a target from such a source; an option is wrong.
    """
    make = method(kind)
    if len(given) > 1 and not is_of_several(kind):
        raise ConfigError(f"init.transform.models: '{kind}' starts from one model; leave them out")
    for spec in (target, *(spec for spec, _ in given)):
        if spec.family not in SPECS:
            raise ConfigError(
                f"model.family: '{spec.family}' is none that initialisers know  (there are: {', '.join(SPECS)})"
            )
    source, *others = (_source(spec, params) for spec, params in given)
    leaf = make(Source(source.spec, source.read, source.axes, tuple(others)), target, options or {})

    def one(path: Any, wanted: jax.ShapeDtypeStruct) -> Any:
        keys = tuple(entry.key for entry in path)
        array = np.asarray(leaf(keys), np.float32)
        if array.shape != wanted.shape:
            raise ConfigError(
                f"{FIELD}: '{kind}' makes {'.'.join(keys)} of shape {list(array.shape)}, model.* {list(wanted.shape)}; "
                "set the fields of model to what it makes"
            )
        return array if place is None else place(keys, array)

    return jax.tree_util.tree_map_with_path(one, base.build(target).abstract())


def _source(spec: DecoderSpec, params: base.Params) -> Source:
    axes = base.build(spec).logical_axes()
    return Source(spec, lambda keys: _fetched(_at(params, keys)), lambda keys: _at(axes, keys))


def _at(tree: Any, keys: Keys) -> Any:
    for key in keys:
        tree = tree[key]
    return tree


def _fetched(array: Any) -> np.ndarray:
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array, np.float32)
