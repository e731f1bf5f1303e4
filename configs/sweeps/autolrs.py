"""The learning rate of the second phase as AutoLRS chooses it (Jin et al. 2105.10762): `:RUN,STEP`.

RUN is a run of the same recipe and STEP the end of its first phase (300 in `:tiny`), from whose checkpoint each of ten
candidates is trained for a tenth of the phase; what is judged is the loss that they are forecast to have at its end.

    python -m cpt.main --config=configs/pile_to_slimpajama.py --workdir=runs/base
    python -m cpt.sweep --config=configs/pile_to_slimpajama.py --sweep=configs/sweeps/autolrs.py:runs/base,300

The phase itself is then trained with the rate that came out best, from the same checkpoint:

    python -m cpt.main --config=configs/pile_to_slimpajama.py --config.init.from_run=runs/base --config.init.what=all \\
        --config.init.step=300 --config.phases.slimpajama.lr.kind=constant --config.phases.slimpajama.lr.value=BEST

Of `:tiny` (CPython 3.11.7, jax 0.10.1, CPU) 1.83e-3 came out best, forecast to 4.07 nats per token of training loss;
3.37e-3 had 4.09, 1e-3 4.13, the ends 1e-4 and 1e-2 had 4.61 and 4.38. Trust the order, not the height: 30 updates say
little of update 300 (with the recipe's cosine the loss there is about 3.3). More stages are more phases: the end of one
begins the search for the next.
"""

from cpt import sweeps as s
from cpt.errors import ConfigError

STAGE = "phases.slimpajama"
STEPS, TOKENS_PER_STEP = 300, 2048


def get_sweep(parent=""):
    run, _, step = parent.rpartition(",")
    if not run or not step.isdigit():
        raise ConfigError(f"autolrs.py:{parent}: give the run and the step to begin at, as autolrs.py:runs/base,300")
    begin = s.point({"init.from_run": run, "init.what": "all", "init.step": int(step)})
    stage = s.point({f"{STAGE}.tokens": STEPS // 10 * TOKENS_PER_STEP, f"{STAGE}.lr.kind": "constant"})
    return s.sweep(
        name="autolrs",
        space=s.product(begin, stage, s.log_uniform(f"{STAGE}.lr.value", 1e-4, 1e-2)),
        metric=s.forecast(at=STEPS),
        search=s.autolrs(trials=10),
    )
