"""Checkpoints on Orbax: three items, three kinds, a digest of each array, and a fall-back to the one before.

    checkpoints/anchor/<step>    params, opt_state, meta     phase edges, always kept
    checkpoints/rolling/<step>   params, opt_state, meta     the newest few
    checkpoints/grid/<step>      params, meta                kept, for evaluation later

Orbax restores a file with a flipped bit silently, so `meta` carries a digest of every array. It is a pair of
position-weighted sums modulo 2**32 computed where the array lies: any single flipped bit changes it, and it does not
depend on the topology.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from cpt.errors import RunError
from cpt.training.faults import is_machine_fault, quiet_writers, reason
from cpt.training.state import State

FULL_KINDS = ("anchor", "rolling")


@dataclass(frozen=True)
class Saved:
    """A finished checkpoint directory."""

    kind: str
    step: int
    path: Path

    def __str__(self) -> str:
        return f"{self.kind}/{self.step}"


class DamagedCheckpoint(Exception):
    """What restore found wrong with one checkpoint; the message names the item or array."""


class Checkpoints:
    """Save and restore the state of a run under `directory`.

    Args:
      directory: the run's `checkpoints/`.
      keep_rolling: how many rolling checkpoints stay.
    """

    def __init__(self, directory: Path, keep_rolling: int = 2):
        # Orbax reads no relative paths.
        self.directory, self.keep_rolling = directory.absolute(), keep_rolling
        quiet_writers()
        self._saver = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        self._snapshot = jax.jit(lambda tree: (jax.tree.map(jnp.copy, tree), jax.tree.map(digest, tree)))

    def save(self, kind: str, step: int, state: State, meta: dict[str, Any]) -> None:
        """Start saving; returns once the arrays are copied on their devices, the files are written in the background.

        Args:
          kind: `anchor`, `rolling` (both full) or `grid` (parameters only).
          step: the step `state` stands at.
          meta: JSON-able facts of the run; digests are added here.
        """
        items = {"params": state.params}
        if kind in FULL_KINDS:
            items["opt_state"] = state.opt_state
        # The copy keeps the next update from writing into buffers that are still being read.
        copies, digests = self._snapshot(items)
        digests = {name: [int(a), int(b)] for name, (a, b) in _named(jax.device_get(digests)).items()}
        meta = sealed({**meta, "step": step, "kind": kind, "digests": digests})
        self.wait()
        self._prune()
        path = self._path(kind, step)
        items = {name: ocp.args.StandardSave(tree) for name, tree in copies.items()}
        with self._writing():
            self._saver.save(path, args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **items), force=True)

    def wait(self) -> None:
        """Block until the last save is complete on disk. Raises RunError if it could not be written."""
        with self._writing():
            self._saver.wait_until_finished()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as e:  # what its writing thread met, Orbax raises as it is: OSError, ValueError, its own
            raise RunError(
                f"{self.directory}: a checkpoint could not be written ({reason(e)}); {self.newest()}; "
                "make room there and run the same command again"
            ) from e

    def newest(self) -> str:
        """`the newest finished one is rolling/100`, for messages."""
        finished = self.finished()
        return f"the newest finished one is {finished[0]}" if finished else "none was finished before"

    def close(self) -> None:
        self.wait()
        self._prune()
        self._saver.close()

    def has(self, kind: str, step: int) -> bool:
        return self._path(kind, step).is_dir()

    def finished(self, kinds: tuple[str, ...] = FULL_KINDS) -> list[Saved]:
        """Finished checkpoints, newest first; an anchor before a rolling one of the same step."""
        found = [
            Saved(kind, int(p.name), p)
            for kind in kinds
            for p in (self.directory / kind).glob("*")
            if p.name.isdigit() and p.is_dir()
        ]
        return sorted(found, key=lambda s: (-s.step, s.kind))

    def restore_latest(self, abstract: State, say: Callable[[str], None]) -> tuple[Saved, State, dict[str, Any]] | None:
        """The newest sound full checkpoint as (saved, state, meta); None if there is no checkpoint at all.

        A damaged one is passed over; once a sound one is found it is named through `say` and moved aside to
        `checkpoints/damaged/`.

        Raises:
          RunError: there are checkpoints but none can be read; nothing is moved.
        """
        damaged: list[tuple[Saved, DamagedCheckpoint]] = []
        for saved in self.finished():
            try:
                state, meta = restore(saved, abstract)
            except DamagedCheckpoint as e:
                damaged.append((saved, e))
                continue
            for bad, why in damaged:
                aside = self.directory / "damaged" / f"{bad.kind}-{bad.step}"
                say(f"checkpoint {bad} is damaged ({why}); moved to {aside}, using the one before")
                aside.parent.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(aside, ignore_errors=True)
                bad.path.rename(aside)
            return saved, state, meta
        if damaged:
            bad, why = damaged[0]
            raise RunError(
                f"{self.directory}: no full checkpoint can be read ({len(damaged)} tried; {bad}: {why}); nothing was "
                "changed; bring one back from a copy, or train anew in another --workdir"
            )
        return None

    def clean(self) -> None:
        """Remove what a killed process left half-written."""
        for unfinished in self.directory.glob("*/*.orbax-checkpoint-tmp*"):
            shutil.rmtree(unfinished, ignore_errors=True)

    def _path(self, kind: str, step: int) -> Path:
        return self.directory / kind / str(step)

    def _prune(self) -> None:
        if jax.process_index() == 0:
            for old in self.finished(("rolling",))[self.keep_rolling :]:
                shutil.rmtree(old.path, ignore_errors=True)


def restore(saved: Saved, abstract: State, params_only: bool = False) -> tuple[State, dict[str, Any]]:
    """A checkpoint on the devices and with the shardings of `abstract`, its digests verified.

    Args:
      saved: which one.
      abstract: `ShapeDtypeStruct`s with shardings; its topology may differ from the one that saved.
      params_only: leave `opt_state` None.

    Raises:
      DamagedCheckpoint: a file is missing, unreadable, or an array is not the one that was saved.
      RunError: the machine cannot read it now (memory, rights, the disk).
    """
    targets = {"params": abstract.params} | ({} if params_only else {"opt_state": abstract.opt_state})
    meta = read_meta(saved)
    reader = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    try:
        arrays = reader.restore(
            saved.path, args=ocp.args.Composite(**{k: ocp.args.StandardRestore(t) for k, t in targets.items()})
        )
        digests = jax.device_get(_digests({k: arrays[k] for k in targets}))
    except Exception as e:  # Orbax and TensorStore raise a bare Exception for truncated data
        _raise_if_machine_fault(saved, e)
        raise DamagedCheckpoint(f"unreadable: {reason(e)}") from e
    finally:
        reader.close()
    for name, (a, b) in _named(digests).items():
        if meta["digests"].get(name) != [int(a), int(b)]:
            raise DamagedCheckpoint(f"{name}: its digest differs from the one saved with it")
    return State(arrays["params"], arrays.get("opt_state")), meta


def read_meta(saved: Saved) -> dict[str, Any]:
    """The `meta` item of a checkpoint. Raises DamagedCheckpoint if it is missing, unreadable or altered."""
    try:
        meta = json.loads((saved.path / "meta" / "metadata").read_text())
    except (OSError, ValueError) as e:
        _raise_if_machine_fault(saved, e)
        raise DamagedCheckpoint(f"meta: {reason(e)}") from e
    if not isinstance(meta, dict) or sealed(meta) != meta:
        raise DamagedCheckpoint("meta: its digest differs from the one saved with it")
    return meta


def sealed(meta: dict[str, Any]) -> dict[str, Any]:
    """`meta` with the sha256 of all its other entries under `seal`."""
    body = json.loads(json.dumps({k: v for k, v in meta.items() if k != "seal"}))
    return {**body, "seal": hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()}


def digest(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two uint32 checksums of the bits of `x`, equal for every sharding.

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
    return jnp.sum(first, dtype=jnp.uint32), jnp.sum(second, dtype=jnp.uint32)


_digests = jax.jit(lambda tree: jax.tree.map(digest, tree))  # one for all restores, which compile it once


def _raise_if_machine_fault(saved: Saved, error: Exception) -> None:
    if is_machine_fault(error):
        raise RunError(
            f"{saved.path}: cannot be read now ({reason(error)}); nothing was changed; "
            "mend that and run the same command again"
        ) from error


def _named(digests: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """`{"params/embed/embedding": (a, b)}` from a tree of digest pairs."""
    leaves = jax.tree_util.tree_leaves_with_path(digests, is_leaf=lambda x: type(x) is tuple and len(x) == 2)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): pair for path, pair in leaves}
