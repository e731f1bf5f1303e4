"""Checkpoints as files: one is written by all processes together and read by each for itself.

Anchors and the grid are written by Orbax, which nothing else imports; rolling ones, that their run alone reads, by
`cpt.training.parts`. Beside its items (`params`, `opt_state`, `meta`) a checkpoint holds the listing of
`cpt.training.digests`; everything that is read is compared with what was saved.
"""

from __future__ import annotations

import json
from typing import Any

import jax
import orbax.checkpoint as ocp

from cpt.errors import RunError
from cpt.training import parts
from cpt.training.agreement import Meeting, first_news
from cpt.training.digests import DamagedCheckpoint, check_files, digests, list_files, sealed
from cpt.training.faults import is_machine_fault, reason
from cpt.training.preservation import UNFINISHED, Saved
from cpt.training.spec import CheckpointSpec
from cpt.training.state import State

WRITING_TIMEOUT_S = 1200.0


def write(saved: Saved, meeting: Meeting, meta: dict[str, Any], items: dict[str, Any], concurrent_gb: int) -> None:
    """Write a checkpoint and wait until it is complete. Every process calls this.

    Args:
      items: trees of arrays by name.
      concurrent_gb: at most so much is on its way at a time.

    Raises:
      OthersFailed: another process could not write its part.
      Exception: what the disk, or Orbax, raises.
    """
    if parts.suits(saved):
        parts.write(saved, meeting, meta, items)
        return
    with Writer(saved, meeting, at_least(concurrent_gb, items)) as writer:
        writer.save(meta, items)


class Writer:
    """One Orbax saver for one checkpoint: its barriers have names, and no name may be used twice."""

    def __init__(self, saved: Saved, meeting: Meeting, concurrent_gb: int):
        self.saved, self.meeting, self.concurrent_gb = saved, meeting, concurrent_gb

    def __enter__(self) -> Writer:
        together = ocp.options.MultiprocessingOptions(
            primary_host=0,
            # Named one by one, they meet through the coordination service; the devices are busy training.
            active_processes=set(range(jax.process_count())) if jax.process_count() > 1 else None,
            barrier_sync_key_prefix=self.meeting.name,
        )
        waiting = ocp.options.AsyncOptions(
            timeout_secs=int(WRITING_TIMEOUT_S),
            barrier_sync_fn=lambda *, key, timeout_ms: self.meeting.join(),
            post_finalization_callback=self._list_files,
            create_directories_asynchronously=False,
        )
        handlers = {name: _arrays_handler(self.concurrent_gb, together) for name in ("params", "opt_state")}
        handler = ocp.CompositeCheckpointHandler(
            composite_options=ocp.CompositeOptions(multiprocessing_options=together, async_options=waiting),
            meta=ocp.JsonCheckpointHandler(multiprocessing_options=together),
            **handlers,
        )
        self._saver = ocp.AsyncCheckpointer(handler, async_options=waiting, multiprocessing_options=together)
        return self

    def save(self, meta: dict[str, Any], items: dict[str, Any]) -> None:
        """Write it and wait until it is complete. Raises whatever Orbax raises."""
        arrays = {name: ocp.args.PyTreeSave(tree) for name, tree in items.items()}
        self._saver.save(self.saved.path, args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **arrays), force=True)
        self._saver.wait_until_finished()

    def __exit__(self, *_: Any) -> None:
        self._saver.close()

    def _list_files(self) -> None:
        """Orbax calls this on process 0 when everything is written and before the directory gets its final name."""
        path = self.saved.path
        unfinished = [p for p in path.parent.iterdir() if p.name.startswith(f"{path.name}{UNFINISHED}")]
        list_files(unfinished[0] if unfinished else path, final=False)


def restore(
    saved: Saved, abstract: State, params_only: bool = False, concurrent_gb: int = CheckpointSpec().concurrent_gb
) -> tuple[State, dict[str, Any]]:
    """A checkpoint on the devices and with the shardings of `abstract`, its digests verified.

    Every process calls this, reads what its own devices need, and then all of them hear whether anybody failed: none
    goes on alone, and none waits for one that met an error.

    Args:
      saved: which one.
      abstract: `ShapeDtypeStruct`s with shardings; its topology may differ from the one that saved.
      params_only: leave `opt_state` None.
      concurrent_gb: at most so much is being read at a time.

    Raises:
      DamagedCheckpoint: a file is missing, unreadable, or an array is not the one that was saved.
      RunError: the machine cannot read it now (memory, rights, the disk).
    """
    targets = {"params": abstract.params} | ({} if params_only else {"opt_state": abstract.opt_state})
    meta: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    problem: DamagedCheckpoint | RunError | None = None
    try:
        meta = read_meta(saved)
        if jax.process_index() == 0 and "saved" in meta:  # checkpoints of before have no listing
            check_files(saved.path)
        arrays = _read(saved, targets, concurrent_gb)
    except (DamagedCheckpoint, RunError) as e:
        problem = e
    except Exception as e:  # Orbax and TensorStore raise a bare Exception for truncated data
        problem = _explained(saved, e)
    _agree(problem)
    try:
        sums = digests({k: arrays[k] for k in targets}).fetch()
    except Exception as e:
        raise _explained(saved, e) from e
    for name, pair in sums.items():
        if meta["digests"].get(name) != pair:
            raise DamagedCheckpoint(f"{name}: its digest differs from the one saved with it")
    return State(arrays["params"], arrays.get("opt_state")), meta


def stored_arrays(saved: Saved, item: str) -> Any:
    """Shapes and dtypes of an item of a checkpoint, as it lies on disk, for reading it on any one device.

    Raises:
      DamagedCheckpoint: that cannot be read.
    """
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    try:
        if parts.is_one(saved):
            return parts.tree_of(saved, item)
        tree = ocp.StandardCheckpointHandler().metadata(saved.path / item).tree
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), tree)
    except DamagedCheckpoint:
        raise
    except Exception as e:
        raise _explained(saved, e) from e


def read_meta(saved: Saved) -> dict[str, Any]:
    """The `meta` item of a checkpoint.

    Raises:
      DamagedCheckpoint: it is missing, unreadable or altered.
      RunError: the machine cannot read it now.
    """
    try:
        meta = json.loads((saved.path / "meta" / "metadata").read_text())
    except (OSError, ValueError) as e:
        explained = _explained(saved, e)
        raise (
            DamagedCheckpoint(f"meta: {reason(e)}") if isinstance(explained, DamagedCheckpoint) else explained
        ) from e
    if not isinstance(meta, dict) or sealed(meta) != meta:
        raise DamagedCheckpoint("meta: its digest differs from the one saved with it")
    return meta


def _read(saved: Saved, targets: dict[str, Any], concurrent_gb: int) -> dict[str, Any]:
    """The arrays of this process's devices; no other process takes part."""
    if parts.is_one(saved):
        return parts.read(saved, targets, concurrent_gb * 10**9)
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix=f"alone{jax.process_index()}",
    )
    handler = lambda: ocp.StandardCheckpointHandler(  # noqa: E731
        restore_concurrent_gb=at_least(concurrent_gb, targets), multiprocessing_options=alone
    )
    reader = ocp.Checkpointer(
        ocp.CompositeCheckpointHandler(
            composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
            **{name: handler() for name in targets},
        ),
        multiprocessing_options=alone,
    )
    try:
        args = {name: ocp.args.StandardRestore(target) for name, target in targets.items()}
        return dict(reader.restore(saved.path, args=ocp.args.Composite(**args)).items())
    finally:
        reader.close()


def _arrays_handler(concurrent_gb: int, together: ocp.options.MultiprocessingOptions) -> ocp.PyTreeCheckpointHandler:
    return ocp.PyTreeCheckpointHandler(
        save_concurrent_gb=concurrent_gb,
        save_device_host_concurrent_gb=concurrent_gb,
        multiprocessing_options=together,
    )


def at_least(concurrent_gb: int, arrays: Any) -> int:
    """Orbax takes no array that is larger than its limit."""
    largest = max((leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arrays)), default=0)
    return max(concurrent_gb, largest // 10**9 + 1)


def _explained(saved: Saved, error: Exception) -> DamagedCheckpoint | RunError:
    """What an error while reading says: about the machine, so that another day it may be read, or about the files."""
    if is_machine_fault(error):
        out: DamagedCheckpoint | RunError = RunError(
            f"{saved.path}: cannot be read now ({reason(error)}); nothing was changed; "
            "mend that and run the same command again"
        )
    else:
        out = DamagedCheckpoint(f"unreadable: {reason(error)}")
    out.__cause__ = error
    return out


def _agree(problem: DamagedCheckpoint | RunError | None) -> None:
    """Raise the problem of any process on every process, the machine's before the files'."""
    of_machine = isinstance(problem, RunError)
    faults = first_news(str(problem).removeprefix("run error: ") if of_machine else "")
    damage = first_news("" if of_machine or problem is None else str(problem))
    if problem is not None and isinstance(problem, RunError) == bool(faults):
        raise problem
    if faults:
        raise RunError(faults)
    if damage:
        raise DamagedCheckpoint(damage)
