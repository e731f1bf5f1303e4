"""What an architecture says about its directory, and the way between its tensors and our tree of parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes  # by importing it numpy learns of bfloat16
import numpy as np

from cpt.errors import RunError
from cpt.models.spec import DecoderSpec

Keys = tuple[str, ...]
"""Where a parameter is in the tree: `("layers", "0", "mlp", "up", "kernel")`."""

NUMPY = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@dataclass(frozen=True)
class Tensor:
    """A stored tensor and the parameter that it is.

    Attributes:
      name: in the file.
      path: of the parameter.
      stored: shape in the file.
      shape: of the parameter.
      transposed: the file has outputs first, the parameter has inputs first; dimensions of each stay in order.
    """

    name: str
    path: Keys
    stored: tuple[int, ...]
    shape: tuple[int, ...]
    transposed: bool

    def ours(self, stored: np.ndarray) -> np.ndarray:
        """The parameter, float32 and contiguous."""
        stored = stored.T if self.transposed else stored
        return np.ascontiguousarray(stored, np.float32).reshape(self.shape)

    def theirs(self, ours: np.ndarray) -> np.ndarray:
        """The tensor as the file has it, float32 and contiguous."""
        ours = ours.astype(np.float32, copy=False)
        if self.transposed:
            return np.ascontiguousarray(ours.reshape(self.stored[::-1]).T)
        return np.ascontiguousarray(ours.reshape(self.stored))


def matrix(name: str, path: Keys, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Tensor:
    """A kernel `[*inputs, *outputs]`, stored as `[prod(outputs), prod(inputs)]`."""
    return Tensor(name, path, (prod(outputs), prod(inputs)), (*inputs, *outputs), transposed=True)


def vector(name: str, path: Keys, shape: tuple[int, ...]) -> Tensor:
    """A bias or a scale, stored flat; of an embedding `[V, d]` the same as it is."""
    stored = shape if path[-1] == "embedding" else (prod(shape),)
    return Tensor(name, path, stored, shape, transposed=False)


@dataclass(frozen=True)
class Layout:
    """An architecture's side of the conversion.

    Attributes:
      model_types: of the configs that it reads.
      read_spec: `(config, file)` to a spec; raises ConfigError.
      write_config: a spec to the content of `config.json`.
      tensors: every tensor of a spec, by the names that are written.
      prefix: of the names, which files of the bare decoder leave out.
      renamed: other names that a tensor goes by, to the name that is written.
      tied: (embedding, head), where a config may say that they are one.
      ignored: ends of the names of buffers, which are no parameters.
    """

    model_types: tuple[str, ...]
    read_spec: Callable[[dict[str, Any], Path], DecoderSpec]
    write_config: Callable[[DecoderSpec], dict[str, Any]]
    tensors: Callable[[DecoderSpec], list[Tensor]]
    prefix: str
    renamed: Mapping[str, str]
    tied: tuple[str, str]
    ignored: tuple[str, ...]

    def written_name(self, name: str, known: Set[str]) -> str | None:
        """The name, of those `known`, that a file's name stands for; None for a buffer or an unknown one."""
        name = self.renamed.get(name, name)
        return next((n for n in (name, self.prefix + name) if n in known), None)

    def is_buffer(self, name: str) -> bool:
        """Whether it is one of the buffers that are `ignored`."""
        return any(f".{name}".endswith(f".{end}") for end in self.ignored)


class Stored(Protocol):
    """The tensors of a directory, by the names its files have."""

    def names(self) -> dict[str, Path]:
        """Every tensor, with its file."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape, without reading it."""
        ...

    def array(self, name: str) -> np.ndarray:
        """Its numbers, in the dtype of the file."""
        ...


def matched(layout: Layout, spec: DecoderSpec, config: Mapping[str, Any], stored: Stored) -> dict[str, str]:
    """The name in the files of every tensor of `spec`; reads no number but those of a tied head.

    Raises:
      RunError: a tensor is missing, unknown, there twice, or of another shape.
    """
    wanted = {t.name: t for t in layout.tensors(spec)}
    embedding, head = layout.tied
    tied = bool(config.get("tie_word_embeddings", False))
    # A model that has no head of its own may still have one in its files.
    found = _match(layout, wanted.keys() | ({head} if tied else set()), stored)
    if tied:
        _check_tied(stored, found, embedding, head)
        found.setdefault(head, found.get(embedding, head))
    if missing := [name for name in wanted if name not in found]:
        folder = next(iter(stored.names().values())).parent
        raise RunError(
            f"{folder}: tensor '{missing[0]}' is missing{_more(missing)}, of the {len(wanted)} that its config.json "
            "asks for; save the whole model with its head again, or fetch the files that are not there"
        )
    for name, tensor in wanted.items():
        if (shape := stored.shape(found[name])) != tensor.stored:
            raise RunError(
                f"{stored.names()[found[name]]}: tensor '{found[name]}' has shape {list(shape)}, its config.json makes "
                f"it {list(tensor.stored)}; the two files are not of one model"
            )
    return found


def fill(
    layout: Layout,
    spec: DecoderSpec,
    config: Mapping[str, Any],
    stored: Stored,
    place: Callable[[Keys, np.ndarray], Any] | None,
) -> dict[str, Any]:
    """The tree of parameters; names and shapes are checked before the first tensor is read.

    Raises:
      RunError: as `matched`; or a tensor is not finite.
    """
    found = matched(layout, spec, config, stored)
    tree: dict[str, Any] = {}
    for tensor in layout.tensors(spec):
        name = found[tensor.name]
        ours = tensor.ours(stored.array(name))
        if not np.isfinite(ours).all():
            raise RunError(
                f"{stored.names()[name]}: tensor '{name}' holds numbers that are not finite; copy the file again, or "
                "take an earlier checkpoint of this model"
            )
        *above, last = tensor.path
        node = tree
        for key in above:
            node = node.setdefault(key, {})
        node[last] = ours if place is None else place(tensor.path, ours)
    return tree


def _match(layout: Layout, wanted: Set[str], stored: Stored) -> dict[str, str]:
    """The name in the files of each tensor that is there."""
    found: dict[str, str] = {}
    names = {name: layout.written_name(name, wanted) for name in stored.names()}
    unknown = [name for name, known in names.items() if known is None and not layout.is_buffer(name)]
    if unknown:
        raise RunError(
            f"{stored.names()[unknown[0]]}: tensor '{unknown[0]}' is none of the {len(wanted)} that its config.json "
            f"asks for{_others(unknown)}; remove it, or mend the config (layers, an adapter that has to be merged)"
        )
    for name, known in names.items():
        if known is None:
            continue
        file = stored.names()[name]
        if known in found:
            raise RunError(f"{file}: tensors '{found[known]}' and '{name}' are the same one; remove one of them")
        found[known] = name
    return found


def _check_tied(stored: Stored, found: Mapping[str, str], embedding: str, head: str) -> None:
    if embedding not in found or head not in found:
        return
    a, b = (stored.array(found[name]) for name in (embedding, head))
    if a.shape != b.shape or not np.array_equal(a, b):
        raise RunError(
            f"{stored.names()[found[head]]}: tensor '{found[head]}' differs from '{found[embedding]}', and config.json "
            "says tie_word_embeddings; set it to false, or remove the one that is not meant"
        )


def leaves(
    layout: Layout, spec: DecoderSpec, params: Mapping[str, Any], dtype: str
) -> list[tuple[Tensor, Callable[[], np.ndarray]]]:
    """Each tensor with a function that fetches its numbers, in the dtype and the order of the file.

    Raises:
      RunError: the tree is not that of `spec`; when called, numbers that are not finite in `dtype`.
    """
    given = dict(_flat(params))
    wanted = layout.tensors(spec)
    for tensor in wanted:
        where = f"parameter {'.'.join(tensor.path)}"
        if tensor.path not in given:
            raise RunError(f"{where} is missing; these are not the parameters of this model")
        if (shape := tuple(given[tensor.path].shape)) != tensor.shape:
            raise RunError(
                f"{where} has shape {list(shape)}, the model {list(tensor.shape)}; give the model's own spec"
            )
    if extra := sorted(given.keys() - {t.path for t in wanted}):
        raise RunError(f"parameter {'.'.join(extra[0])} has no place in this architecture{_more(extra)}")

    def fetch(tensor: Tensor) -> np.ndarray:
        theirs = tensor.theirs(np.asarray(given[tensor.path]))
        with np.errstate(over="ignore"):
            cast = theirs.astype(NUMPY[dtype], copy=False)
        # Asked of float32: ml_dtypes is slow at it, and any value that bfloat16 or float16 cannot hold is above.
        if not np.isfinite(cast.astype(np.float32, copy=False)).all():
            why = f"beyond {dtype}; store float32 or bfloat16" if np.isfinite(theirs).all() else "not finite"
            raise RunError(f"parameter {'.'.join(tensor.path)} holds numbers that are {why}")
        return cast

    return [(tensor, lambda tensor=tensor: fetch(tensor)) for tensor in wanted]


def _flat(tree: Mapping[str, Any], above: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, (*above, key))
        else:
            yield (*above, key), value


def _others(names: list[str]) -> str:
    """The next few of the names."""
    shown = ", ".join(names[1:9]) + (", ..." if len(names) > 9 else "")
    return f" (nor are {shown})" if shown else ""


def _more(names: list[Any]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
