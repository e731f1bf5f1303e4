"""Where the state of a run comes from. In this order, and the branch taken is logged:

1. the run's own newest sound checkpoint (a preempted run goes on, whatever `init` says);
2. `init.from_run`: another run's checkpoint, `what` of it;
3. scratch: the model's own initialisation from the run's seed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax

from cpt.config import InitSpec
from cpt.errors import RunError
from cpt.models.base import Model
from cpt.training.checkpoint import Checkpoints, DamagedCheckpoint, restore
from cpt.training.state import State


def initial_state(
    model: Model,
    tx: optax.GradientTransformation,
    abstract: State,
    checkpoints: Checkpoints,
    init: InitSpec,
    seed: int,
    say: Callable[[str], None],
) -> tuple[State, int, dict[str, Any] | None]:
    """State, step and (of an own checkpoint) meta to start from.

    Args:
      abstract: `ShapeDtypeStruct`s with the shardings of this machine.
      say: receives the branch taken and any damaged checkpoint.

    Raises:
      RunError: `init.from_run` has no such checkpoint, or one of another shape.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    if found := checkpoints.restore_latest(abstract, say):
        saved, state, meta = found
        say(f"initialised from own checkpoint {saved} (step {saved.step})")
        return state, saved.step, meta
    if init.from_run:
        params, opt_state = _from_run(init, abstract)
        if opt_state is None:
            opt_state = jax.jit(tx.init, out_shardings=shardings.opt_state)(params)
        say(f"initialised {init.what} from {init.from_run}")
        return State(params, opt_state), 0, None
    params = jax.jit(model.init, out_shardings=shardings.params)(jax.random.key(seed))
    say("initialised from scratch")
    return State(params, jax.jit(tx.init, out_shardings=shardings.opt_state)(params)), 0, None


def _from_run(init: InitSpec, abstract: State) -> State:
    params_only = init.what == "params"
    kinds = ("anchor", "rolling", "grid") if params_only else ("anchor", "rolling")
    other = Checkpoints(Path(init.from_run) / "checkpoints")
    found = [s for s in other.finished(kinds) if init.step in (None, s.step)]
    if not found:
        steps = sorted({s.step for s in other.finished(kinds)})
        raise RunError(
            f"init.from_run: {init.from_run} has no checkpoint{f' of step {init.step}' if init.step else ''}  "
            f"(steps: {steps})"
        )
    try:
        return restore(found[0], abstract, params_only)[0]
    except DamagedCheckpoint as e:
        raise RunError(f"init.from_run: {found[0].path}: {e}; choose another init.step") from e
