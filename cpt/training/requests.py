"""What one process asks all of them to do: stop, because a signal came; save, because it is time.

Several processes must take every turn together, and a signal reaches them at different moments, or only one of them. So
each sends what it asks for along with its rows of a batch, the update takes the largest over all, and everybody reads
the answer with the other results of that update: one or two updates later, at the same place.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cpt.training.processes import here
from cpt.training.sharding import from_rows
from cpt.training.signals import StopRequest


def asked(mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape, dtype and sharding of what goes along with the batch of an update: nothing in a process alone."""
    if here().count == 1:
        return {}
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return {"asked_Dx2": jax.ShapeDtypeStruct((mesh.size, 2), np.int32, sharding=sharding)}


class Requests:
    """Requests of this process, and what all of them agreed on.

    Args:
      stop: of this process.
      save_due: whether it is time for a checkpoint; only process 0 is asked, so that one clock decides.
      mesh: of the run.
    """

    def __init__(self, stop: StopRequest, save_due: Callable[[], bool], mesh: Mesh):
        self._stop, self._save_due = stop, save_due
        self._asked = asked(mesh)
        self._alone = not self._asked
        self._stop_agreed, self._save_agreed, self._saved_at = False, False, 0

    @property
    def stopping(self) -> str | None:
        """What stops the run now, for a person: the name of a signal; None while it goes on."""
        if self._alone:
            return self._stop.name
        return (self._stop.name or "stopped by another process") if self._stop_agreed else None

    @property
    def saving(self) -> bool:
        """Whether a checkpoint is due now, by the clock."""
        return self._save_due() if self._alone else self._save_agreed

    def asked(self) -> dict[str, jax.Array]:
        """What goes along with the batch of an update: nothing in a process alone."""
        if self._alone:
            return {}
        mine_2 = np.array([self._stop.name is not None, here().first and self._save_due()], np.int32)
        ((name, one),) = self._asked.items()
        devices = np.arange(len(one.sharding.device_set))
        return {name: from_rows(one.sharding, np.tile(mine_2, (len(devices), 1)), devices, len(devices))}

    def heard(self, update: int, asked_2: np.ndarray | None) -> None:
        """The answer that came with the results of `update`."""
        if asked_2 is not None:
            self._stop_agreed |= bool(asked_2[0])
            # What was asked for before the last checkpoint was answered by it.
            self._save_agreed |= bool(asked_2[1]) and update >= self._saved_at

    def saved(self, step: int) -> None:
        """A checkpoint was saved at `step`."""
        self._saved_at, self._save_agreed = step, False
