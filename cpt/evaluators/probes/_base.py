"""What a probe gets and gives: numbers about a model at a step, beside its losses.

A probe is a function of the parameters and the step, and of nothing it remembers: asked in the loop, after a resume or
of a checkpoint later on, it gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from cpt.errors import ConfigError, nearest

if TYPE_CHECKING:
    from cpt.data.tokenizers._base import Tokenizer
    from cpt.models.base import Model, Params
    from cpt.plan import RunPlan

Probe = Callable[["Params", int], Mapping[str, float]]
"""`(params, step) -> values`: names of numbers to numbers, at the parameters after `step` updates; NaN where undefined.

Values may be jax scalars; they are fetched later. Nothing in it may depend on what was asked before. Where there is a
value `warning` of 1.0 the run says so.
"""


@dataclass(frozen=True)
class ProbeContext:
    """What is there to measure with.

    Attributes:
      model: parameters are given at each call, possibly sharded over devices.
      options: of the probe, as in its config.
      where: config path of the probe, for errors, e.g. `evaluation.probes.rank`.
      windows: int32 `[R, length + 1]` rows of each evaluation set; inputs are `[:, :-1]`, targets `[:, 1:]`.
      tokenizer: of the run, None where nobody knows it.
      plan: of the run; its phases, learning rates and shares.
      batch: the training batch of an update as numpy arrays: `tokens_BxL, targets_BxL, weights_BxL, source_B` (index of
        the column of its phase, `plan.phase_at(step).columns`), `segments_BxL` where documents are masked.
      params_at: parameters at a step of this run from its checkpoints; raises RunError where there is none.
    """

    model: Model
    options: Mapping[str, Any]
    where: str
    windows: Mapping[str, np.ndarray] = field(default_factory=dict)
    tokenizer: Tokenizer | None = None
    plan: RunPlan | None = None
    batch: Callable[[int], dict[str, np.ndarray]] | None = None
    params_at: Callable[[int], Params] | None = None

    def read(self, **defaults: Any) -> dict[str, Any]:
        """The options over their `defaults`.

        Raises:
          ConfigError: one that is not among them.
        """
        for name in self.options:
            if name not in defaults:
                raise ConfigError(
                    f"{self.where}.options.{name}: no such option{nearest(name, defaults)}"
                    f"  (options: {', '.join(defaults) or 'none'})"
                )
        return {**defaults, **self.options}

    def windows_of(self, name: str | None) -> np.ndarray:
        """Rows of the evaluation set `name`; of the first one for None.

        Raises:
          ConfigError: there is no such set, or none at all.
        """
        if not self.windows:
            raise ConfigError(f"{self.where}: there is no evaluation set whose text it could read; add one")
        if name is not None and name not in self.windows:
            raise ConfigError(
                f"{self.where}.options.set: no evaluation set '{name}'{nearest(name, self.windows)}"
                f"  (sets: {', '.join(self.windows)})"
            )
        return self.windows[next(iter(self.windows)) if name is None else name]
