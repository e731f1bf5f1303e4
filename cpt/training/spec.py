"""The sections of a config that say where a run starts, how it is spread over devices, how it is kept, and what it does
when something goes wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cpt import registry
from cpt.errors import ConfigError
from cpt.models.vocabulary.spec import VocabularySpec
from cpt.units import Duration


@dataclass(frozen=True)
class TransformSpec:
    """How the parameters of another model become those of the run's, whose shape may differ.

    Attributes:
      kind: a file of `cpt/models/initialisers`, or `package.module:name`.
      options: of the method.
      models: further models for a method that takes several: run directories or Hugging Face directories.
    """

    kind: str | None = None
    options: Mapping[str, Any] | None = None
    models: tuple[str, ...] | None = None

    def __post_init__(self):
        if self.kind is not None:
            registry.check("cpt.models.initialisers", self.kind, "init.transform.kind")
        elif self.options or self.models:
            raise ConfigError("init.transform.kind: required, but not given")


@dataclass(frozen=True)
class InitSpec:
    """Where the weights of a new run come from; the run's own checkpoints always win over this.

    Attributes:
      from_run: run directory.
      from_hf: Hugging Face model directory (`config.json` and safetensors); only without `from_run`.
      step: which of the checkpoints of `from_run`; None = the newest.
      what: `params`; `params+opt`, with the optimizer's moments; `all`, with the position as well: the run is a child
        that goes on at that step of its own plan, whose past must be that of `from_run`.
      transform: what is done to the parameters before the run starts with them.
      vocabulary: how that model gets the tokens of this run's tokenizer, where they are others than its own.
    """

    from_run: str | None = None
    from_hf: str | None = None
    step: int | None = None
    what: Literal["params", "params+opt", "all"] = "params"
    transform: TransformSpec | None = None
    vocabulary: VocabularySpec = VocabularySpec()

    def __post_init__(self):
        if self.from_run is not None and self.from_hf is not None:
            raise ConfigError(f"init: from_run={self.from_run} and from_hf={self.from_hf}; give one of them")
        if self.from_hf is not None and (self.what != "params" or self.step is not None):
            raise ConfigError("init.from_hf: such a directory holds parameters and nothing else; leave what and step")
        if self.from_run is None and (self.what != "params" or self.step is not None):
            field, value = ("step", self.step) if self.step is not None else ("what", self.what)
            raise ConfigError(f"init.{field}: {value}, but of which run? give init.from_run, or leave it out")
        if self.from_run is not None and "://" in self.from_run and not self.from_run.startswith("gs://"):
            raise ConfigError(f"init.from_run: {self.from_run}: no run is there; give a path, or gs://bucket/run")
        if self.transform is not None and self.what != "params":
            raise ConfigError(
                f"init.transform: '{self.transform.kind}' makes other parameters, which the optimizer state of "
                f"init.what={self.what} is not of; leave init.what"
            )
        if self.vocabulary.method is not None:
            if self.from_run is None and self.from_hf is None:
                raise ConfigError("init.vocabulary: a model from scratch has none to change; give from_run or from_hf")
            if self.what != "params":
                raise ConfigError(
                    f"init.vocabulary: init.what={self.what} brings moments of rows that change; set what=params"
                )
            if self.transform is not None:
                raise ConfigError("init: vocabulary and transform; do one with `python -m cpt.convert`, the other here")

    @property
    def brings_optimizer(self) -> bool:
        """Whether the run starts with optimizer state; its first phase's policy then applies to it."""
        return self.from_run is not None and self.what != "params"


@dataclass(frozen=True)
class GuardSpec:
    """What to do when something goes wrong while training.

    Attributes:
      max_skipped: an update that is not finite is not applied; after so many in a row, spikes too, the run stops.
      spike: what to do about an update whose loss or gradient norm lies more than `deviations` standard deviations
        above the mean of the last `window` of its phase: nothing (`off`); do not apply it (`skip`, as OLMo does); go
        `back` to an earlier checkpoint as well (`rewind`), and on with the batch that comes next, so that what lies in
        between is not read again (PaLM, 2204.02311, section 5.1); end the run (`stop`).
      deviations, window, back: see `spike`. The run goes back to the newest checkpoint of the phase that is at least
        `back` updates before the spike, or to the oldest that is still there; only to those of the plan, not to one
        that was saved because a signal or the clock said so, or a run that was stopped would go on in another way.
      replay: a `ledger.json`, whose incidents are repeated instead of judging anew.
      stall_s: seconds without an update after which the run ends itself, to be started again; 0 waits for ever.
    """

    max_skipped: int = 5
    spike: Literal["off", "skip", "rewind", "stop"] = "off"
    deviations: float = 6.0
    window: int = 128
    back: int = 100
    replay: str | None = None
    stall_s: float = 1800.0

    def __post_init__(self):
        for name, least in (("max_skipped", 1), ("window", 2), ("back", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"guard.{name}: {getattr(self, name)} is not at least {least}")
        if not self.deviations > 0:
            raise ConfigError(f"guard.deviations: {self.deviations} is not positive")
        if not self.stall_s >= 0:
            raise ConfigError(f"guard.stall_s: {self.stall_s} is not at least 0")

    @property
    def judges(self) -> bool:
        """Whether updates are judged, or were in the run whose decisions are repeated."""
        return self.spike != "off" or self.replay is not None

    @property
    def may_go_back(self) -> bool:
        """Whether the run may have to return to one of its checkpoints."""
        return self.spike == "rewind" or self.replay is not None


@dataclass(frozen=True)
class MeshSpec:
    """Devices along each axis of the mesh. A 0 takes what is left; `data` and `fsdp` may both be 0 and then share it,
    by the size of the model and the memory of the devices (`cpt.training.mesh.choose`; the launch says the choice).

    Attributes:
      data: copies of the model, each with rows of its own.
      fsdp: parts of parameters, moments and gradients, each with rows of its own.
      sequence: parts of each row along its length.
      tensor: parts of heads, MLP and vocabulary within each layer.
    """

    data: int = 0
    fsdp: int = 0
    sequence: int = 1
    tensor: int = 1


@dataclass(frozen=True)
class CheckpointSpec:
    """Anchors (phase edges, full) are always kept; `grid` saves parameters only; `rolling` all, keeping the newest.

    Attributes:
      grid, rolling: how often, inside each phase.
      keep_rolling: how many of the newest rolling ones stay.
      rolling_minutes: a rolling one also whenever so much time went by since the last full one.
      concurrent_gb: at most so many GB of arrays are on their way to or from storage at a time, on each host, or one
        array if it is larger: what saving costs in host memory.
    """

    grid: Duration | None = None
    rolling: Duration = Duration(fraction=0.1)
    keep_rolling: int = 2
    rolling_minutes: float | None = None
    concurrent_gb: int = 8

    def __post_init__(self):
        if self.rolling_minutes is not None and not self.rolling_minutes > 0:
            raise ConfigError(f"checkpoints.rolling_minutes: {self.rolling_minutes} is not greater than 0")
