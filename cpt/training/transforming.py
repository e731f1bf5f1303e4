"""`init.transform`: the parameters that a run starts with, made of those of another model or of fresh ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cpt.config import RunSpec
from cpt.errors import ConfigError, RunError
from cpt.models import base, convert
from cpt.models.growing import grow, is_of_scratch
from cpt.models.spec import DecoderSpec
from cpt.training.checkpoint import DamagedCheckpoint, Saved, restore
from cpt.training.exchange import checkpoint_of_run, hash_of, model_of_run
from cpt.training.preservation import directory_of
from cpt.training.processes import here
from cpt.training.sharding import parameter_shardings
from cpt.training.state import State


@dataclass(frozen=True)
class Parent:
    """A model on the devices, and where it is from.

    Attributes:
      tokenizer: hash of its tokenizer; None where nobody knows it.
      place: its directory, and of a run the checkpoint.
      name: of its directory.
    """

    spec: DecoderSpec
    params: base.Params
    tokenizer: str | None
    place: str
    name: str


def transformed(spec: RunSpec, abstract: Any, tokenizer: str | None) -> tuple[base.Params, str]:
    """The parameters that `init.transform` makes, and what the log says of it.

    Args:
      spec: of the run.
      abstract: shapes and shardings of its parameters.
      tokenizer: hash of the run's own.

    Raises:
      ConfigError: the method does not make this model of that one; a fresh one is asked for and another given.
      RunError: a model to start from is missing, damaged, or of another tokenizer.
    """
    init, transform = spec.init, spec.init.transform
    mesh = jax.tree.leaves(abstract)[0].sharding.mesh
    check_start(transform.kind, init.from_run or init.from_hf)
    if init.from_run or init.from_hf:
        folders = (init.from_run or init.from_hf, *(transform.models or ()))
        steps = [init.step] + [None] * (len(folders) - 1)
        parents = [read_model(Path(f), step, mesh) for f, step in zip(folders, steps, strict=True)]
        for parent in parents:
            check_tokenizer("init.transform", parent.place, parent.tokenizer, tokenizer)
        given = [(parent.spec, parent.params) for parent in parents]
        of = "params from " + " and ".join(parent.place for parent in parents)
    else:
        given, of = [(spec.model, fresh(base.build(spec.model), spec.seed, abstract))], "from scratch"
    params = grow(transform.kind, given, spec.model, transform.options, placing(abstract))
    return params, f"initialised {of}, transformed by {transform.kind}"


def check_start(kind: str, start: str | None) -> None:
    """That a method gets what it starts from.

    Raises:
      ConfigError: a method that draws anew is given a trained model, or one that grows is given none.
    """
    if is_of_scratch(kind) and start:
        raise ConfigError(
            f"init.transform.kind: '{kind}' draws parameters anew, and {start} would not be read; leave it out"
        )
    if not is_of_scratch(kind) and not start:
        raise ConfigError(
            f"init.transform.kind: '{kind}' starts from a trained model; give init.from_run or init.from_hf"
        )


def read_model(folder: Path, step: int | None, mesh: Mesh) -> Parent:
    """The model of a run directory or of a Hugging Face directory, spread over `mesh`.

    Args:
      step: of the run's checkpoint; None is the newest.

    Raises:
      ConfigError, RunError: there is no such model, or it cannot be read.
    """
    folder = folder.expanduser()
    if not ((folder / "plan.json").is_file() or (folder / "checkpoints").is_dir()):
        spec = convert.read_spec(folder)
        params = convert.read(folder, placing(_abstract(spec, mesh)))[1]
        return Parent(
            spec, params, hash_of(folder, lambda _: None), f"the Hugging Face directory {folder}", folder.resolve().name
        )
    spec = model_of_run(folder)

    def find() -> list[Any]:
        saved = checkpoint_of_run(folder, step)
        return [saved.kind, saved.step, str(saved.path)]

    # One process looks, for all: a directory can change between two looks.
    kind, at, path = here().decide(find)
    saved = Saved(kind, at, directory_of(path))
    try:
        (params, _), meta = restore(saved, State(_abstract(spec, mesh), None), params_only=True)
    except DamagedCheckpoint as e:
        raise RunError(f"{saved.path}: {e}; choose another step, or bring it back from a copy") from e
    return Parent(spec, params, meta.get("tokenizer"), f"{folder}, checkpoint {saved}", folder.resolve().name)


def check_tokenizer(field: str, place: Any, known: str | None, tokenizer: str | None) -> None:
    """Raises RunError where a model was trained with another tokenizer than that of this run."""
    if known and tokenizer and known != tokenizer:
        raise RunError(
            f"{field}: {place} was trained with another tokenizer ({known[:8]}, here {tokenizer[:8]}), whose ids "
            "mean other tokens; use its tokenizer: tokenizer.kind=file and tokenizer.path"
        )


def fresh(model: base.Model, seed: int, abstract: Any) -> base.Params:
    """Parameters drawn from `seed`, where `abstract` says."""
    return jax.jit(model.init, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract))(jax.random.key(seed))


def placing(abstract: Any) -> Callable[[tuple[str, ...], np.ndarray], jax.Array]:
    """Puts an array on the devices, where `abstract` says that its parameter lies."""

    def place(keys: tuple[str, ...], array: np.ndarray) -> jax.Array:
        leaf = abstract
        for key in keys:
            leaf = leaf[key]
        return jax.make_array_from_callback(array.shape, leaf.sharding, lambda index: array[index])

    return place


def _abstract(spec: DecoderSpec, mesh: Mesh) -> Any:
    """Shapes and shardings of a model's parameters on `mesh`."""
    model = base.build(spec)
    shapes = model.abstract()
    with_sharding = lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s)  # noqa: E731
    return jax.tree.map(with_sharding, shapes, parameter_shardings(mesh, model.logical_axes(), shapes))
