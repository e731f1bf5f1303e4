"""Continue a Pythia on your data: any GPT-NeoX of Hugging Face's format, re-warmed, with replay.

python -m cpt.main --config=configs/continue_pythia.py:MODEL_DIR,NEW_STORE,REPLAY_STORE,TOKENS
python -m cpt.main --config=configs/continue_pythia.py:models/pythia-410m,stores/new,stores/pile,10e9 --dry_run
python -m cpt.main --config=configs/continue_pythia.py:models/pythia-410m,stores/new,pile/document,10e9,weak
python -m cpt.main --config=configs/continue_pythia.py --dry_run        # an example of a plan; needs no files
"""

from cpt.continuing import Given, Lineage, continued
from cpt.models.spec import ModelSpec

PYTHIA = Lineage(
    family="gpt_neox",
    peaks=((1e8, 1e-3), (2.5e8, 6e-4), (1.2e9, 3e-4), (2e9, 2e-4), (4e9, 1.6e-4), (float("inf"), 1.2e-4)),
    batch_tokens=2_097_152,
    length=2048,
    source="Pythia (2304.01373)",
)
PYTHIA_410M = ModelSpec(layers=24, width=1024, heads=16, vocab_size=50_304, context=2048)
EXAMPLE = Given("models/pythia-410m", "stores/new", "stores/pile", 10_000_000_000)


def get_config(argument: str = ""):
    if not argument:
        return continued(EXAMPLE, PYTHIA, PYTHIA_410M)
    return continued(Given.read(argument), PYTHIA)
