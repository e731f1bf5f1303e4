"""Sweeps: many runs of one recipe that differ in a few fields. A sweep file says `from cpt import sweeps as s`:

    s.sweep(
        name="rewarm_peak",
        space=s.product(s.values("phases.slimpajama.lr.peak", [1e-3, 3e-3]), s.seeds(0, 1, 2)),
        metric="sets.pile.forgetting",
    )

See `cpt.sweeps.space` for spaces, `cpt.sweeps.definition` for searches and pruning.
"""

from cpt.sweeps.autolrs import autolrs, forecast
from cpt.sweeps.definition import asha, random, sweep, tpe
from cpt.sweeps.space import (
    chain,
    choice,
    integers,
    log_uniform,
    point,
    product,
    seeds,
    uniform,
    values,
    zip,
)

__all__ = [
    "asha", "autolrs", "chain", "choice", "forecast", "integers", "log_uniform", "point", "product", "random", "seeds",
    "sweep", "tpe", "uniform", "values", "zip",
]  # fmt: skip
