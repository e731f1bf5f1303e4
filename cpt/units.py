"""Tokens are the unit of everything: durations, and how numbers are shown to people."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cpt.errors import ConfigError


@dataclass(frozen=True)
class Duration:
    """A length of time inside a phase, given in exactly one of three units.

    Attributes:
      tokens: tokens of training.
      steps: optimizer steps.
      fraction: share of the phase's steps, in [0, 1]. `1.0` is the whole phase; `1` step is `steps=1`.
    """

    tokens: int | None = None
    steps: int | None = None
    fraction: float | None = None

    def resolve(self, phase_steps: int, tokens_per_step: int, where: str, open_ended: bool = False) -> int:
        """Steps of this duration (rounded to nearest; a positive duration is never rounded to 0).

        Args:
          phase_steps: steps of the phase the duration belongs to.
          tokens_per_step: tokens of one optimizer step of that phase.
          where: config path, for errors.
          open_ended: the phase's length is expected to change, so a share of it has no meaning.

        Raises:
          ConfigError: none or several units given, a negative or too large value, a fraction in an open-ended phase.
        """
        given = {k: v for k, v in vars(self).items() if v is not None}
        if len(given) != 1:
            raise ConfigError(f"{where}: give exactly one of tokens, steps, fraction (got {given or 'none'})")
        unit, value = next(iter(given.items()))
        if not value >= 0 or (unit == "fraction" and value > 1):  # NaN is not >= 0
            raise ConfigError(f"{where}.{unit}: {value} is out of range ({'0 to 1' if unit == 'fraction' else '>= 0'})")
        if unit == "fraction" and open_ended:
            raise ConfigError(
                f"{where}.fraction: the phase is open-ended, a fraction of it has no fixed length; use steps or tokens"
            )
        if unit == "steps":
            return int(value)
        exact = value * phase_steps if unit == "fraction" else value / tokens_per_step
        return max(1, math.floor(exact + 0.5)) if value else 0


def human(n: float) -> str:
    """1234567 -> '1.23M': three significant digits with a metric suffix."""
    for power, suffix in ((21, "Z"), (18, "E"), (15, "P"), (12, "T"), (9, "B"), (6, "M"), (3, "k")):
        if abs(n) >= 0.9995 * 10**power:
            return f"{n / 10**power:.3g}{suffix}"
    return f"{n:.3g}"


def compact(x: float) -> str:
    """0.0003 -> '3e-4': the shortest usual way to write a learning rate."""
    if x == 0:
        return "0"
    if 0.01 <= abs(x) < 1000:
        return f"{x:g}"
    mantissa, exponent = f"{x:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
