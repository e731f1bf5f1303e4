"""Which runs a sweep is made of, in a few lines.

    values("phases.b.lr.peak", [1e-3, 3e-3])                      # two runs
    values(["phases.a.lr.peak", "phases.b.lr.peak"], [1e-3, 3e-3])  # two runs, both fields get the same value
    seeds(0, 1, 2)                                                # three: values("seed", [0, 1, 2])
    point({"phases.b.lr.kind": "wsd", "phases.b.lr.floor": 0.0})  # one, with several fields set
    product(values(...), seeds(0, 1, 2))                          # every value with every seed: 2 x 3 runs
    zip(values("phases.b.lr.peak", [1e-3, 3e-3]),
        values("phases.b.replay.share", [0.05, 0.1]))             # side by side: 2 runs
    chain(point({...}), values(...))                              # one after the other: 1 + 2 runs

    product(log_uniform("phases.b.lr.peak", 1e-4, 1e-2),          # ranges instead: what is tried is drawn from them
            uniform("phases.b.replay.share", 0.0, 0.5),
            integers("phases.b.lr.warmup.steps", 1, 64, log=True),
            choice("phases.b.lr.kind", ["cosine", "linear"]))

A field is named by its path in the config. Two points that come to the same plan are one run.
"""

from __future__ import annotations

import builtins
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cpt.errors import ConfigError

Fields = str | Sequence[str]
Point = Mapping[str, Any]


@dataclass(frozen=True)
class Range:
    """What a search draws the value of `fields` from.

    Attributes:
      fields: config paths that all get the value; the first one names it.
      options: the values there are; empty for an interval.
      low, high: ends of the interval, both in it.
      log: draw uniformly in the logarithm.
      whole: whole numbers only.
    """

    fields: tuple[str, ...]
    options: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    @property
    def name(self) -> str:
        return self.fields[0]

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values that must be possible for all between them to be."""
        return self.options or (self.low, self.high)

    @property
    def middle(self) -> Any:
        """A value in the middle, for an estimate of cost."""
        if self.options:
            return self.options[len(self.options) // 2]
        centre = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        return round(centre) if self.whole else centre


@dataclass(frozen=True)
class Space:
    """Points, one run each, or ranges beside one point."""

    points: tuple[Point, ...]
    ranges: tuple[Range, ...] = ()

    @property
    def fields(self) -> list[str]:
        """Every field that some point or range sets, in order of appearance."""
        ranged = [f for r in self.ranges for f in r.fields]
        return list(dict.fromkeys([*(f for p in self.points for f in p), *ranged]))

    @property
    def varying(self) -> list[str]:
        """The fields that tell its runs apart; of a range that sets several, the first."""
        own = [{f: p.get(f) for f in self.fields} for p in self.points]
        several = [f for f in self.fields if len({repr(p[f]) for p in own}) > 1]
        return [*several, *(r.name for r in self.ranges)]


def values(fields: Fields, options: Iterable[Any]) -> Space:
    """A run for each of `options`; several fields share each value.

    Raises:
      ConfigError: no field path, no options, an option that is no number, text, truth value, None or tuple of them.
    """
    names, options = _fields(fields), tuple(_value(fields, v) for v in options)
    if not options:
        raise ConfigError(f"values({names[0]!r}): no values; give at least one")
    return Space(tuple({name: option for name in names} for option in options))


def seeds(*numbers: int) -> Space:
    """A run for each seed: `values("seed", numbers)`."""
    if not numbers or not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
        raise ConfigError(f"seeds{numbers}: give whole numbers, e.g. seeds(0, 1, 2)")
    return values("seed", numbers)


def point(fields: Point) -> Space:
    """One run with several fields set; an empty one is the recipe as it is."""
    return Space(({_fields(name)[0]: _value(name, v) for name, v in fields.items()},))


def product(*spaces: Space) -> Space:
    """Every point of one with every point of the others; ranges are searched together.

    Raises:
      ConfigError: two of them set the same field, or ranges are crossed with several points.
    """
    _check(spaces, "product")
    _check_distinct(spaces, "product")
    combined = tuple(_merged(points) for points in itertools.product(*(s.points for s in spaces)))
    ranges = tuple(r for s in spaces for r in s.ranges)
    if ranges and len(combined) > 1:
        several = next(f for s in spaces if len(s.points) > 1 for f in s.fields)
        raise ConfigError(
            f"product: {ranges[0].name} is a range, {several} has several values; search among them with "
            f"choice({several!r}, [...]), or sweep over them once the search has found its best"
        )
    return Space(combined, ranges)


def zip(*spaces: Space) -> Space:
    """The first points of all together, then the second ones, and so on.

    Raises:
      ConfigError: they differ in length, set the same field, or are ranges.
    """
    _check(spaces, "zip", ranges=False)
    _check_distinct(spaces, "zip")
    lengths = [len(s.points) for s in spaces]
    if len(set(lengths)) > 1:
        raise ConfigError(f"zip: side by side they need one length, got {', '.join(map(str, lengths))} points")
    return Space(tuple(_merged(points) for points in builtins.zip(*(s.points for s in spaces), strict=True)))


def chain(*spaces: Space) -> Space:
    """The points of one after those of the other.

    Raises:
      ConfigError: one of them is a range.
    """
    _check(spaces, "chain", ranges=False)
    return Space(tuple(p for s in spaces for p in s.points))


def uniform(fields: Fields, low: float, high: float) -> Space:
    """Any number from `low` to `high`."""
    return _interval("uniform", fields, low, high)


def log_uniform(fields: Fields, low: float, high: float) -> Space:
    """Any number from `low` to `high`, each order of magnitude as likely as the next: for learning rates."""
    return _interval("log_uniform", fields, low, high, log=True)


def integers(fields: Fields, low: int, high: int, log: bool = False) -> Space:
    """Any whole number from `low` to `high`."""
    return _interval("integers", fields, low, high, log=log, whole=True)


def choice(fields: Fields, options: Iterable[Any]) -> Space:
    """One of `options`, chosen by the search."""
    listed = values(fields, options)
    names = tuple(listed.fields)
    return Space(({},), (Range(names, tuple(p[names[0]] for p in listed.points)),))


def _interval(kind: str, fields: Fields, low: float, high: float, **how: bool) -> Space:
    names = _fields(fields)
    numbers = (int,) if how.get("whole") else (int, float)
    if not all(isinstance(v, numbers) and not isinstance(v, bool) and math.isfinite(v) for v in (low, high)):
        raise ConfigError(f"{kind}({names[0]!r}): the ends must be {'whole ' * bool(how.get('whole'))}numbers")
    if not low < high or (how.get("log") and low <= 0):
        positive = " above 0" if how.get("log") else ""
        raise ConfigError(f"{kind}({names[0]!r}): {low} to {high} is no range; give the lower end first{positive}")
    return Space(({},), (Range(names, (), low, high, **how),))


def _fields(fields: Fields) -> tuple[str, ...]:
    names = (fields,) if isinstance(fields, str) else tuple(fields)
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"\w+(\.\w+|\['[^']*'\])*", name):
            raise ConfigError(f"{name!r}: not the path of a field; write it as phases.slimpajama.lr.peak")
    if not names:
        raise ConfigError("no field; write its path, as phases.slimpajama.lr.peak")
    return names


def _value(fields: Fields, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_value(fields, v) for v in value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConfigError(f"{fields}: a {type(value).__name__} is no value of a field; use a number, a text or a tuple")


def _merged(points: Iterable[Point]) -> Point:
    return {name: value for p in points for name, value in p.items()}


def _check(spaces: Sequence[Any], what: str, ranges: bool = True) -> None:
    if not spaces:
        raise ConfigError(f"{what}: an empty space; give it what to combine")
    for space in spaces:
        if not isinstance(space, Space):
            raise ConfigError(f"{what}: {space!r} is no space; make one with values, seeds, point, product, zip, chain")
        if space.ranges and not ranges:
            raise ConfigError(f"{what}: {space.ranges[0].name} is a range; ranges go together with product")


def _check_distinct(spaces: Sequence[Space], what: str) -> None:
    names = [f for s in spaces for f in s.fields]
    if twice := [n for n in dict.fromkeys(names) if names.count(n) > 1]:
        raise ConfigError(f"{what}: {twice[0]} is set twice; name each field in one part")
