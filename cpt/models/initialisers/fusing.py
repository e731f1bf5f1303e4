"""One model from several of the same shape: their average, or a step towards it (2204.03044)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cpt.errors import ConfigError
from cpt.models.initialisers._base import OPTIONS, Keys, Leaf, Source, check_same, number, of_several, read
from cpt.models.spec import DecoderSpec


@of_several
def fusing(source: Source, target: DecoderSpec, options: Mapping[str, Any]) -> Leaf:
    """Fusing (Choshen et al. 2022, arXiv 2204.03044): `sum_i w_i theta_i`, in float32, over the source and the models.

    With `step` s the source is what the models were trained from: `theta + s sum_i w_i (theta_i - theta)`, over the
    models only (task arithmetic, Ilharco et al. 2023, arXiv 2212.04089). All models are in (device) memory at a time.

    Options: `weights`, of the source and the models in their order (with `step`: of the models), equal by default and
    divided by their sum; `step` (None).

    Raises:
      ConfigError: there are no other models, one of another shape, weights that do not fit, an option is wrong.
    """
    given = read(options, "fusing", weights=None, step=None)
    if not source.others:
        raise ConfigError("init.transform.models: 'fusing' needs at least one more model; name their directories")
    for other in (source, *source.others):
        check_same(other.spec, target, "fusing")
    step = None if given["step"] is None else number(given, "step")
    models = source.others if step is not None else (source, *source.others)
    weights = _weights(given["weights"], len(models))

    def leaf(path: Keys) -> np.ndarray:
        mean = sum(w * model(path) for w, model in zip(weights, models, strict=True))
        if step is None:
            return mean
        start = source(path)
        return start + np.float32(step) * (mean - start)

    return leaf


def _weights(given: Any, count: int) -> np.ndarray:
    try:
        weights = np.ones(count) if given is None else np.asarray(given, np.float64)
        if weights.shape != (count,) or not np.isfinite(weights).all() or (weights < 0).any() or not weights.sum() > 0:
            raise ValueError
    except (TypeError, ValueError):
        raise ConfigError(
            f"{OPTIONS}.weights: {given!r} are not {count} numbers of at least 0, one for each model that is averaged"
        ) from None
    return (weights / weights.sum()).astype(np.float32)
