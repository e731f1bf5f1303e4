"""The RunPlan: an ordered list of phases, resolved once. Everything else is a pure function of (plan, step).

A step is an optimizer update; step `t` is the state after `t` updates and update `t` (0-based) is what leads from `t`
to `t + 1`. Learning rate, mix, evaluation and checkpoints are asked of the plan by step, so a run's whole mutable state
is `params`, `opt_state` and one integer, and nothing is restored that can be computed.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from cpt import registry
from cpt.columns import Column, Earlier, columns_of
from cpt.config import PhaseSpec, RunSpec
from cpt.data import replaying
from cpt.data.decisions import Decisions
from cpt.errors import ConfigError, nearest
from cpt.identity import identity
from cpt.phase import Phase
from cpt.schedules.composer import Schedule
from cpt.schedules.spec import Span, build
from cpt.schedules.trunk import CONTINUE, Share, branched, lay, total_steps
from cpt.sections import to_dict

AT = ("grid", "edges")  # where sets and probes are evaluated


@dataclass(frozen=True)
class Clock:
    """Where a run stands at a step."""

    step: int
    phase: str
    step_in_phase: int
    tokens: int


@dataclass(frozen=True)
class RunPlan:
    """The frozen list of phases and what follows from it."""

    spec: RunSpec
    phases: tuple[Phase, ...]

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def total_steps(self) -> int:
        return self.phases[-1].end

    @property
    def total_tokens(self) -> int:
        return self.phases[-1].first_token + self.phases[-1].tokens

    @cached_property
    def _ends(self) -> list[int]:
        return [p.end for p in self.phases]

    def phase_at(self, step: int) -> Phase:
        """The phase that update `step` belongs to; the last phase from its end on."""
        return self.phases[min(bisect.bisect_right(self._ends, step), len(self.phases) - 1)]

    def clock(self, step: int) -> Clock:
        phase = self.phase_at(step)
        inside = step - phase.first_step
        return Clock(step, phase.name, inside, phase.first_token + inside * phase.tokens_per_step)

    def lr(self, step: int) -> float:
        """Learning rate of update `step`."""
        phase = self.phase_at(step)
        inside = step - phase.first_step
        if phase.spec.optimizer.policy == "lr0_warm" and inside < phase.spec.optimizer.steps:
            return 0.0
        return float(phase.schedule(inside))

    @cached_property
    def varies(self) -> bool:
        """Whether a phase changes the optimizer's beta2 or weight decay."""
        return any(p.spec.b2.given or p.spec.weight_decay.given for p in self.phases)

    def hyper(self, step: int) -> dict[str, float]:
        """`b2` and `weight_decay` of update `step`."""
        phase, own = self.phase_at(step), self.spec.optimizer
        inside = step - phase.first_step
        return {
            "b2": phase.spec.b2.at(inside, phase.schedule, own.b2),
            "weight_decay": phase.spec.weight_decay.at(inside, phase.schedule, own.weight_decay),
        }

    def evaluates_at(self, step: int) -> bool:
        """Whether the sets and probes of the grid are evaluated at `step`."""
        phase = self.phase_at(step)
        return phase.evaluates_at(step - phase.first_step) or self.is_edge(step)

    def is_edge(self, step: int) -> bool:
        """Whether a phase begins or ends at `step`, or a branch leaves: there trunk and child are compared."""
        return step == 0 or step in self._ends or step in (*self.branch_points, self.spec.branch.at)

    def sets_at(self, step: int) -> tuple[str, ...]:
        """Which kinds of sets are evaluated at `step`: those of the `grid`, of the `edges`, both or none."""
        kinds = {s.at for s in self.spec.evaluation.sets.values()}
        due = {"grid": self.evaluates_at(step), "edges": self.is_edge(step)}
        return tuple(kind for kind in AT if kind in kinds and due[kind])

    def probes_at(self, step: int) -> tuple[str, ...]:
        """Names of the probes that are asked at `step`."""
        phase = self.phase_at(step)
        due = {"grid": self.evaluates_at(step), "edges": self.is_edge(step)}
        inside = step - phase.first_step
        return tuple(n for n, p in self.spec.evaluation.probes.items() if due[p.at] or inside < p.first)

    def checkpoints_at(self, step: int) -> tuple[str, ...]:
        """Kinds of checkpoint saved at `step`: an anchor at a phase's end, else grid and rolling by their intervals."""
        if step in self._ends or step in self.branch_points:
            return ("anchor",)
        phase = self.phase_at(step)
        inside = step - phase.first_step
        return tuple(
            kind
            for kind, every in (("grid", phase.grid), ("rolling", phase.rolling))
            if every and inside and inside % every == 0
        )

    @cached_property
    def branch_points(self) -> tuple[int, ...]:
        """The steps from which annealed branches are trained, in order."""
        ends = self._ends if self.spec.anneal.phase_ends else ()
        return tuple(sorted({*self.spec.anneal.at, *ends}))

    @cached_property
    def hash(self) -> str:
        """sha256 of the canonical JSON of everything that changes a digit of the run."""
        canonical = json.dumps(identity(self.spec, defaults=False), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """What `plan.json` holds: the resolved phases for readers, and `spec` to build the plan again."""
        return {
            "name": self.name,
            "hash": self.hash,
            "seed": self.spec.seed,
            "total_steps": self.total_steps,
            "total_tokens": self.total_tokens,
            "phases": [_phase_json(self.spec, p) for p in self.phases],
            "sets": {
                name: {"source": s.source, "tags": list(s.tags), "at": s.at, "learned_in": self.learned_in(s.source)}
                for name, s in self.spec.evaluation.sets.items()
            },
            "probes": {name: p.kind for name, p in self.spec.evaluation.probes.items()},
            "spec": to_dict(self.spec),
        }

    def learned_in(self, source: str) -> str | None:
        """The first phase that reads `source` as new data; one that lists it with a share of 0 does not."""
        for phase in self.phases:
            columns = zip(phase.columns, phase.reads, strict=True)
            if any(c.role == "new" and c.source == source and reads for c, reads in columns):
                return phase.name
        return None


def resolve(spec: RunSpec) -> RunPlan:
    """The plan of a config: every duration in steps, every name checked.

    Raises:
      ConfigError: a phase with no tokens, shares that do not sum to 1, replay of a phase that is not earlier, a
        schedule that does not fit its phase, a fraction in an open-ended phase.
    """
    _check_kinds(spec)
    phases: list[Phase] = []
    schedules = _schedules(spec)
    if spec.branch.at is not None:
        schedules = branched(schedules, spec.branch, spec.batch.sequences * spec.batch.length)
    for name, schedule in zip(spec.order, schedules, strict=False):  # a branch ends before the phases after it
        phases.append(_resolve_phase(spec, name, phases, schedule))
    plan = RunPlan(spec, tuple(phases))
    for at in spec.anneal.at:
        if not 0 < at <= plan.total_steps:
            raise ConfigError(f"anneal.at: {at} is no step of this plan of {plan.total_steps} steps")
    return plan


def _check_kinds(spec: RunSpec) -> None:
    """Methods that a run will look up later, on the accelerator's time, are there."""
    registry.check("cpt.models", spec.model.family, "model.family")
    registry.check("cpt.optimizers", spec.optimizer.kind, "optimizer.kind")
    registry.check("cpt.data.tokenizers", spec.tokenizer.kind, "tokenizer.kind")
    for name, phase in spec.phases.items():
        registry.check("cpt.data.replay_shares", phase.replay.schedule.kind, f"phases.{name}.replay.schedule.kind")
    for name, probe in spec.evaluation.probes.items():
        registry.check("cpt.evaluators.probes", probe.kind, f"evaluation.probes.{name}.kind")
    for name, source in spec.sources.items():
        if source.corpus is not None:
            registry.check("cpt.data.corpora", source.corpus, f"sources.{name}.corpus")


def _schedules(spec: RunSpec) -> list[Schedule]:
    """The schedule of each phase, in order; phases that continue one are given their part of it."""
    out: list[Schedule] = []
    tokens_per_step = spec.batch.sequences * spec.batch.length
    names = list(spec.order)
    while names:
        first = names.pop(0)
        together = [first]
        while names and spec.phases[names[0]].lr.kind == CONTINUE:
            together.append(names.pop(0))
        phase, where = spec.phases[first], f"phases.{first}.lr"
        if phase.lr.kind == CONTINUE:
            raise ConfigError(f"{where}.kind: there is no phase before whose schedule could go on")
        shares = [_share(spec.phases[n], tokens_per_step, f"phases.{n}") for n in together]
        span = Span(
            total_steps(shares),
            tokens_per_step,
            phase.open_ended,
            index=len(out),
            first_step=sum(s.steps for s in out),
            sequences=spec.batch.sequences,
            base_peak=out[0].highest if out else 0.0,
        )
        out += lay(build(phase.lr, span, out[-1].end if out else 0.0, where), shares)
    return out


def _share(phase: PhaseSpec, tokens_per_step: int, where: str) -> Share:
    """What a phase takes of its schedule; only one that continues another may leave its budget open."""
    open_budget = phase.lr.kind == CONTINUE and phase.tokens is None and phase.steps is None
    return Share(where, None if open_budget else _phase_steps(phase, tokens_per_step, where), phase.until_lr)


def _resolve_phase(spec: RunSpec, name: str, before: list[Phase], schedule: Schedule) -> Phase:
    phase, where = spec.phases[name], f"phases.{name}"
    tokens_per_step = spec.batch.sequences * spec.batch.length
    columns, steps = columns_of(spec, name, {p.name: Earlier(p.new_tokens, p.new_mix) for p in before}), schedule.steps
    span = Span(steps, tokens_per_step, phase.open_ended)
    grid, eval_every = spec.checkpoints.grid, span.duration(phase.evaluate.every, f"{where}.evaluate.every")
    resolved = Phase(
        name=name,
        index=len(before),
        spec=phase,
        first_step=before[-1].end if before else 0,
        steps=steps,
        first_token=before[-1].first_token + before[-1].tokens if before else 0,
        sequences=spec.batch.sequences,
        tokens_per_step=tokens_per_step,
        columns=columns,
        schedule=schedule,
        replay=replaying.resolved(phase.replay, steps, tokens_per_step, where),
        eval_steps=_eval_steps(phase, steps, eval_every),
        eval_every=eval_every,
        rolling=span.duration(spec.checkpoints.rolling, "checkpoints.rolling"),
        grid=span.duration(grid, "checkpoints.grid") if grid else 0,
        sources=spec.sources,
        sets={n: s for n, s in spec.evaluation.sets.items() if s.at == "grid"},  # what a mixer may decide from
        decisions=before[0].decisions if before else Decisions(),
    )
    if resolved.decides_every:
        _check_feedback(spec, where)
        decided = range(resolved.decides_every, steps, resolved.decides_every)
        resolved = replace(resolved, eval_steps=tuple(sorted({*resolved.eval_steps, *decided})))
    _check_read_once(columns, where)
    for step in (0, steps - 1):
        resolved.shares(step)
    phase.b2.check(0.0, 1.0, f"{where}.b2")
    phase.weight_decay.check(0.0, math.inf, f"{where}.weight_decay")
    _check_weights(phase, [c.name for c in columns], where)
    return resolved


def _check_feedback(spec: RunSpec, where: str) -> None:
    """A child of a run would need the decisions of its parent."""
    kind = spec.phases[where.split(".", 1)[1]].mixer.kind
    if spec.anneal.at or spec.anneal.phase_ends or spec.branch.at is not None or spec.init.what == "all":
        raise ConfigError(f"{where}.mixer.kind: '{kind}' decides from evaluations; such a run has no branches")


def _check_weights(phase: PhaseSpec, columns: list[str], where: str) -> None:
    for field_name, weights in (("weights", phase.weights), ("weights_end", phase.weights_end)):
        for key, weight in weights.items():
            if key not in columns:
                raise ConfigError(
                    f"{where}.{field_name}.{key}: nothing of that name is read in this phase"
                    f"{nearest(key, columns)}  (read: {', '.join(columns)})"
                )
            if not weight >= 0:
                raise ConfigError(f"{where}.{field_name}.{key}: {weight} is negative")
    for key in phase.weights_end:
        if key not in phase.weights:
            raise ConfigError(f"{where}.weights_end.{key}: give the weight it begins with as {where}.weights.{key}")


def _check_read_once(columns: tuple[Column, ...], where: str) -> None:
    """Columns that go on in one source at the same place would read each of its rows twice, and count both as new."""
    for source in dict.fromkeys(c.source for c in columns if c.source is not None):
        of = [c.of for c in columns if c.source == source]
        if len(of) > 1:
            raise ConfigError(
                f"{where}.replay.of: what is unseen of ['{source}'] is the same for {', '.join(map(repr, of))}; "
                "name one of them"
            )


def _phase_steps(phase: PhaseSpec, tokens_per_step: int, where: str) -> int:
    if (phase.tokens is None) == (phase.steps is None):
        raise ConfigError(f"{where}: give exactly one of tokens and steps (got {phase.tokens} and {phase.steps})")
    if phase.steps is not None:
        steps = phase.steps
    else:
        steps = math.floor(phase.tokens / tokens_per_step + 1e-9)
        if phase.replay.active and phase.replay.accounting == "fixed_new":
            steps = replaying.steps_of_new(phase.replay, phase.tokens, tokens_per_step, where)
    if steps < 1:
        raise ConfigError(f"{where}: no tokens: the budget is smaller than one batch of {tokens_per_step:,} tokens")
    return steps


def _eval_steps(phase: PhaseSpec, steps: int, every: int) -> tuple[int, ...]:
    grid = phase.evaluate
    wanted = {0, steps, *range(min(grid.dense, steps) + 1)}
    if grid.geometric:
        wanted |= {2**i for i in range(grid.geometric.bit_length()) if 2**i <= grid.geometric}
    if every:
        wanted |= set(range(0, steps, every))
    return tuple(sorted(s for s in wanted if s <= steps))


def _phase_json(spec: RunSpec, phase: Phase) -> dict[str, Any]:
    replay = phase.spec.replay
    return {
        "name": phase.name,
        "first_step": phase.first_step,
        "steps": phase.steps,
        "tokens": phase.tokens,
        "first_token": phase.first_token,
        "tokens_per_step": phase.tokens_per_step,
        "mix": {c.name: q for c, q in zip(phase.columns, phase.shares(0), strict=True)},
        "replay": to_dict(replay) if replay.active else None,
        "lr": phase.schedule.describe(),
        "optimizer": phase.spec.optimizer.policy if phase.index or spec.init.brings_optimizer else "fresh",
        "evaluations": len(phase.eval_steps),
    }
