"""How much to replay, at equal compute (Ibrahim et al. 2403.08763, table 2), three seeds each.

python -m cpt.sweep --config=configs/pile_to_slimpajama.py --sweep=configs/sweeps/replay_share.py --workers=2
"""

from cpt import sweeps as s


def get_sweep():
    return s.sweep(
        name="replay_share",
        space=s.product(
            s.values("phases.slimpajama.replay.share", [0.0, 0.01, 0.05, 0.1, 0.25, 0.5]), s.seeds(0, 1, 2)
        ),
        metric={"sets.slimpajama.final": 1, "sets.pile.forgetting": 1},
    )
