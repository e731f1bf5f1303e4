"""Which schedule for the second phase: each with its own fields, chained.

python -m cpt.sweep --config=configs/pile_to_slimpajama.py --sweep=configs/sweeps/schedules.py --workers=2
"""

from cpt import sweeps as s

LR = "phases.slimpajama.lr"


def get_sweep():
    rewarmed = s.product(
        s.values(f"{LR}.kind", ["cosine", "linear", "wsd", "rsqrt"]),
        s.values(f"{LR}.peak", [1e-3, 3e-3]),
    )
    # What they are compared with: the rate at which the first phase ended.
    low = s.point({f"{LR}.kind": "constant"})
    return s.sweep(
        name="schedules",
        space=s.product(s.chain(rewarmed, low), s.seeds(0, 1)),
        metric={"sets.slimpajama.final": 1, "sets.pile.forgetting": 1},
    )
