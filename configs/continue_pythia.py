"""Continue a Pythia on your data: any GPT-NeoX of Hugging Face's format, re-warmed, with replay.

python -m cpt.main --config=configs/continue_pythia.py:MODEL_DIR,NEW_STORE,REPLAY_STORE,TOKENS
python -m cpt.main --config=configs/continue_pythia.py:models/pythia-410m,stores/new,stores/pile,10e9 --dry_run
python -m cpt.main --config=configs/continue_pythia.py:models/pythia-410m,stores/new,pile/document,10e9,weak
python -m cpt.main --config=configs/continue_pythia.py --dry_run        # an example of a plan; needs no files

The stores are made with the model's tokenizer: `python -m cpt.prepare --tokenizer=MODEL_DIR ...`. REPLAY_STORE is what
the model was trained on, or any upstream store; Pythia's own pre-shuffled Pile is the prefix of its `.bin` and `.idx`,
and is read in its order. What is chosen is printed at launch with its reason, and is an ordinary field:
`--config.phases.continued.lr.peak=1e-4` wins over all of it.

    shift      strong where the token frequencies of the stores diverge by 0.2 bits or more, else weak; a fifth word
               decides it. The threshold is ours and rests on two cases: English prose and Python code are 0.26 bits
               apart, two halves of either 0.04. No published pair of corpora has been measured
    replay     5 % (weak) or 25 % (strong) of each batch, in place of new tokens (Ibrahim et al. 2403.08763)
    peak       that of the model's own training (Biderman et al. 2304.01373) for a strong shift, half of it for a weak
               one (Gupta et al. 2308.04014: a higher one learns more and forgets more), times the square root of the
               batch over theirs (Malladi et al. 2205.10287), at most 1 and at least 0.1
    schedule   warm-up over 1 % of the updates, cosine to a tenth of the peak, a fresh AdamW (2403.08763)
    batch      Pythia's 2M tokens, or the largest that leaves 1,000 updates
    evaluation each of the first 20 updates, powers of two, then 50 times; both sets
    passes     a budget may read a store up to 4 times (Muennighoff et al. 2305.16264)

To expect: nothing of a published size has been run. A Pythia of 0.9M parameters, trained on 300 batches of English
prose (4.463 nats per token), on 1M tokens of Python code (both of CPython 3.11's standard library, jax 0.10.1, CPU):
strong shift, 25 % replay, peak 1e-4; code 5.021 -> 3.937, prose +0.085 ± 0.028.
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
