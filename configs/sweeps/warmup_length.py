"""How long to re-warm: 0 to 2 % of the second phase, which should hardly matter at the end (Gupta et al. 2308.04014).

python -m cpt.sweep --config=configs/pile_to_slimpajama.py --sweep=configs/sweeps/warmup_length.py --workers=2
"""

from cpt import sweeps as s


def get_sweep():
    return s.sweep(
        name="warmup_length",
        space=s.product(s.values("phases.slimpajama.lr.warmup.fraction", [0.0, 0.005, 0.01, 0.02]), s.seeds(0, 1, 2)),
        metric="sets.slimpajama.final",
    )
