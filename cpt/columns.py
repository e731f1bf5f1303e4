"""Columns: where the rows of a phase come from, each a source or the replay of an earlier phase."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from cpt.config import PhaseSpec, RunSpec
from cpt.data.spec import EARLIER
from cpt.errors import ConfigError, nearest


@dataclass(frozen=True)
class Column:
    """One origin of a phase's rows: a source, or the replay of an earlier phase or of an outside store.

    Attributes:
      name: what logs and ledger call it: the source's name, or `replay(<phase>)`.
      role: "new" or "replay".
      source: the source it reads on in; None where it re-reads the recorded stream of the phase `of`.
      of: the phase that is replayed; None for new data and for an outside store.
      part: this column's part of the phase's replay share (1 unless several phases or sources are replayed).
    """

    name: str
    role: str
    source: str | None
    of: str | None = None
    part: float = 1.0


@dataclass(frozen=True)
class Earlier:
    """A phase before the one in question.

    Attributes:
      new_tokens: beside replay.
      mix: gives the share of each source among them, whatever the mixer; asked only where it is needed.
    """

    new_tokens: float
    mix: Callable[[], Mapping[str, float]]


def columns_of(spec: RunSpec, name: str, earlier: Mapping[str, Earlier]) -> tuple[Column, ...]:
    """Where the rows of phase `name` come from, in a stated order.

    Args:
      earlier: the phases before it, in order.

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
    if replay.schedule.kind != "constant" and not replay.of:
        raise ConfigError(f"{where}.replay.schedule: there is nothing to replay; name it in {where}.replay.of")
    if not replay.active:
        return new
    return (*new, *_replay_columns(spec, phase, where, earlier))


def _replay_columns(spec: RunSpec, phase: PhaseSpec, where: str, earlier: Mapping[str, Earlier]) -> Iterator[Column]:
    for name, part in _parts(spec, phase, where, earlier).items():
        label = f"replay({name})"
        if name not in earlier:
            yield _outside(spec, phase, where, name, part)
        elif phase.replay.range != "unseen":
            yield Column(label, "replay", None, name, part)
        else:
            old = earlier[name].mix()
            if both := set(old) & set(phase.mix):
                raise ConfigError(
                    f"{where}.replay.range: 'unseen' would read {sorted(both)} twice over; it is in `mix` already"
                )
            for source in sorted(old):
                named = label if len(old) == 1 else f"{label}/{source}"
                yield Column(named, "replay", source, name, part * old[source])


def _parts(spec: RunSpec, phase: PhaseSpec, where: str, earlier: Mapping[str, Earlier]) -> dict[str, float]:
    """What is replayed, each with its part of the share; the parts sum to 1."""
    replay = phase.replay
    named = replay.named
    if EARLIER in named:
        if len(named) > 1 or not earlier:
            raise ConfigError(
                f"{where}.replay.of: '{EARLIER}' stands alone and needs a phase before (got {list(named)})"
            )
        named = dict.fromkeys(earlier, 1.0)
    for name in named:
        if name not in earlier and (name in spec.phases or name not in spec.sources):
            offered = [*earlier, *(s for s in spec.sources if s not in spec.phases)]
            raise ConfigError(
                f"{where}.replay.of: '{name}' is not an earlier phase{nearest(name, offered)}"
                f"  (earlier: {', '.join(earlier) or 'none'}; or a source that no phase learns)"
            )
    if replay.between != "given":
        if outside := [name for name in named if name not in earlier]:
            raise ConfigError(f"{where}.replay.between: '{outside[0]}' is no phase; give the parts in replay.of")
        names = list(earlier)
        weigh = {
            "equal": lambda name: 1.0,
            "proportional": lambda name: earlier[name].new_tokens,
            "power": lambda name: (len(names) - names.index(name)) ** -replay.power,
        }[replay.between]
        named = {name: weigh(name) for name in named}
    total = sum(named.values())
    if not (min(named.values()) >= 0 and total > 0):
        raise ConfigError(f"{where}.replay.of: parts must be at least 0 and not all 0, got {named}")
    return {name: part / total for name, part in named.items() if part > 0}


def _outside(spec: RunSpec, phase: PhaseSpec, where: str, name: str, part: float) -> Column:
    """A store that only replay reads: what a model saw that was trained elsewhere."""
    for learning in spec.order:
        if name in spec.phases[learning].mix:
            raise ConfigError(
                f"{where}.replay.of: '{name}' is a source that phase '{learning}' learns; replay that phase, or "
                "declare the old part of it as a source of its own (skip_tokens, take_tokens)"
            )
    if phase.replay.range != "seen":
        raise ConfigError(
            f"{where}.replay.range: '{phase.replay.range}' is of phases; of the store '{name}' say with "
            f"sources.{name}.skip_tokens and take_tokens which part to read"
        )
    return Column(f"replay({name})", "replay", name, None, part)
