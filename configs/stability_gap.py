"""Three data strategies against the stability gap (Guo et al. 2024, arXiv 2406.14833, section 4), at equal tokens.

    P='python -m cpt.prepare --max_chars=8000'
    $P --format=stdlib_prose --tokenizer=bpe:2048 --validation=0.04 --out=stores/prose
    $P --format=stdlib_code --tokenizer=stores/prose --validation=0.02 --out=stores/code
    python -m cpt.select --store=stores/code --reference=stores/prose --keep_tokens=102500 --out=stores/code_hq
    python -m cpt.main --config=configs/stability_gap.py:full

`:full` reads 409,600 tokens of the new data once. `:subset` (strategy I) reads a quarter of that four times. `:quality`
(I and II) reads four times the quarter that an n-gram model of the reference likes best. The mixtures (I, II and III)
keep the mix of pre-training, its web part (82 % in the paper) replaced by the new data: `:mixture_fixed` draws it once
and repeats it, `:mixture_dynamic` draws it anew from a larger good subset in every pass. English prose is what the
model knows and Python code what is new to it, both from this Python's standard library: the code that reads most like
prose stands in for the paper's medical text that reads most like a textbook. For your own data change the stores.

500 steps of a tiny model, about a minute each on 2 CPU cores. To expect (CPython 3.11.7, jax 0.10.1, CPU; change over
the second phase in nats per token, ± half of the 95 % interval over documents, and depth and area of the stability gap
of prose; other Pythons carry other text):

                    prose            depth   area   code
    full            +1.273 ± 0.089   1.279   472k   -1.632 ± 0.295
    subset          +2.220 ± 0.097   2.220   725k   -0.655 ± 0.249
    quality         +2.148 ± 0.126   2.148   716k   -0.948 ± 0.212
    mixture_fixed   +0.402 ± 0.056   0.579   188k   -0.930 ± 0.175
    mixture_dynamic +0.349 ± 0.048   0.549   172k   -1.061 ± 0.183

So here, with a model that has seen little, the mixture helps and repeating a small subset of the new data does not: the
paper's models are pre-trained on trillions of tokens, and its subset has 5 billion.
"""

from cpt import config as c
from cpt.errors import ConfigError

QUARTER = 102_400
WEB = 0.82  # Common Crawl and C4 in the mix of Llama 1
SPARE = 4.5  # passes: the selected store ends with the last document that fits, so it is less than a quarter


def get_config(strategy: str = "full"):
    code = dict(store="stores/code")
    if strategy == "full":
        return two_phases(strategy, code, {"code": 1.0})
    if strategy == "subset":
        return two_phases(strategy, code | dict(take_tokens=QUARTER + 1, epochs=4.0), {"code": 1.0})
    good = dict(store="stores/code_hq")
    if strategy == "quality":
        return two_phases(strategy, good | dict(epochs=SPARE), {"code": 1.0})
    mixture = {"code": WEB, "prose": 1 - WEB}
    if strategy == "mixture_fixed":
        quarter = int(WEB * QUARTER) + 1
        return two_phases(strategy, good | dict(take_tokens=quarter, epochs=4.1), mixture)
    if strategy == "mixture_dynamic":
        return two_phases(strategy, good | dict(epochs=SPARE), mixture)
    known = "full, subset, quality, mixture_fixed, mixture_dynamic"
    raise ConfigError(f"--config=...:{strategy}: no such strategy  (strategies: {known})")


def two_phases(strategy: str, code: dict, mix: dict):
    """Pre-training on prose, then 409,600 tokens of the mix; the paper's cosine with a warm-up of a tenth."""
    cosine = dict(kind="cosine", peak=3e-3, floor=3e-4, warmup=c.duration(fraction=0.1))
    return c.run(
        name=f"stability_gap_{strategy}",
        model=c.model(layers=2, width=128, heads=4, vocab_size=2048, context=128),
        batch=c.batch(sequences=16, length=128),
        tokenizer=c.tokenizer(kind="file"),  # the one that made the stores
        sources=dict(prose=c.source(store="stores/prose", epochs=2.0), code=c.source(**code)),
        order=("prose", "code"),
        phases=dict(
            prose=c.phase(
                tokens=614_400,
                mix={"prose": 1.0},
                lr=c.lr(**cosine),
                evaluate=c.grid(geometric=0, every=c.duration(steps=50)),
            ),
            code=c.phase(
                tokens=4 * QUARTER,
                mix=mix,
                lr=c.lr(**cosine),
                optimizer=c.policy(policy="reset"),
                evaluate=c.grid(dense=16, geometric=64, every=c.duration(steps=20)),
            ),
        ),
        evaluation=c.evaluation(
            sets=dict(
                prose=c.evaluation_set(source="prose", sequences=256, tags=("upstream",)),
                code=c.evaluation_set(source="code", sequences=128, tags=("downstream",)),
            )
        ),
        checkpoints=c.checkpoints(rolling=c.duration(steps=100)),
    )
