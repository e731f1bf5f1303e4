"""Frequencies of rotary positions, stretched for contexts beyond the one that a model was first trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

from cpt.errors import ConfigError
from cpt.models._spec import check_flags, check_names, check_positive

# Which fields each kind reads, beside `kind` itself.
KINDS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "original_context", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "original_context", "beta_fast", "beta_slow", "truncate", "attention_factor"),
}


@dataclass(frozen=True)
class RopeSpec:
    """How rotary frequencies are scaled; every kind is a fixed table, whatever the length of a row.

    Attributes:
      kind: "default" (not at all); "linear" (all of them divided by `factor`: Chen et al. 2023, arXiv 2306.15595);
        "llama3" (slow ones divided, fast ones kept, a ramp between: Llama 3.1); "yarn" (the same with a ramp over
        channels, and cosines and sines scaled: Peng et al. 2023, arXiv 2309.00071).
      factor: by how much the context is stretched.
      original_context: tokens of the context before; `llama3` and `yarn` need it.
      low_freq_factor, high_freq_factor: `llama3` divides what turns fewer than the first number of times over the
        original context, and keeps what turns more often than the second.
      beta_fast, beta_slow: `yarn` keeps what turns more often than the first, and divides what turns less often than
        the second.
      truncate: `yarn` rounds the ends of its ramp to whole channels.
      attention_factor: `yarn` multiplies cosines and sines by it; None is 0.1 ln(factor) + 1.
    """

    kind: str = "default"
    factor: float = 1.0
    original_context: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError for the first field that is out of range, missing, or not read by `kind`."""
        where = "model.rope"
        check_names(self, {"kind": KINDS}, where)
        check_positive(
            self, *(f.name for f in fields(self) if f.name not in ("kind", "truncate", "factor")), where=where
        )
        check_flags(self, "truncate", where=where)
        if not self.factor >= 1:
            raise ConfigError(f"{where}.factor: {self.factor} must be at least 1")
        for field in fields(self):
            if field.name not in ("kind", *KINDS[self.kind]) and getattr(self, field.name) != field.default:
                raise ConfigError(f"{where}.{field.name}: has no effect with {where}.kind='{self.kind}'; leave it out")
        if "original_context" in KINDS[self.kind] and self.original_context is None:
            raise ConfigError(f"{where}.original_context: required by {where}.kind='{self.kind}', but not given")
        for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
            if not getattr(self, low) < getattr(self, high):
                raise ConfigError(
                    f"{where}.{high}: {getattr(self, high)} must be above {where}.{low} = {getattr(self, low)}"
                )

    @property
    def scale(self) -> float:
        """What cosines and sines are multiplied by."""
        if self.kind != "yarn":
            return 1.0
        return 0.1 * math.log(self.factor) + 1.0 if self.attention_factor is None else self.attention_factor


PLAIN = RopeSpec()


def frequencies(rope: RopeSpec, rotary_dim: int, base: float) -> np.ndarray:
    """Radians per position of each channel pair, float64 [rotary_dim / 2], fastest first."""
    plain_R = base ** (-np.arange(0, rotary_dim, 2) / rotary_dim)
    if rope.kind == "linear":
        return plain_R / rope.factor
    if rope.kind == "llama3":
        turns_R = rope.original_context * plain_R / (2 * np.pi)
        kept_R = (turns_R - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    elif rope.kind == "yarn":
        kept_R = 1 - _ramp(rope, rotary_dim, base)
    else:
        return plain_R
    kept_R = np.clip(kept_R, 0, 1)
    return kept_R * plain_R + (1 - kept_R) * plain_R / rope.factor


def _ramp(rope: RopeSpec, rotary_dim: int, base: float) -> np.ndarray:
    """0 at the channel pair that turns `beta_fast` times over the original context, 1 at that of `beta_slow`."""

    def pair(turns: float) -> float:
        return rotary_dim * math.log(rope.original_context / (2 * math.pi * turns)) / (2 * math.log(base))

    low, high = pair(rope.beta_fast), pair(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    return (np.arange(rotary_dim // 2) - low) / max(high - low, 1e-3)
