"""Digests of arrays, of the facts and of the files of a checkpoint: what is read must be what was saved.

A file with a flipped bit is restored silently, so `meta` carries a digest of every array. It is a pair of
position-weighted sums modulo 2**32 computed where the array lies: any single flipped bit changes it, and it does not
depend on the topology. Beside the arrays lies `files.json`: the size of every file, and the sha256 of the small ones,
so that a file that is missing, cut off or altered is noticed before anything is read.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from cpt.training.preservation import COMMITTED, files_under, is_remote

LISTING = "files.json"
# Orbax notes in it when the checkpoint became final: its sum is known only then.
STAMPED = "_CHECKPOINT_METADATA"
TOGETHER_BYTES = 1 << 26  # arrays whose digests one program computes
SMALL_BYTES = 1 << 20  # larger files hold arrays, which have digests of their own


class DamagedCheckpoint(Exception):
    """What restore found wrong with one checkpoint; the message names the item, array or file."""


def digest(x: jax.Array) -> jax.Array:
    """Two checksums of the bits of `x`, uint32 of shape [2], equal for every sharding.

    Each element's bits are multiplied by an odd number that depends on its position, so flipping one bit (a change of
    2**k) always changes the sum, and so does swapping two unequal elements except by accident.
    """
    width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x, width).astype(jnp.uint32)
    position, stride = jnp.zeros(x.shape, jnp.uint32), 1
    for axis in reversed(range(x.ndim)):
        position += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * np.uint32(stride % 2**32)
        stride *= x.shape[axis]
    position += np.uint32(1)
    first = bits * (position * np.uint32(2654435761) | np.uint32(1))
    second = bits * ((position ^ (position >> 15)) * np.uint32(2246822519) | np.uint32(1))
    return jnp.stack([jnp.sum(first, dtype=jnp.uint32), jnp.sum(second, dtype=jnp.uint32)])


_digests = jax.jit(lambda arrays: jnp.stack([digest(x) for x in arrays]))


@dataclass(frozen=True)
class Digests:
    """Digests that devices still compute.

    Attributes:
      names: of arrays, in the order of the rows of `sums`.
      sums: uint32 arrays of shape [arrays, 2].
    """

    names: list[str]
    sums: list[jax.Array]

    def fetch(self) -> dict[str, list[int]]:
        """`{"params/embed/embedding": [a, b]}`; waits for them."""
        rows = [pair for sums in jax.device_get(self.sums) for pair in sums.tolist()]
        return dict(zip(self.names, rows, strict=True))


def digests(tree: Any) -> Digests:
    """`digest` of every array; of small ones several by one program, which costs less to call.

    Not of all: their products would be in memory at once.
    """
    named = named_leaves(tree)
    groups: list[list[jax.Array]] = [[]]
    for leaf in named.values():
        if groups[-1] and sum(x.nbytes for x in groups[-1]) + leaf.nbytes > TOGETHER_BYTES:
            groups.append([])
        groups[-1].append(leaf)
    sums = []
    for group in groups if named else ():
        sums.append(_in_turn(_digests(group)))
    return Digests(list(named), sums)


@jax.jit
def _copies(arrays: list[jax.Array]) -> tuple[list[jax.Array], jax.Array]:
    return [jnp.copy(x) for x in arrays], jnp.stack([digest(x) for x in arrays])


_copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


def copied(tree: Any) -> tuple[Any, Digests]:
    """A copy of every array, where it lies, and the digests; of a small tree both by one program."""
    named = named_leaves(tree)
    if not named or sum(x.nbytes for x in named.values()) > TOGETHER_BYTES:
        return _copy(tree), digests(tree)
    copies, sums = _in_turn(_copies(list(named.values())))
    return jax.tree.unflatten(jax.tree.structure(tree), copies), Digests(list(named), [sums])


def _in_turn(out: Any) -> Any:
    """`out`; waited for where several processes compute on CPU.

    CPU devices run programs that do not depend on each other side by side; two processes could then each wait in a sum
    that the other has not begun.
    """
    return jax.block_until_ready(out) if jax.process_count() > 1 and jax.default_backend() == "cpu" else out


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves by their paths, `params/embed/embedding`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def sealed(meta: dict[str, Any]) -> dict[str, Any]:
    """`meta` with the sha256 of all its other entries under `seal`."""
    body = json.loads(json.dumps({k: v for k, v in meta.items() if k != "seal"}))
    return {**body, "seal": hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()}


def list_files(checkpoint: epath.Path, final: bool) -> None:
    """Write the listing of a checkpoint directory into it.

    Args:
      final: Orbax is done with it; before that the sum of what it still writes is left open, so that a process killed
        in between leaves a checkpoint that is whole all the same.
    """
    facts: dict[str, Any] = {}
    for name, length in files_under(checkpoint).items():
        if name in (LISTING, COMMITTED):
            continue
        if name == STAMPED and not final:
            facts[name] = {}
        elif length <= SMALL_BYTES:
            facts[name] = {"bytes": length, "sha256": _sha256(checkpoint / name)}
        else:
            facts[name] = {"bytes": length}
    text = json.dumps(sealed({"files": facts}))
    if is_remote(checkpoint):  # an object is there whole or not at all, and cannot be renamed, only copied
        (checkpoint / LISTING).write_text(text)
        return
    beside = checkpoint / f"{LISTING}.new"
    beside.write_text(text)
    beside.replace(checkpoint / LISTING)


def check_files(checkpoint: epath.Path) -> None:
    """Compare a checkpoint directory with its listing.

    Raises:
      DamagedCheckpoint: a file is missing, or is not the one that was saved; names it.
      OSError: it cannot be read now.
    """
    try:
        listing = json.loads((checkpoint / LISTING).read_text())
    except (FileNotFoundError, ValueError) as e:
        raise DamagedCheckpoint(f"{LISTING}: missing or unreadable") from e
    if not isinstance(listing, dict) or sealed(listing) != listing:
        raise DamagedCheckpoint(f"{LISTING}: its digest differs from the one saved with it")
    found = files_under(checkpoint)
    for name, facts in listing["files"].items():
        if name not in found:
            raise DamagedCheckpoint(f"{name}: missing")
        if found[name] != facts.get("bytes", found[name]):
            raise DamagedCheckpoint(f"{name}: {found[name]:,} bytes, {facts['bytes']:,} were saved")
        if "sha256" in facts and _sha256(checkpoint / name) != facts["sha256"]:
            raise DamagedCheckpoint(f"{name}: its sha256 differs from the one saved with it")


def _sha256(path: epath.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
