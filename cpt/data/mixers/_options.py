"""Reading `mixer.options`: a mistake in them is one line that names the field."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cpt.errors import ConfigError, nearest


def place(phase: Any) -> str:
    """The config path of the options of a phase's mixer."""
    return f"phases.{phase.name}.mixer.options"


def read(phase: Any, *names: str) -> Mapping[str, Any]:
    """The options, which are among `names`: one that is spelt wrong would otherwise be its default.

    Raises:
      ConfigError: there is another one.
    """
    options = phase.spec.mixer.options
    for name in options:
        if name not in names:
            raise ConfigError(
                f"{place(phase)}.{name}: no such option of '{phase.spec.mixer.kind}'{nearest(name, names)}"
                f"  (options: {', '.join(names)})"
            )
    return options


def number(value: Any, where: str, least: float = 0.0) -> float:
    """`value` as a float.

    Raises:
      ConfigError: it is not a finite number of at least `least`.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < math.inf:
        raise ConfigError(f"{where}: {value!r} is not a number of at least {least:g}")
    return float(value)


def numbers(value: Any, where: str) -> np.ndarray:
    """One number or several of at least 0, as float64 `[N]`.

    Raises:
      ConfigError: they are not that.
    """
    several = isinstance(value, Sequence) and not isinstance(value, str)
    return np.array([number(v, where) for v in (value if several else [value])])


def of_sources(phase: Any, name: str) -> dict[str, Any]:
    """The option `name`, which gives something to each source of `mix`.

    Raises:
      ConfigError: it is no mapping of exactly those.
    """
    given, wanted = phase.spec.mixer.options.get(name, {}), sorted(phase.spec.mix)
    if not isinstance(given, Mapping) or sorted(given) != wanted:
        got = sorted(given) if isinstance(given, Mapping) else repr(given)
        raise ConfigError(f"{place(phase)}.{name}: name the sources of `mix`, {wanted} (got {got})")
    return dict(given)


def shares(phase: Any, name: str) -> dict[str, float]:
    """The option `name`: other shares of the sources of `mix`.

    Raises:
      ConfigError: it names others, or its shares do not sum to 1.
    """
    out = {s: number(q, f"{place(phase)}.{name}.{s}") for s, q in of_sources(phase, name).items()}
    if abs(sum(out.values()) - 1) > 1e-6:
        raise ConfigError(f"{place(phase)}.{name}: shares sum to {sum(out.values()):g}, not 1 ({out})")
    return out
