"""A model that gets another vocabulary: where it and its tokenizer come from, for a run and as a command."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from cpt.data.tokenizers._base import Tokenizer, load
from cpt.data.tokenizers.extending import extended
from cpt.errors import ConfigError, RunError, UserError
from cpt.models import base, convert
from cpt.models.spec import DecoderSpec
from cpt.models.vocabulary import VocabularySpec, prepare
from cpt.training.checkpoint import DamagedCheckpoint, Saved, read_meta, restore
from cpt.training.exchange import Export, model_of_run, tokenizer_of_run
from cpt.training.sharding import parameter_shardings
from cpt.training.state import State

Say = Callable[[str], None]
RECORD = "vocabulary.json"


@dataclass(frozen=True)
class Brought:
    """A model with the tokenizer that it was trained with.

    Attributes:
      place: where it is, for people.
      spec: of the model.
      tokenizer: of the model.
      file: of the tokenizer, where it is in one that stays.
      read: its parameters, with the shardings of a tree like them; as numpy arrays where that is None.
    """

    place: str
    spec: DecoderSpec
    tokenizer: Tokenizer
    file: Path | None
    read: Callable[[Any], Any]


def of_folder(folder: str, tokenizer_of: str | None, where: str) -> Brought:
    """The model in a Hugging Face directory.

    Args:
      tokenizer_of: file or folder of its tokenizer; None is the directory itself.
      where: what stands in front of `tokenizer_of` in an error.

    Raises:
      ConfigError, DataError, RunError: there is none that converts, or no tokenizer.
    """
    spec = convert.read_spec(folder)
    path = Path(tokenizer_of or folder).expanduser()
    if tokenizer_of is None and not any((path / n).is_file() for n in ("tokenizer.json", "tokenizer.model")):
        raise ConfigError(
            f"{where}tokenizer_of: {folder} has no tokenizer; name the one that the model was trained with"
        )

    def read(abstract: Any) -> Any:
        def place(keys: tuple[str, ...], array: np.ndarray) -> jax.Array:
            leaf = abstract
            for key in keys:
                leaf = leaf[key]
            return jax.make_array_from_callback(array.shape, leaf.sharding, lambda index: array[index])

        return convert.read(folder, None if abstract is None else place)[1]

    return Brought(f"the Hugging Face directory {folder}", spec, load(path), path, read)


def of_run(run: str, saved: Saved, tokenizer_of: str | None, where: str) -> Brought:
    """The model of a checkpoint of a run; arguments and errors as `of_folder`.

    Raises:
      RunError: the run or the checkpoint cannot be read.
    """
    workdir, field = Path(run), f"{where}tokenizer_of"
    spec = model_of_run(workdir)
    try:
        wanted = read_meta(saved).get("tokenizer")
    except DamagedCheckpoint as e:
        raise RunError(f"{saved.path}: {e}; choose another step, or bring it back from a copy") from e
    with tempfile.TemporaryDirectory() as scratch:
        if tokenizer_of is not None:
            file = Path(tokenizer_of).expanduser()
            tokenizer = load(file)
            if wanted not in (None, tokenizer.hash):
                raise ConfigError(
                    f"{field}={tokenizer_of}: not the tokenizer that {run} was trained with ({wanted[:8]})"
                )
        else:
            try:
                file = tokenizer_of_run(workdir, wanted, None, Path(scratch))
            except UserError as e:
                raise ConfigError(
                    f"{field}: the tokenizer of {run} ({(wanted or 'unknown')[:8]}) is not found beside its data; "
                    "name its file"
                ) from e
            tokenizer = load(file)
            file = None if file.is_relative_to(scratch) else file

    def read(abstract: Any) -> Any:
        if abstract is None:
            sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            shaped = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)  # noqa: E731
            abstract = jax.tree.map(shaped, base.build(spec).abstract())
        try:
            return restore(saved, State(abstract, None), params_only=True)[0].params
        except DamagedCheckpoint as e:
            raise RunError(f"{saved.path}: {e}; choose another step, or bring it back from a copy") from e

    return Brought(f"{run}, checkpoint {saved}", spec, tokenizer, file, read)


def changed(
    brought: Brought, vocabulary: VocabularySpec, tokenizer: Tokenizer | None, size: int, abstract: Any, say: Say
) -> Any:
    """The parameters of `brought` with a vocabulary of `size` rows for the tokens of `tokenizer`.

    Every process makes the new rows for itself, from the same numbers and the same seed.

    Args:
      abstract: the parameters of the run as `ShapeDtypeStruct`s with shardings, which they get.

    Raises:
      ConfigError, DataError, RunError: as `cpt.models.vocabulary.prepare` and what reads the model.
    """
    if tokenizer is None:
        raise ConfigError(
            "init.vocabulary: nobody knows the tokenizer of this run's stores; name it with tokenizer.kind=file and "
            "tokenizer.path"
        )
    prepared = prepare(vocabulary, brought.tokenizer, tokenizer, (brought.spec.vocab_size, size), say)
    mesh = jax.tree.leaves(abstract)[0].sharding.mesh
    model = base.build(brought.spec)
    shapes = model.abstract()
    shardings = parameter_shardings(mesh, model.logical_axes(), shapes)
    as_it_was = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    params = prepared.parameters(brought.read(as_it_was), _whole)

    def put(leaf: Any, like: Any) -> jax.Array:
        if isinstance(leaf, jax.Array):
            return leaf
        return jax.make_array_from_callback(leaf.shape, like.sharding, lambda index: leaf[index])

    return jax.tree.map(put, params, abstract)


def _whole(array: jax.Array | np.ndarray) -> np.ndarray:
    """All of an array in the memory of this host, also where other processes hold parts of it."""
    if isinstance(array, np.ndarray) or array.is_fully_addressable:
        return np.asarray(array)
    everywhere = NamedSharding(array.sharding.mesh, PartitionSpec())
    return np.asarray(jax.jit(lambda x: x, out_shardings=everywhere)(array).addressable_data(0))


@dataclass(frozen=True)
class Change:
    """What `change_vocabulary` is to do.

    Attributes:
      tokenizer: file or folder of the new one.
      extend: keep the old tokenizer and add the tokens of `tokenizer` behind its own.
      multiple: the model gets a multiple of so many rows.
      export: how the directory is written; its `tokenizer` is not read.
    """

    tokenizer: Path
    extend: bool = False
    multiple: int = 1
    export: Export = Export()


def change_vocabulary(brought: Brought, vocabulary: VocabularySpec, change: Change, out: Path, say: Say) -> None:
    """Write a model with another vocabulary as a Hugging Face directory, with its tokenizer. One device holds it whole.

    Raises:
      ConfigError: `out` is there; a tokenizer that such a directory cannot hold, or that cannot be extended.
      DataError, RunError: as `cpt.models.vocabulary.prepare` and what reads the model.
    """
    if out.exists() and not change.export.overwrite and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out={out}: is there already; name another folder, or remove it first")
    with tempfile.TemporaryDirectory() as scratch:
        file = change.tokenizer
        if change.extend:
            if brought.file is None:
                brought.tokenizer.save(Path(scratch) / "old.json")
            file = Path(scratch) / "tokenizer.json"
            file.write_text(json.dumps(extended(brought.file or Path(scratch) / "old.json", change.tokenizer)))
        new = load(file)
        if new.kind == "sentencepiece":
            raise ConfigError(
                f"--tokenizer={change.tokenizer}: a SentencePiece model is no tokenizer.json, which such a directory "
                "needs; convert it with transformers first, or use it in a run (tokenizer.kind=sentencepiece)"
            )
        spec = replace(brought.spec, vocab_size=-(-new.vocab_size // change.multiple) * change.multiple)
        prepared = prepare(vocabulary, brought.tokenizer, new, (brought.spec.vocab_size, spec.vocab_size), say, "--")
        say(f"reading {brought.place}")
        params = prepared.parameters(brought.read(None), _whole)
        record = {
            "method": vocabulary.method,
            "options": dict(vocabulary.options),
            "seed": vocabulary.seed,
            "tokenizer_before": brought.tokenizer.hash,
            "tokenizer": new.hash,
            "tokens": int((prepared.request.origin_V >= 0).sum() + len(prepared.request.wanted_M)),
            "kept": int((prepared.request.origin_V >= 0).sum()),
            "made": len(prepared.request.wanted_M),
            "rows": spec.vocab_size,
        }
        how = change.export
        texts = {RECORD: json.dumps(record, indent=1) + "\n"}
        convert.write(out, spec, params, file, how.dtype, how.shard_bytes, how.overwrite, texts)
