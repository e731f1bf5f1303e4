"""Where the state of a run comes from. In this order, and the branch taken is logged:

1. the run's own newest sound checkpoint (a preempted run goes on, whatever `init` says);
2. `init.from_run`: another run's checkpoint, `what` of it;
3. scratch: the model's own initialisation from the run's seed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax

from cpt.config import InitSpec, RunSpec
from cpt.data.tokenizers._base import Tokenizer
from cpt.errors import RunError
from cpt.models.base import Model
from cpt.sections import to_dict
from cpt.training.checkpoint import FULL_KINDS, Checkpoints, DamagedCheckpoint, Saved, read_meta, restore
from cpt.training.state import State

# How the model computes, not what its parameters are.
MAY_DIFFER = {"compute_dtype", "context", "remat", "init", "init_std"}


def initial_state(
    spec: RunSpec,
    tokenizer: Tokenizer | None,
    model: Model,
    tx: optax.GradientTransformation,
    abstract: State,
    checkpoints: Checkpoints,
    say: Callable[[str], None],
) -> tuple[State, int, dict[str, Any] | None]:
    """State, step and (of an own checkpoint, or a parent's) meta to start from.

    Args:
      tokenizer: of this run; None where nobody knows it.
      abstract: `ShapeDtypeStruct`s with the shardings of this machine.
      say: receives the branch taken and any damaged checkpoint.

    Raises:
      RunError: own checkpoints exist and none can be read; `init.from_run` has no such checkpoint, or one of another
        model or tokenizer.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    if found := checkpoints.restore_latest(abstract, say):
        saved, state, meta = found
        say(f"initialised from own checkpoint {saved} (step {saved.step})")
        return state, saved.step, meta
    init = spec.init
    if init.from_run:
        saved = checkpoint_of(init)
        _check_same_model(Path(init.from_run), saved, spec, tokenizer.hash if tokenizer is not None else None)
        try:
            (params, opt_state), meta = restore(saved, abstract, params_only=not init.brings_optimizer)
        except DamagedCheckpoint as e:
            raise RunError(f"init.from_run: {saved.path}: {e}; choose another init.step") from e
        if opt_state is None:
            opt_state = jax.jit(tx.init, out_shardings=shardings.opt_state)(params)
        say(f"initialised {init.what} from {init.from_run}, checkpoint {saved}")
        at, meta = (saved.step, meta) if init.what == "all" else (0, None)
        return State(params, opt_state), at, meta
    params = jax.jit(model.init, out_shardings=shardings.params)(jax.random.key(spec.seed))
    say("initialised from scratch")
    return State(params, jax.jit(tx.init, out_shardings=shardings.opt_state)(params)), 0, None


def checkpoint_of(init: InitSpec) -> Saved:
    """The checkpoint that `init` names: the newest, or the one of `init.step`."""
    kinds = FULL_KINDS if init.brings_optimizer else (*FULL_KINDS, "grid")
    finished = Checkpoints(Path(init.from_run) / "checkpoints").finished(kinds)
    found = [s for s in finished if init.step in (None, s.step)]
    if not found:
        steps = sorted({s.step for s in finished}, key=lambda s: (abs(s - (init.step or 0)), s))[:6]
        what = "full checkpoint" if init.brings_optimizer else "checkpoint"
        of_step = f" of step {init.step}; nearest: {', '.join(map(str, steps)) or 'none'}" if init.step else ""
        raise RunError(f"init.from_run: {init.from_run} has no {what}{of_step}")
    return found[0]


def _check_same_model(run: Path, saved: Saved, spec: RunSpec, tokenizer: str | None) -> None:
    """Parameters of another shape, or whose ids mean other tokens, cannot be taken over."""
    try:
        before = json.loads((run / "plan.json").read_text())["spec"]
        theirs, their_optimizer = before["model"], before["optimizer"]["kind"]
        meta = read_meta(saved)
    except (OSError, ValueError, KeyError, TypeError, DamagedCheckpoint) as e:
        raise RunError(f"init.from_run: {run}: its plan or {saved} cannot be read ({e}); choose another run") from e
    ours = to_dict(spec.model)
    for name in sorted({*ours, *theirs} - MAY_DIFFER):
        if ours.get(name) != theirs.get(name):
            raise RunError(
                f"init.from_run: model.{name} is {theirs.get(name)!r} in {run}, {ours.get(name)!r} here; "
                f"set model.{name} to {theirs.get(name)!r}, or start from another run"
            )
    if spec.init.brings_optimizer and their_optimizer != spec.optimizer.kind:
        raise RunError(
            f"init.from_run: optimizer.kind is {their_optimizer!r} in {run}, {spec.optimizer.kind!r} here; "
            "take its parameters only (init.what=params), or set optimizer.kind as there"
        )
    known = meta.get("tokenizer")
    if known and tokenizer and known != tokenizer:
        raise RunError(
            f"init.from_run: {run} was trained with another tokenizer ({known[:8]}, here {tokenizer[:8]}), whose ids "
            "mean other tokens; use its tokenizer: tokenizer.kind=file and tokenizer.path"
        )
