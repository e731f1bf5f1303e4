"""What a phase says of its data: the mixer and the replay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from cpt.units import Duration

EARLIER = "earlier"  # every phase before


@dataclass(frozen=True)
class MixerSpec:
    """How the shares of a phase come about: `fixed` takes `mix` as it is; others may change it over the phase."""

    kind: str = "fixed"
    options: dict = field(default_factory=dict)


@dataclass(frozen=True)
class ReplayShareSpec:
    """How the replayed share moves over the phase, from `replay.share` on.

    Attributes:
      kind: a file of `cpt/data/replay_shares` (`constant`, `linear`, `burst`, `decay`), or `package.module:name`.
      end: the share it moves to.
      over: how long a burst lasts, or the half-life of a decay; a tenth of the phase by default.
    """

    kind: str = "constant"
    end: float = 0.0
    over: Duration | None = None


@dataclass(frozen=True)
class ReplaySpec:
    """Old data mixed into a new phase (2403.08763, section 4.2: "compute-equivalent replay").

    Attributes:
      of: the earlier phase whose data is replayed, several with their parts, `{"pile": 0.5, "code": 0.5}`, or all with
        the word `earlier`. A name that is no phase but a source means that store, read from its beginning: what a model
        saw that was trained elsewhere. None means no replay.
      share: share of each batch's rows that is replayed, in [0, 1).
      range: `seen` reads the rows that phase consumed; `unseen` goes on where its sources stopped; `reservoir` reads a
        uniform sample of `reservoir` tokens of what was seen.
      order: `original` keeps the order in which the phase consumed its rows (as the paper does); `shuffled` does not.
      accounting: `fixed_total` displaces new tokens and keeps the compute; `fixed_new` adds replay on top of the
        phase's budget of new tokens.
      max_repeats: passes over the range, or over an outside store whatever its `epochs`, that are allowed, by all
        phases that replay it together; needing more is an error, never a silent wrap-around.
      reservoir: size of the reservoir in tokens.
      schedule: how the share moves over the phase.
      between: the parts of several: `given` by the mapping (equal ones where it is none), `equal`, `proportional` to
        their new tokens, or `power`: a^-power for the phase a phases ago (power-law rehearsal).
      power: of `between="power"`.
    """

    of: str | Mapping[str, float] | None = None
    share: float = 0.0
    range: Literal["seen", "unseen", "reservoir"] = "seen"
    order: Literal["original", "shuffled"] = "original"
    accounting: Literal["fixed_total", "fixed_new"] = "fixed_total"
    max_repeats: float = 1.0
    reservoir: int | None = None
    schedule: ReplayShareSpec = ReplayShareSpec()
    between: Literal["given", "equal", "proportional", "power"] = "given"
    power: float = 1.0

    @property
    def active(self) -> bool:
        return bool(self.of) and (self.share > 0 or self.schedule.kind != "constant")

    @property
    def named(self) -> dict[str, float]:
        """The replayed phases and stores as the config names them, each with its part; `earlier` as that word."""
        return {self.of: 1.0} if isinstance(self.of, str) else dict(self.of or {})


@dataclass(frozen=True)
class Replay:
    """The replay of a phase with its durations resolved: what a share schedule is asked with.

    Attributes:
      spec: the config.
      steps: of the phase.
      over: `spec.schedule.over` in steps.
    """

    spec: ReplaySpec
    steps: int
    over: int
