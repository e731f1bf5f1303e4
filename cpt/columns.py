"""Columns: where the rows of a phase come from, each a source or the replay of an earlier phase."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cpt.config import PhaseSpec, RunSpec
from cpt.errors import ConfigError, nearest


@dataclass(frozen=True)
class Column:
    """One origin of a phase's rows: a source, or the replay of an earlier phase.

    Attributes:
      name: what logs and ledger call it: the source's name, or `replay(<phase>)`.
      role: "new" or "replay".
      source: the source it reads on in; None where it re-reads the recorded stream of the phase `of`.
      of: the phase that is replayed; None for new data.
      part: this column's part of the phase's replay share (1 unless several phases or sources are replayed).
    """

    name: str
    role: str
    source: str | None
    of: str | None = None
    part: float = 1.0


def columns_of(spec: RunSpec, name: str, earlier: Mapping[str, PhaseSpec]) -> tuple[Column, ...]:
    """Where the rows of phase `name` come from, in a stated order.

    Args:
      earlier: the phases before it.

    Raises:
      ConfigError: an unknown source or phase, a share that is none, parts that are none.
    """
    phase, where = spec.phases[name], f"phases.{name}"
    if not phase.mix:
        raise ConfigError(f"{where}.mix: empty; name at least one source  (sources: {', '.join(spec.sources)})")
    for source in phase.mix:
        if source not in spec.sources:
            raise ConfigError(
                f"{where}.mix.{source}: no such source{nearest(source, spec.sources)}  "
                f"(sources: {', '.join(spec.sources)})"
            )
    new = tuple(Column(s, "new", s) for s in sorted(phase.mix))
    replay = phase.replay
    if not 0 <= replay.share < 1:
        raise ConfigError(f"{where}.replay.share: {replay.share} is not in [0, 1)")
    if replay.share > 0 and not replay.of:
        raise ConfigError(f"{where}.replay.of: name the earlier phase to replay  (earlier: {list(earlier)})")
    if not replay.active:
        return new
    return (*new, *_replay_columns(phase, where, earlier))


def _replay_columns(phase: PhaseSpec, where: str, earlier: Mapping[str, PhaseSpec]) -> Iterator[Column]:
    replay = phase.replay
    parts = {} if isinstance(replay.of, str) else dict(replay.of)
    if parts and not (min(parts.values()) >= 0 and sum(parts.values()) > 0):
        raise ConfigError(f"{where}.replay.of: parts must be at least 0 and not all 0, got {parts}")
    for name, part in replay.parts.items():
        if name not in earlier:
            raise ConfigError(
                f"{where}.replay.of: '{name}' is not an earlier phase{nearest(name, earlier)}"
                f"  (earlier: {', '.join(earlier) or 'none'})"
            )
        label = f"replay({name})"
        if replay.range != "unseen":
            yield Column(label, "replay", None, name, part)
            continue
        old = {s: q for s, q in earlier[name].mix.items() if q > 0}
        if both := set(old) & set(phase.mix):
            raise ConfigError(
                f"{where}.replay.range: 'unseen' would read {sorted(both)} twice over; it is in `mix` already"
            )
        for source in sorted(old):
            named = label if len(old) == 1 else f"{label}/{source}"
            yield Column(named, "replay", source, name, part * old[source] / sum(old.values()))
