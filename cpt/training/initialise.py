"""Where the state of a run comes from. In this order, and the branch taken is logged:

1. the run's own newest sound checkpoint (a preempted run goes on, whatever `init` says);
2. `init.from_run`: another run's checkpoint, `what` of it;
3. `init.from_hf`: a Hugging Face model directory, its parameters;
4. scratch: the model's own initialisation from the run's seed.

`init.transform` then makes the run's parameters of those of 2 to 4.
With `init.vocabulary`, 2 and 3 may be of another tokenizer than this run's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from cpt.config import InitSpec, RunSpec
from cpt.data.tokenizers._base import Tokenizer
from cpt.errors import RunError
from cpt.models import base, convert
from cpt.models.spec import MAY_DIFFER
from cpt.plan import RunPlan
from cpt.sections import to_dict
from cpt.training import vocabulary
from cpt.training.checkpoint import FULL_KINDS, Checkpoints, DamagedCheckpoint, Saved, read_meta, restore
from cpt.training.guard import Guard, Incident
from cpt.training.machine import Machine
from cpt.training.preservation import checkpoints_of, directory_of, run_at
from cpt.training.processes import here
from cpt.training.state import State
from cpt.training.transforming import check_tokenizer, fresh, placing, transformed


def initial_state(
    machine: Machine, tokenizer: Tokenizer | None, checkpoints: Checkpoints, say: Callable[[str], None]
) -> tuple[State, int, dict[str, Any] | None]:
    """State, step and (of an own checkpoint, or a parent's) meta to start from.

    Args:
      tokenizer: of this run; None where nobody knows it.
      say: receives the branch taken and any damaged checkpoint.

    Raises:
      RunError: own checkpoints exist and none can be read; `init.from_run` has no such checkpoint, or one of another
        model or tokenizer; so has `init.from_hf`.
      ConfigError: `init.from_hf` is no directory that converts.
    """
    spec, abstract = machine.plan.spec, machine.abstract
    if found := checkpoints.restore_latest(abstract, say):
        saved, state, meta = found
        say(f"initialised from own checkpoint {saved} (step {saved.step})")
        return state, saved.step, meta
    init, opt_state, at, meta = spec.init, None, 0, None
    if init.transform is not None:
        params, said = transformed(spec, abstract.params, tokenizer.hash if tokenizer is not None else None)
    elif init.vocabulary.method is not None:
        params, said = _with_vocabulary(spec, tokenizer, abstract.params, say)
    elif init.from_run:
        (saved,) = _decided(lambda: [checkpoint_of(init)])
        _check_same_model(run_at(init.from_run), saved, spec, tokenizer.hash if tokenizer is not None else None)
        try:
            (params, opt_state), meta = restore(saved, abstract, params_only=not init.brings_optimizer)
        except DamagedCheckpoint as e:
            raise RunError(f"init.from_run: {saved.path}: {e}; choose another init.step") from e
        said = f"initialised {init.what} from {init.from_run}, checkpoint {saved}"
        at, meta = (saved.step, meta) if init.what == "all" else (0, None)
    elif init.from_hf:
        params = _from_hugging_face(init.from_hf, spec, abstract.params)
        said = f"initialised params from the Hugging Face directory {init.from_hf}"
    else:
        params, said = fresh(machine.model, spec.seed, abstract.params), "initialised from scratch"
    policy = f"; optimizer: {machine.plan.phases[0].spec.optimizer.policy if opt_state is not None else 'fresh'}"
    if opt_state is None:
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract.opt_state)
        opt_state = jax.jit(machine.tx.init, out_shardings=shardings)(params)
    say(said + ("" if init.what == "all" and init.from_run else policy))
    return State(params, opt_state), at, meta


def _from_hugging_face(folder: str, spec: RunSpec, abstract: Any) -> Any:
    """The parameters in a Hugging Face directory, each put where it belongs before the next one is read."""
    theirs, ours = to_dict(convert.read_spec(folder)), to_dict(spec.model)
    _check_fields("init.from_hf", folder, theirs, ours)
    return convert.read(folder, placing(abstract))[1]


def _with_vocabulary(
    spec: RunSpec, tokenizer: Tokenizer | None, abstract: Any, say: Callable[[str], None]
) -> tuple[Any, str]:
    """Parameters of another tokenizer's model, with rows for the tokens of this run's; and what was done, in words."""
    init = spec.init
    given, where, ours = init.vocabulary.tokenizer_of, "init.vocabulary.", to_dict(spec.model)
    if init.from_run:
        (saved,) = _decided(lambda: [checkpoint_of(init)])
        field, brought = "init.from_run", vocabulary.of_run(init.from_run, saved, given, where)
    else:
        field, brought = "init.from_hf", vocabulary.of_folder(init.from_hf, given, where)
    _check_fields(field, brought.place, to_dict(brought.spec) | {"vocab_size": spec.model.vocab_size}, ours)
    params = vocabulary.changed(brought, init.vocabulary, tokenizer, spec.model.vocab_size, abstract, say)
    return params, f"initialised params from {brought.place}, with the vocabulary of this run's tokenizer"


def checkpoint_of(init: InitSpec) -> Saved:
    """The checkpoint that `init` names: the newest, or the one of `init.step`."""
    kinds = FULL_KINDS if init.brings_optimizer else (*FULL_KINDS, "grid")
    finished = Checkpoints(checkpoints_of(init.from_run)).finished(kinds)
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
    _check_fields("init.from_run", run, theirs, to_dict(spec.model))
    if spec.init.brings_optimizer and their_optimizer != spec.optimizer.kind:
        raise RunError(
            f"init.from_run: optimizer.kind is {their_optimizer!r} in {run}, {spec.optimizer.kind!r} here; "
            "take its parameters only (init.what=params), or set optimizer.kind as there"
        )
    check_tokenizer("init.from_run", run, meta.get("tokenizer"), tokenizer)


def _check_fields(field: str, place: Any, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    for name in sorted({*ours, *theirs} - MAY_DIFFER):
        if ours.get(name) != theirs.get(name):
            raise RunError(
                f"{field}: model.{name} is {theirs.get(name)!r} in {place}, {ours.get(name)!r} here; "
                f"set model.{name} to {theirs.get(name)!r}, or start from another one"
            )


def params_at(
    plan: RunPlan,
    checkpoints: Checkpoints,
    step: int,
    model: base.Model,
    abstract: State,
    tokenizer: Tokenizer | None = None,
) -> Any:
    """The parameters that the run had at `step`: from its checkpoints, or at step 0 from where it was initialised.

    Args:
      tokenizer: of the run, for one that began with another vocabulary.

    Raises:
      RunError: there is no sound checkpoint of that step.
    """
    checkpoints.wait()
    init = plan.spec.init
    if step == 0 and init.transform is not None:
        return transformed(plan.spec, abstract.params, None)[0]
    if step == 0 and init.vocabulary.method is not None:
        return _with_vocabulary(plan.spec, tokenizer, abstract.params, lambda line: None)[0]
    if step == 0 and not init.from_run:
        if init.from_hf:
            return _from_hugging_face(init.from_hf, plan.spec, abstract.params)
        return fresh(model, plan.spec.seed, abstract.params)

    def find() -> list[Saved]:
        found = [s for s in checkpoints.finished((*FULL_KINDS, "grid")) if s.step == step]
        if init.from_run and init.what == "all":  # a child's past is its parent's
            parent = Checkpoints(checkpoints_of(init.from_run))
            found += [s for s in parent.finished((*FULL_KINDS, "grid")) if s.step == step]
        elif step == 0:
            found = [checkpoint_of(init)]
        return found[:1]

    if (saved := next(iter(_decided(find)), None)) is None:
        raise RunError(f"{checkpoints.directory}: no checkpoint of step {step}, which a probe compares with")
    try:
        return restore(saved, abstract, params_only=True)[0].params
    except DamagedCheckpoint as e:
        raise RunError(f"{saved.path}: {e}; bring it back from a copy") from e


def go_back(
    machine: Machine,
    checkpoints: Checkpoints,
    guard: Guard,
    spike: Incident,
    step: int,
    state: State,
    say: Callable[[str], None],
) -> State:
    """The state that the run has after it went back before a spike; `state` itself where there is nowhere to go.

    That of the newest checkpoint of the phase from `guard.back` updates before or earlier, else of the oldest one. Only
    those of the plan count: one that was saved because a signal or the clock said so is not there in every launch.

    Args:
      step: where the run stands; the optimizer policies of phases that began since are applied to the state.
    """
    checkpoints.wait()
    phase, wanted = machine.plan.phase_at(spike.step), guard.wanted(spike)

    def find() -> list[Saved]:
        found = [
            s for s in checkpoints.finished() if phase.first_step <= s.step <= spike.step and guard.may_use(s.step)
        ]
        early = [s for s in found if s.step <= wanted]
        late = [s for s in found if s.step > wanted]
        return [*early, *reversed(late)]

    for saved in _decided(find):
        try:
            back, _ = restore(saved, machine.abstract)
        except DamagedCheckpoint as e:
            say(f"checkpoint {saved} is damaged ({e}); looking for another one to go back to")
            continue
        guard.rewound(spike, saved.step)
        say(f"step {spike.step}: back to the state of step {saved.step} ({saved}), on with the data that come next")
        for edge in sorted(machine.switch):  # a checkpoint at an edge is the end of the phase before
            if saved.step <= edge < step:
                back = machine.switch[edge](back)
        return back
    say(f"step {spike.step}: this phase has no checkpoint to go back to; on without the update")
    return state


def _decided(find: Callable[[], list[Saved]]) -> list[Saved]:
    """The checkpoints that the first process finds, for all: a directory can change between two looks."""
    told = here().decide(lambda: [[s.kind, s.step, str(s.path)] for s in find()])
    return [Saved(kind, step, directory_of(path)) for kind, step, path in told]
