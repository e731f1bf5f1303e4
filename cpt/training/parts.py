"""Checkpoints that cost little: what each process holds of the arrays, in one safetensors file.

    <step>/arrays/00000.safetensors    of process 0: `params/embed/embedding`, or `params/embed/embedding[0:64,0:128]`
                                       where others hold the rest
    <step>/meta/metadata               as in every checkpoint

Rolling checkpoints on a file system are saved so. They are many, are read by the run itself, and are gone soon; Orbax
spends more than half a millisecond of Python on each array, which a small model cannot spare every few updates. They
are written by all processes together, and read onto any other devices.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from cpt.tensors import Place, Tensor, places, write_file
from cpt.training.agreement import Meeting
from cpt.training.digests import LISTING, DamagedCheckpoint, list_files, named_leaves
from cpt.training.preservation import UNFINISHED, Saved, is_remote, remove
from cpt.training.processes import here

FOLDER, META = "arrays", "meta"
Bounds = tuple[tuple[int, int], ...]  # of a part, in each dimension of the whole


def suits(saved: Saved) -> bool:
    """Whether a checkpoint is to be saved in this way; remote storage renames nothing at once."""
    return saved.kind == "rolling" and not is_remote(saved.path)


def is_one(saved: Saved) -> bool:
    """Whether a checkpoint was saved in this way."""
    return (saved.path / FOLDER).is_dir()


def write(saved: Saved, meeting: Meeting, meta: dict[str, Any], items: dict[str, Any]) -> None:
    """Write a checkpoint; every process calls this, and returns when it is complete.

    It gets its name when everything is on the disk, so a process that is killed before leaves what counts as
    unfinished.

    Raises:
      OSError: the disk fails.
      OthersFailed: another process could not write its part.
    """
    target = Path(saved.path)
    beside = target.with_name(f"{target.name}{UNFINISHED}-{meeting.name.rpartition('/')[2]}")
    if here().first:
        if beside.exists():
            epath.Path(beside).rmtree()
        for folder in (FOLDER, META):
            (beside / folder).mkdir(parents=True)
    meeting.join()
    write_file(beside / FOLDER / f"{jax.process_index():05d}.safetensors", list(_held(items)))
    meeting.join()
    if here().first:
        (beside / META / "metadata").write_text(json.dumps(meta))
        list_files(epath.Path(beside), final=True)
        # All of it lies on the disk before it gets its name: after a power cut there may be no older one left.
        for path in (beside / META / "metadata", beside / LISTING, beside / FOLDER, beside / META, beside):
            _sync(path)
        if target.exists():
            remove(saved)
        beside.rename(target)
        _sync(target.parent)
    meeting.join()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _held(items: dict[str, Any]) -> Any:
    """What the devices of this process hold of each array; what several hold is written by the first of them."""
    for name, array in named_leaves(items).items():
        if len(array.sharding.device_set) == 1:
            yield Tensor(name, np.dtype(array.dtype), array.shape, lambda array=array: _on_host(array))
            continue
        for shard in array.addressable_shards:
            if shard.replica_id == 0:
                bounds = _bounds(shard.index, array.shape)
                whole = shard.data.shape == array.shape
                yield Tensor(
                    name if whole else f"{name}[{','.join(f'{a}:{b}' for a, b in bounds)}]",
                    np.dtype(array.dtype),
                    shard.data.shape,
                    lambda data=shard.data: _on_host(data),
                )


def _on_host(data: jax.Array) -> np.ndarray:
    if data.device.platform == "cpu":
        return np.asarray(data)
    # An array keeps its copy on the host as long as it lives; this one lives no longer than it is written.
    return np.asarray(jax.make_array_from_single_device_arrays(data.shape, data.sharding, [data]))


def _bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> Bounds:
    return tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))


@dataclass(frozen=True)
class Stored:
    """An array of a checkpoint: its parts by their bounds."""

    name: str
    parts: dict[Bounds, Place]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(max(b[i][1] for b in self.parts) for i in range(len(next(iter(self.parts)))))

    @property
    def dtype(self) -> np.dtype:
        return next(iter(self.parts.values())).dtype

    def check(self) -> None:
        """Raises DamagedCheckpoint where parts are missing."""
        if sum(prod(p.shape) for p in self.parts.values()) != prod(self.shape):
            raise DamagedCheckpoint(f"{self.name}: parts of it are missing")

    def read(self, index: tuple[slice, ...]) -> np.ndarray:
        """The numbers at `index` of the whole, copied out of whichever parts hold them."""
        wanted = _bounds(index, self.shape)
        out = np.empty([b - a for a, b in wanted], self.dtype)
        for bounds, place in self.parts.items():
            both = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(wanted, bounds, strict=True)]
            if all(a < b for a, b in both):
                there = tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(both, bounds, strict=True))
                out_at = tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(both, wanted, strict=True))
                rows = place.rows(there[0].start, there[0].stop) if there else place.rows(0, 1)
                out[out_at] = rows[(slice(None), *there[1:])] if there else rows[0]
        return out


def stored(saved: Saved, item: str) -> dict[str, Stored]:
    """The arrays of `item` (`params` or `opt_state`) by name.

    Raises:
      DamagedCheckpoint: a file is not whole.
      OSError: it cannot be read now.
    """
    found: dict[str, Stored] = {}
    for file in sorted((Path(saved.path) / FOLDER).iterdir()):
        try:
            held = places(file)
        except ValueError as e:
            raise DamagedCheckpoint(f"{FOLDER}/{file.name}: {e}") from e
        for tensor, place in held.items():
            name, bounds = _parsed(tensor, place.shape)
            if name.partition("/")[0] == item:
                found.setdefault(name, Stored(name, {})).parts[bounds] = place
    return found


def _parsed(tensor: str, shape: tuple[int, ...]) -> tuple[str, Bounds]:
    """Name of the whole and bounds of the part, from the name of a tensor."""
    if (part := re.fullmatch(r"(.+)\[([\d:,]+)\]", tensor)) is None:
        return tensor, tuple((0, n) for n in shape)
    bounds = tuple((int(a), int(b)) for a, b in re.findall(r"(\d+):(\d+)", part[2]))
    if tuple(b - a for a, b in bounds) != shape:
        raise DamagedCheckpoint(f"{tensor}: its name and its shape, {list(shape)}, do not agree")
    return part[1], bounds


def read(saved: Saved, targets: dict[str, Any], most_bytes: int = 2**30) -> dict[str, Any]:
    """The arrays of some items on the devices of this process; no other process takes part.

    Args:
      targets: `ShapeDtypeStruct`s with shardings, by item.
      most_bytes: of arrays, are on their way to the devices at a time, or one array if it is larger.

    Raises:
      DamagedCheckpoint: a file is not whole, or an array is missing or not what is wanted.
      OSError: it cannot be read now.
    """
    out = {}
    for item, target in targets.items():
        there = stored(saved, item)
        wanted = named_leaves({item: target})
        if there.keys() != wanted.keys():
            name = sorted(there.keys() ^ wanted.keys())[0]
            raise DamagedCheckpoint(f"{name}: {'not wanted' if name in there else 'missing'}")
        for name, leaf in wanted.items():
            if (there[name].shape, there[name].dtype) != (leaf.shape, leaf.dtype):
                is_there = f"{there[name].dtype}{list(there[name].shape)}"
                raise DamagedCheckpoint(f"{name}: {is_there}, and {leaf.dtype}{list(leaf.shape)} is wanted")
            there[name].check()
        leaves, under_way = [], 0
        for name, leaf in wanted.items():
            leaves.append(_put(leaf, there[name].read))
            under_way += leaf.size * leaf.dtype.itemsize
            if under_way > most_bytes:
                jax.block_until_ready(leaves)
                under_way = 0
        out[item] = jax.tree.unflatten(jax.tree.structure(target), leaves)
    return out


def _put(leaf: jax.ShapeDtypeStruct, read_at: Callable[[tuple[slice, ...]], np.ndarray]) -> jax.Array:
    with jax.transfer_guard_host_to_device("allow"):
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, read_at)


def tree_of(saved: Saved, item: str) -> Any:
    """Shapes and dtypes of an item as nested dicts, for reading it on any one device. Raises as `stored`."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    out: dict[str, Any] = {}
    for name, array in stored(saved, item).items():
        *folders, last = name.split("/")[1:]
        inner = out
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[last] = jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=device)
    return out
