"""Continue a model of the Llama family on your data, re-warmed, with replay.

python -m cpt.main --config=configs/continue_llama.py:MODEL_DIR,NEW_STORE,REPLAY_STORE,TOKENS
python -m cpt.main --config=configs/continue_llama.py --dry_run        # an example of a plan; needs no files
"""

from cpt.continuing import Given, Lineage, continued
from cpt.models.spec import LlamaSpec

LLAMA = Lineage(
    family="llama",
    peaks=((2e9, 4e-4), (2e10, 3e-4), (float("inf"), 1.5e-4)),
    batch_tokens=4_194_304,
    length=4096,
    source="Llama 2, TinyLlama (2307.09288, 2401.02385)",
)
TINYLLAMA = LlamaSpec(layers=22, width=2048, heads=32, kv_heads=4, ff=5632, vocab_size=32_000, context=2048)
EXAMPLE = Given("models/tinyllama-1.1b", "stores/new", "stores/slimpajama", 10_000_000_000)


def get_config(argument: str = ""):
    if not argument:
        return continued(EXAMPLE, LLAMA, TINYLLAMA)
    return continued(Given.read(argument), LLAMA)
