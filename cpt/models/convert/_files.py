"""Safetensors on disk: one file or shards with an index, read and written one tensor at a time."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from cpt import tensors as tensors_io
from cpt.errors import ConfigError, RunError
from cpt.models.convert._base import NUMPY, Tensor

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
READABLE = ("F32", "F16", "BF16")


class Weights:
    """The tensors of a directory; a context that keeps its files open.

    Raises:
      RunError: there is no safetensors file, or one is missing, damaged or not what the index says.
    """

    def __init__(self, folder: Path):
        self._folder, self._stack = folder, contextlib.ExitStack()
        indexed = {} if (folder / ONE).exists() else _index(folder)
        self._open = {
            name: self._stack.enter_context(_opened(folder / name)) for name in dict.fromkeys(indexed.values() or [ONE])
        }
        self._files = {tensor: folder / name for name, file in self._open.items() for tensor in file.keys()}  # noqa: SIM118
        for tensor, name in indexed.items():
            if self._files.get(tensor) != folder / name:
                raise RunError(f"{folder / name}: has no tensor '{tensor}', and {INDEX} says so; fetch both again")

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def names(self) -> dict[str, Path]:
        return self._files

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """As the file names it, `"BF16"`."""
        return self._slice(name).get_dtype()

    def check_dtypes(self) -> None:
        """Raises RunError for a tensor of a dtype that is not read."""
        for name in self._files:
            self._check_dtype(name)

    def _check_dtype(self, name: str) -> None:
        if (dtype := self.dtype(name)) not in READABLE:
            raise RunError(
                f"{self._files[name]}: tensor '{name}' is {dtype}, and only {', '.join(READABLE)} are read; save the "
                "model in one of them"
            )

    def array(self, name: str) -> np.ndarray:
        self._check_dtype(name)
        # Opened anew: a file that stays open stays mapped, and all that was ever read of it counts as memory in use.
        with _opened(self._files[name]) as file:
            return file.get_tensor(name)

    def _slice(self, name: str) -> Any:
        return self._open[self._files[name].name].get_slice(name)


def _opened(file: Path) -> Any:
    if not file.is_file():
        raise RunError(f"{file}: is missing; fetch the whole directory again")
    try:
        return safe_open(file, framework="np")
    except (SafetensorError, OSError) as e:
        raise RunError(f"{file}: not a whole safetensors file ({e}); fetch it again") from e


def _index(folder: Path) -> dict[str, str]:
    """Tensor to file name, from the index of a directory without a single file."""
    file = folder / INDEX
    if not file.exists():
        pickled = sorted(p.name for p in folder.glob("*.bin"))
        how = (
            f"only {pickled[0]}, a pickle, which is not read; save it once with transformers: "
            "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR)"
            if pickled
            else f"neither {ONE} nor {INDEX}; fetch the whole directory"
        )
        raise RunError(f"{folder}: has {how}")
    try:
        names = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
        if not names or not all(isinstance(n, str) and n == Path(n).name for n in names.values()):
            raise ValueError("its weight_map does not map tensors to files beside it")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise RunError(f"{file}: not the index of a sharded model ({e}); fetch it again") from e
    return names


def write_shards(
    folder: Path, tensors: list[tuple[Tensor, Callable[[], np.ndarray]]], dtype: str, max_shard_bytes: int
) -> None:
    """Write `tensors` in their order, as one file or as shards of at most `max_shard_bytes` and an index.

    A tensor larger than that is a shard of its own.
    """
    shards: list[list[tuple[Tensor, Callable[[], np.ndarray]]]] = [[]]
    held = 0
    for tensor, fetch in tensors:
        size = prod(tensor.stored) * np.dtype(NUMPY[dtype]).itemsize
        if shards[-1] and held + size > max_shard_bytes:
            shards.append([])
            held = 0
        shards[-1].append((tensor, fetch))
        held += size
    if len(shards) == 1:
        _write_file(folder / ONE, shards[0], dtype)
        return
    weight_map, total = {}, 0
    for i, shard in enumerate(shards, 1):
        name = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        total += _write_file(folder / name, shard, dtype)
        weight_map |= {tensor.name: name for tensor, _ in shard}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_file(file: Path, tensors: list[tuple[Tensor, Callable[[], np.ndarray]]], dtype: str) -> int:
    stored = [tensors_io.Tensor(t.name, np.dtype(NUMPY[dtype]), t.stored, fetch) for t, fetch in tensors]
    return tensors_io.write_file(file, stored, {"format": "pt"})  # older versions of transformers insist on it


def check_free(folder: Path, overwrite: bool) -> None:
    """Raises ConfigError where `folder` is a file, or not empty and not to be overwritten."""
    if folder.exists() and not (folder.is_dir() and (overwrite or not any(folder.iterdir()))):
        raise ConfigError(f"{folder}: is there already; name another folder, or remove it first")


@contextlib.contextmanager
def new_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """A folder beside `folder` to write into, which gets its name at the end; nothing stays of it after a failure.

    Raises:
      ConfigError: `folder` is a file, or not empty and not to be overwritten.
    """
    check_free(folder, overwrite)
    folder = folder.resolve()
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    replaced = folder.with_name(f".{folder.name}.replaced-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            folder.rename(replaced)  # a folder cannot be renamed onto one that is not empty
        partial.rename(folder)
    except BaseException:
        if replaced.exists() and not folder.exists():
            replaced.rename(folder)
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Failures of the disk as one line."""
    try:
        yield
    except OSError as e:
        what = "the disk is full" if e.errno in (errno.ENOSPC, errno.EDQUOT) else e.strerror or str(e)
        raise RunError(f"{folder}: {what}; nothing was written there; make room or name another folder") from e
