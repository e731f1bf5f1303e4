"""The config of a run: what a recipe writes down, as frozen and validated dataclasses.

A recipe (`configs/*.py`) builds the same sections as `ConfigDict`s with the helpers at the end of this file; every
field can then be overridden by name on the command line. `load` turns what came out into a `RunSpec`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from cpt.data.manifest import read_manifest
from cpt.data.preparing import SourceSpec
from cpt.data.spec import MixerSpec, ReplayShareSpec, ReplaySpec
from cpt.data.tokenizers._base import TokenizerSpec
from cpt.errors import ConfigError, nearest
from cpt.models.rope import RopeSpec
from cpt.models.spec import DecoderSpec
from cpt.models.vocabulary.spec import VocabularySpec
from cpt.objectives.spec import ObjectiveSpec
from cpt.schedules.hyper import FollowSpec
from cpt.schedules.spec import LRSpec
from cpt.schedules.trunk import AnnealSpec, BranchSpec
from cpt.sections import parse, section, to_dict
from cpt.training.spec import CheckpointSpec, GuardSpec, InitSpec, MeshSpec, TransformSpec
from cpt.units import Duration


@dataclass(frozen=True)
class BatchSpec:
    """One optimizer step: `sequences` rows of `length` tokens, in `accumulate` micro-batches.

    `accumulate` is a matter of memory, not of the method: it changes the order of sums and nothing else, so a run may
    go on with another one, as on other devices. `mask_documents` keeps attention inside each document of a packed row;
    Pythia and the papers let it cross. Rotary positions are relative, so a masked document gets what it would get in a
    row of its own: there is no position left to reset.
    """

    sequences: int
    length: int
    accumulate: int = 1
    mask_documents: bool = False

    def __post_init__(self):
        for name in ("sequences", "length", "accumulate"):
            if getattr(self, name) < 1:
                raise ConfigError(f"batch.{name}: {getattr(self, name)} is not at least 1")
        if self.sequences % self.accumulate:
            raise ConfigError(f"batch.accumulate: {self.accumulate} does not divide batch.sequences={self.sequences}")


@dataclass(frozen=True)
class GridSpec:
    """When to evaluate, in steps since the start of a phase; its first and last step always count.

    Attributes:
      dense: every step up to this one (the stability gap lives in the first tens of steps).
      geometric: 1, 2, 4, ... up to this step.
      every: then at this interval.
      snapshots: the parameters after each of the first so many updates are kept on the devices for a while, and those
        around the worst loss of each set are evaluated too: it finds the peak of the gap to one update, like `dense`,
        from a third of the evaluations or less. They take memory, and are evaluated early where the plan saves a
        checkpoint among them or the run is stopped, which adds rows to the curve.
    """

    dense: int = 0
    geometric: int = 64
    every: Duration = Duration(fraction=0.05)
    snapshots: int = 0


@dataclass(frozen=True)
class PolicySpec:
    """What happens to the optimizer state when the phase begins (2403.08763 resets it at each switch).

    Attributes:
      policy: `keep`; `reset` (all of it); `reset_moments` (moments, not the bias-correction count); `reset_count` (the
        count, not the moments); `lr0_warm` (keep, and hold the learning rate at 0 for `steps` so that the moments
        adapt first).
      steps: length of `lr0_warm`.
    """

    policy: Literal["keep", "reset", "reset_moments", "reset_count", "lr0_warm"] = "keep"
    steps: int = 0


@dataclass(frozen=True)
class PhaseSpec:
    """One phase: a token budget, what is read, how it is learned, how it is watched.

    Attributes:
      tokens: budget (rounded down to whole batches); give this or `steps`.
      steps: budget in optimizer steps.
      until_lr: end the phase where its learning rate has fallen to this; its budget is then that of the whole schedule,
        and the phases after it take the rest with `lr.kind="continue"`.
      open_ended: the budget is expected to grow later, so durations in it may not be fractions.
      mix: share of each named source among the new tokens; sums to 1.
      mixer: how shares follow from `mix` over the phase.
      replay: old data in this phase.
      weights: objective weight per source (or `replay(<phase>)`); a source without one is weighted by its share.
        The multiplier of a token is weight/share, divided by the sum of the weights of what is read.
      weights_end: objective weights at the end of the phase; those named move there from `weights` in a straight line.
      lr: learning-rate schedule of the phase.
      optimizer: what happens to the optimizer state when the phase begins.
      b2, weight_decay: what becomes of them in the phase; nothing unless given.
      evaluate: when to evaluate.
    """

    tokens: int | None = None
    steps: int | None = None
    until_lr: float | None = None
    open_ended: bool = False
    mix: Mapping[str, float] = field(default_factory=dict)
    mixer: MixerSpec = MixerSpec()
    replay: ReplaySpec = ReplaySpec()
    weights: Mapping[str, float] = field(default_factory=dict)
    weights_end: Mapping[str, float] = field(default_factory=dict)
    lr: LRSpec = LRSpec()
    optimizer: PolicySpec = PolicySpec()
    b2: FollowSpec = FollowSpec()
    weight_decay: FollowSpec = FollowSpec()
    evaluate: GridSpec = GridSpec()


@dataclass(frozen=True)
class OptimizerSpec:
    """AdamW with decoupled weight decay on matrices only, as GPT-NeoX does; clipping by global norm.

    `kind` is a file of `cpt/optimizers` or `package.module:name`; `options` is what else a method of your own needs.
    """

    kind: str = "adamw"
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float | None = 1.0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SetSpec:
    """A named evaluation set: `sequences` rows spread evenly over a source's validation split, always the same ones.

    `upstream` among its `tags` says that it can be forgotten even if no phase of this run learns it. `at="edges"`
    evaluates it only at the edges of phases: a large set for the table, beside a small one of the same source on a
    dense grid for the curve.
    """

    source: str
    sequences: int = 64
    tags: tuple[str, ...] = ()
    at: Literal["grid", "edges"] = "grid"


@dataclass(frozen=True)
class ProbeSpec:
    """Something measured on the model beside its losses (`python -m cpt.evaluate --list`).

    Attributes:
      kind: a file of `cpt/evaluators/probes` or `package.module:name`.
      options: of the probe.
      at: on the evaluation `grid` of each phase, or at the `edges` of phases.
      first: and at every step of the first so many of each phase.
    """

    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    at: Literal["grid", "edges"] = "edges"
    first: int = 0


@dataclass(frozen=True)
class EvaluationSpec:
    """Named sets, how many of their rows one forward pass takes, and named probes."""

    sets: Mapping[str, SetSpec] = field(default_factory=dict)
    rows_per_pass: int = 16
    probes: Mapping[str, ProbeSpec] = field(default_factory=dict)


@dataclass(frozen=True)
class RunSpec:
    """Everything a run is made of. `order` states the order of the phases; a `ConfigDict` has none.

    `loggers` are where scalars go beside the files of the run: `tensorboard`, `wandb`, `mlflow`, or your own.
    """

    name: str
    model: DecoderSpec
    batch: BatchSpec
    sources: Mapping[str, SourceSpec]
    order: tuple[str, ...]
    phases: Mapping[str, PhaseSpec]
    tokenizer: TokenizerSpec = TokenizerSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    objective: ObjectiveSpec = ObjectiveSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    checkpoints: CheckpointSpec = CheckpointSpec()
    init: InitSpec = InitSpec()
    branch: BranchSpec = BranchSpec()
    anneal: AnnealSpec = AnnealSpec()
    guard: GuardSpec = GuardSpec()
    mesh: MeshSpec = MeshSpec()
    seed: int = 0
    stores: str = "stores"
    notice: str = ""
    loggers: tuple[str, ...] = ("tensorboard",)

    def __post_init__(self):
        for name in self.order:
            if name not in self.phases:
                raise ConfigError(
                    f"order: no phase '{name}'{nearest(name, self.phases)}  (phases: {', '.join(self.phases)})"
                )
        for name in self.phases:
            if name not in self.order:
                raise ConfigError(
                    f"phases.{name}: no such phase in `order`{nearest(name, self.order)}  "
                    f"(order: {', '.join(self.order)})"
                )
        if len(set(self.order)) != len(self.order) or not self.order:
            raise ConfigError(f"order: each phase once, at least one (got {self.order})")
        for name, spec in self.evaluation.sets.items():
            if spec.source not in self.sources:
                raise ConfigError(
                    f"evaluation.sets.{name}.source: no source '{spec.source}'{nearest(spec.source, self.sources)}"
                    f"  (sources: {', '.join(self.sources)})"
                )
        if self.batch.length > self.model.context:
            raise ConfigError(f"batch.length: {self.batch.length} exceeds model.context={self.model.context}")
        at = {s.at for s in self.evaluation.sets.values()}
        if wanting := [n for n, p in self.phases.items() if p.evaluate.snapshots and "grid" not in at]:
            raise ConfigError(
                f"phases.{wanting[0]}.evaluate.snapshots: no evaluation set is at='grid', so there is nothing to "
                "evaluate them on; give a set at='grid', or leave snapshots out"
            )
        for path, value, least in _counts(self):
            if value is not None and value < least:
                raise ConfigError(f"{path}: {value} is not at least {least}")


def _counts(spec: RunSpec) -> Iterator[tuple[str, int | None, int]]:
    """Whole numbers with a least value: (path, value, least)."""
    yield "evaluation.rows_per_pass", spec.evaluation.rows_per_pass, 1
    yield "checkpoints.keep_rolling", spec.checkpoints.keep_rolling, 1
    yield "checkpoints.concurrent_gb", spec.checkpoints.concurrent_gb, 1
    for axis in ("data", "fsdp", "sequence", "tensor"):
        yield f"mesh.{axis}", getattr(spec.mesh, axis), 0
    for name, evaluated in spec.evaluation.sets.items():
        yield f"evaluation.sets.{name}.sequences", evaluated.sequences, 1
    for name, probe in spec.evaluation.probes.items():
        yield f"evaluation.probes.{name}.first", probe.first, 0
    for name, phase in spec.phases.items():
        yield f"phases.{name}.evaluate.dense", phase.evaluate.dense, 0
        yield f"phases.{name}.evaluate.geometric", phase.evaluate.geometric, 0
        yield f"phases.{name}.evaluate.snapshots", phase.evaluate.snapshots, 0
        yield f"phases.{name}.optimizer.steps", phase.optimizer.steps, 0
        yield f"phases.{name}.replay.reservoir", phase.replay.reservoir, 1


def load(config: Mapping[str, Any], overridden: Mapping[str, Any] | None = None) -> RunSpec:
    """The `RunSpec` of a recipe's `ConfigDict`.

    Args:
      config: what `get_config()` returned, with the command line's overrides applied.
      overridden: the overridden fields by dotted path; a duration overridden in one unit drops its other units, so that
        `--config.phases.a.lr.warmup.steps=5` is enough where the recipe said `fraction=0.01`.

    Raises:
      ConfigError: unknown field, wrong type, contradiction; the line names the field, the value and what is allowed.
    """
    raw = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    for path, value in (overridden or {}).items():
        *parents, unit = path.split(".")
        node = raw
        for name in parents:
            node = node.get(name, {})
        for other in ("tokens", "steps", "fraction"):
            if (
                unit in ("tokens", "steps", "fraction")
                and value is not None
                and other != unit
                and ".".join([*parents, other]) not in overridden
            ):
                node.pop(other, None)
    spec = parse(RunSpec, raw)
    if spec.branch.at is not None and spec.init.from_run is not None and spec.init.what == "params":
        # A cooldown that leaves a run goes on from that run's very state.
        step = spec.branch.at if spec.init.step is None else spec.init.step
        spec = replace(spec, init=replace(spec.init, what="all", step=step))
    return spec


# Helpers for recipes: `phase(tokens=..., mix={...}, lr=lr(peak=3e-4))`.
duration = partial(section, Duration)
model = partial(section, DecoderSpec)  # of the family it is given, GPT-NeoX by default
llama = partial(model, family="llama")
rope = partial(section, RopeSpec)


def model_of(folder: str, **fields: Any) -> Any:
    """The `model` section of a Hugging Face directory, for `init.from_hf`: from its `config.json` alone.

    Args:
      folder: holds the `config.json`.
      fields: what training chooses itself (`compute_dtype`, `remat`, `context`), or should differ.

    Raises:
      ConfigError, RunError: there is none, or it describes a model that is not here.
    """
    from cpt.models.convert import read_spec

    return section(DecoderSpec, **{**to_dict(read_spec(folder)), **fields})


batch = partial(section, BatchSpec)
tokenizer = partial(section, TokenizerSpec)
source = partial(section, SourceSpec)


def domains(store: str, **fields: Any) -> dict[str, Any]:
    """A source for every domain of a store, for `config.sources.update(...)`: a mix can then name them.

    They are named as the domains are, in lower case and with `_` for what is no letter or digit: `Pile-CC` is
    `pile_cc`, documents without a domain are `rest`.

    Args:
      store: made by `python -m cpt.prepare --domain_field=...`; its manifest is read here.
      fields: others of `source`, the same for all.

    Raises:
      ConfigError: it is not there, or two of its domains would have one name.
    """
    if not (manifest := read_manifest(Path(store).expanduser())):
        raise ConfigError(f"config.domains('{store}'): no finished store there; make it with `python -m cpt.prepare`")
    out: dict[str, Any] = {}
    for domain in manifest["splits"]["train"]["domains"]:
        name = re.sub(r"[^a-z0-9]+", "_", domain.lower()).strip("_") or "rest"
        if name in out:
            raise ConfigError(
                f"config.domains('{store}'): two of its domains would be '{name}'; name the sources yourself"
            )
        out[name] = source(store=store, domain=domain, **fields)
    return out


phase = partial(section, PhaseSpec)
mixer = partial(section, MixerSpec)
replay = partial(section, ReplaySpec)
replay_share = partial(section, ReplayShareSpec)
lr = partial(section, LRSpec)
policy = partial(section, PolicySpec)
follow = partial(section, FollowSpec)
grid = partial(section, GridSpec)
optimizer = partial(section, OptimizerSpec)
objective = partial(section, ObjectiveSpec)
evaluation_set = partial(section, SetSpec)
evaluation = partial(section, EvaluationSpec)
probe = partial(section, ProbeSpec)
checkpoints = partial(section, CheckpointSpec)
init = partial(section, InitSpec)
transform = partial(section, TransformSpec)
vocabulary = partial(section, VocabularySpec)
branch = partial(section, BranchSpec)
anneal = partial(section, AnnealSpec)
guard = partial(section, GuardSpec)
mesh = partial(section, MeshSpec)
run = partial(section, RunSpec)
