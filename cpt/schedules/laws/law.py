"""What a law is: parameters, and the loss with its derivatives at the points of a curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from cpt.schedules.laws.curves import Curve


@dataclass(frozen=True)
class Options:
    """What is chosen, not fitted.

    Attributes:
      decay: lambda of the annealing area; .99 to .999 fit equally well, .999 is the paper's.
      warmup_in_s2: whether the initial warm-up counts as (negative) annealing; both fit, with other constants.
    """

    decay: float = 0.999
    warmup_in_s2: bool = False


class Law(Protocol):
    """A loss law. Parameters that must be positive are fitted as logarithms.

    Attributes:
      names: the parameters.
      positive: which of them are fitted as logarithms.
      prior: for each, None or (centre, spread) of what is known of it from elsewhere; the spread is that of the
        logarithm where it is fitted as one.
    """

    names: tuple[str, ...]
    positive: tuple[bool, ...]
    prior: tuple[tuple[float, float] | None, ...]

    def prepare(self, curve: Curve, options: Options) -> Any:
        """What of a curve does not depend on the parameters."""

    def loss(self, parameters_U: np.ndarray, prepared: Any) -> tuple[np.ndarray, np.ndarray]:
        """(loss_P, derivatives_PxU) at the points of a curve, with respect to the parameters themselves."""

    def starts(self, curves: Sequence[Curve], rng: np.random.Generator, n: int) -> np.ndarray:
        """[n, U] parameters to begin from."""

    def unidentified(self, curves: Sequence[Curve], prepared: Sequence[Any]) -> str | None:
        """Why these curves cannot tell the parameters, and what to add; or None."""
