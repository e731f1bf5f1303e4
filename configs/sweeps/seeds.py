"""The same run with several seeds, for the noise that differences are judged by: `:N` seeds, 3 unless given.

python -m cpt.sweep --config=configs/pile_to_slimpajama.py --sweep=configs/sweeps/seeds.py:5 --workers=2
python -m cpt.report --workdir='runs/seeds/*' --out=seeds.html
"""

from cpt import sweeps as s


def get_sweep(count="3"):
    return s.sweep(name="seeds", space=s.seeds(*range(int(count))), metric="sets.pile.forgetting")
