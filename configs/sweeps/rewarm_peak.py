"""How far to re-warm: the peak of the second phase, three seeds each (Gupta et al. 2308.04014, figure 4).

python -m cpt.sweep --config=configs/pile_to_slimpajama.py --sweep=configs/sweeps/rewarm_peak.py --workers=2
"""

from cpt import sweeps as s


def get_sweep():
    return s.sweep(
        name="rewarm_peak",
        space=s.product(s.values("phases.slimpajama.lr.peak", [1e-3, 3e-3, 6e-3]), s.seeds(0, 1, 2)),
        # What was learned and what was forgotten, weighed equally.
        metric={"sets.slimpajama.final": 1, "sets.pile.forgetting": 1},
    )
