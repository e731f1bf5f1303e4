"""Whether a checkpoint is sound, on any machine: every file against its listing, every array against its digest."""

from __future__ import annotations

from cpt.errors import RunError
from cpt.training.digests import DamagedCheckpoint
from cpt.training.preservation import FULL_KINDS, Saved
from cpt.training.state import State
from cpt.training.storage import restore, stored_arrays


def damage(saved: Saved) -> str:
    """What is wrong with a checkpoint; "" if nothing is. All of it is in memory once, on the first device."""
    try:
        params = stored_arrays(saved, "params")
        opt_state = stored_arrays(saved, "opt_state") if saved.kind in FULL_KINDS else None
        restore(saved, State(params, opt_state), params_only=opt_state is None)
    except DamagedCheckpoint as e:
        return str(e)
    except RunError as e:
        return str(e).removeprefix(f"{RunError.room}: ")
    return ""
