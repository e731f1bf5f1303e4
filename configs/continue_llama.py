"""Continue a model of the Llama family on your data, re-warmed, with replay.

python -m cpt.main --config=configs/continue_llama.py:MODEL_DIR,NEW_STORE,REPLAY_STORE,TOKENS
python -m cpt.main --config=configs/continue_llama.py --dry_run        # an example of a plan; needs no files

Everything is as in `continue_pythia.py`, which explains it, but for the family's own numbers: peak learning rates are
those of TinyLlama up to 2B parameters (4e-4), of Llama 2 up to 20B (3e-4) and of its larger models (1.5e-4); a batch
has 4M tokens, rows at most 4,096. That holds for Llama, Mistral, Qwen, SmolLM and OLMo 2 alike, whatever they were
trained with; where you know better, `--config.phases.continued.lr.peak`.

To expect: nothing of a published size has been run. A Llama of 0.7M parameters, trained on 300 batches of English prose
(5.110 nats per token), on 1M tokens of Python code (both of CPython 3.11's standard library, jax 0.10.1, CPU): strong
shift, 25 % replay, peak 4e-5; code 5.590 -> 4.752, prose +0.058 ± 0.023.
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
