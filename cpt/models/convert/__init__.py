"""Hugging Face model directories, in and out, by files alone: neither torch nor transformers is needed.

A family is one file of this folder: it says how a `config.json` reads as the spec of the family and which tensor is
which parameter. Reading, writing and what can be wrong with a directory are the same for all of them.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cpt.errors import ConfigError, RunError, UserError
from cpt.models.convert._base import Keys, Layout, fill, leaves, matched
from cpt.models.convert._files import Weights, check_free, disk_errors, new_folder, write_shards
from cpt.models.convert._tokenizer import tokenizer_files
from cpt.models.spec import DecoderSpec
from cpt.registry import available, find

if TYPE_CHECKING:
    from cpt.models.base import Params

CONFIG = "config.json"
SHARD_BYTES = 5 * 10**9
DTYPES = ("float32", "bfloat16", "float16")


def read(folder: str | Path, place: Callable[[Keys, np.ndarray], Any] | None = None) -> tuple[DecoderSpec, Params]:
    """The model in a Hugging Face directory, one tensor in memory at a time beside what is kept of it.

    What only training uses (`init`, `init_std`, `compute_dtype`, `remat`) is at its default in the spec. Where
    `tie_word_embeddings` is set, a Llama stays tied; a GPT-NeoX, which cannot be, gets a head of its own that starts as
    a copy of the embedding.

    Args:
      folder: holds `config.json` and `model.safetensors`, or the shards that `model.safetensors.index.json` names, in
        float32, float16 or bfloat16.
      place: receives the path of each parameter, e.g. `("head", "kernel")`, and its float32 array; what it returns
        is kept in its place (put it on a device here, and no second copy of the model ever exists).

    Returns:
      The spec, and the parameters as `Model.init` shapes them: float32 numpy arrays, or what `place` made of them.

    Raises:
      ConfigError: no such folder, an architecture or a setting that no model here has.
      RunError: a file is missing or damaged; a tensor is missing, unknown, of another shape, not finite.
    """
    folder = Path(folder).expanduser()
    config = _config(folder)
    layout = _layout_of(config, folder)
    spec = layout.read_spec(config, folder / CONFIG)
    with Weights(folder) as weights:
        return spec, fill(layout, spec, config, weights, place)


def read_spec(folder: str | Path) -> DecoderSpec:
    """The spec of the model in a Hugging Face directory, from its `config.json` alone; raises what `read` does."""
    folder = Path(folder).expanduser()
    config = _config(folder)
    return _layout_of(config, folder).read_spec(config, folder / CONFIG)


@dataclass(frozen=True)
class Contents:
    """What a directory holds.

    Attributes:
      architecture: `model_type` of its config.
      spec: of the model; None where it has settings that no model here has.
      tensors: number of stored tensors.
      files, stored_bytes: safetensors files and their size.
      dtypes: stored tensors by dtype, as the files name it.
      problem: why `read` would refuse it, as far as names, shapes and settings tell; None if it would not.
    """

    architecture: str
    spec: DecoderSpec | None = None
    tensors: int = 0
    stored_bytes: int = 0
    files: int = 0
    dtypes: Mapping[str, int] = field(default_factory=dict)
    problem: UserError | None = None


def inspect(folder: str | Path) -> Contents:
    """What a Hugging Face directory holds and whether `read` takes it; of its numbers only a tied head is read.

    Raises:
      ConfigError: no such folder.
      RunError: its `config.json` cannot be read.
    """
    folder = Path(folder).expanduser()
    config = _config(folder)
    found = Contents(str(config.get("model_type")))
    try:
        with Weights(folder) as weights:
            names, dtypes = weights.names(), Counter(map(weights.dtype, weights.names()))
            found = replace(
                found,
                tensors=len(names),
                stored_bytes=sum(file.stat().st_size for file in set(names.values())),
                files=len(set(names.values())),
                dtypes=dict(dtypes.most_common()),
            )
    except UserError as e:
        found = replace(found, problem=e)
    try:
        layout = _layout_of(config, folder)
        found = replace(found, spec=layout.read_spec(config, folder / CONFIG))
        if found.problem is None:
            with Weights(folder) as weights:
                weights.check_dtypes()
                matched(layout, found.spec, config, weights)
    except UserError as e:
        found = replace(found, problem=e)
    return found


def write(
    folder: str | Path,
    spec: DecoderSpec,
    params: Params,
    tokenizer_file: str | Path | None = None,
    dtype: str = "float32",
    max_shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Write a directory that `transformers`, and what is built on it, loads; all of it, or nothing.

    Args:
      folder: to make; the files are written beside it, and take its name when they are complete.
      spec: of the model.
      params: its parameters: numpy or addressable JAX arrays, fetched one at a time.
      tokenizer_file: a Hugging Face `tokenizer.json` (or the folder that holds it); without one the directory has no
        tokenizer and no token that ends a text.
      dtype: of the stored tensors, one of `DTYPES`.
      max_shard_bytes: bytes of tensors in one file; a larger model is several files and an index.
      overwrite: replace a folder that is there and not empty.
      texts: further files, by name: a model card.

    Raises:
      ConfigError: an architecture, dtype or tokenizer that cannot be exported; the folder is there.
      RunError: parameters that are not those of `spec`, not finite (or not in `dtype`); the disk fails.
    """
    folder = Path(folder).expanduser()
    if dtype not in DTYPES:
        raise ConfigError(f"dtype: no '{dtype}'  (there are: {', '.join(DTYPES)})")
    if max_shard_bytes < 1:
        raise ConfigError(f"max_shard_bytes: {max_shard_bytes} must be at least 1")
    layout = _layout(spec.family)
    config = layout.write_config(spec) | {"torch_dtype": dtype}
    tensors = leaves(layout, spec, params, dtype)
    extra = tokenizer_files(tokenizer_file, spec)
    with disk_errors(folder), new_folder(folder, overwrite) as partial:
        for name, content in extra.files.items():
            (partial / name).write_bytes(content)
        for name, content in {CONFIG: config | extra.ids, "generation_config.json": extra.ids}.items():
            (partial / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        for name, content in (texts or {}).items():
            (partial / name).write_text(content, encoding="utf-8")
        write_shards(partial, tensors, dtype, max_shard_bytes)


def check_out(folder: str | Path, overwrite: bool = False) -> None:
    """That `write` may make `folder`, asked before the work. Raises ConfigError where it is there."""
    check_free(Path(folder).expanduser(), overwrite)


def _config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ConfigError(
            f"{folder}: no such folder; name a directory with a {CONFIG} and its safetensors (fetch a model of the Hub "
            "first: hf download NAME --local-dir DIR)"
        )
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except OSError as e:
        raise RunError(f"{folder / CONFIG}: cannot be read ({e.strerror}); copy the whole directory again") from e
    except ValueError as e:
        raise RunError(f"{folder / CONFIG}: not JSON ({e}); copy it again") from e
    if not isinstance(config, dict):
        raise RunError(f"{folder / CONFIG}: not a JSON object; copy it again")
    return config


def _layout_of(config: Mapping[str, Any], folder: Path) -> Layout:
    """The layout of the architecture that a `config.json` names."""
    kind = config.get("model_type")
    layouts = _layouts().values()
    for layout in layouts:
        if kind in layout.model_types:
            return layout
    offered = ", ".join(name for layout in layouts for name in layout.model_types)
    raise ConfigError(
        f"{folder / CONFIG}: model_type: '{kind}' is not an architecture that converts  (there are: {offered})"
    )


def _layout(family: str) -> Layout:
    if family not in (offered := _layouts()):
        raise ConfigError(
            f"model.family: '{family}' is not an architecture that converts  (there are: {', '.join(offered)})"
        )
    return offered[family]


@functools.cache
def _layouts() -> dict[str, Layout]:
    """The layout of each family, by its file."""
    return {family: find(__name__, family, "model.family") for family in available(__name__)}
