"""The Pile, then SlimPajama: re-warm, re-decay and replay 5 % (Gupta et al. 2308.04014, Ibrahim et al. 2403.08763).

    python -m cpt.main --config=configs/pile_to_slimpajama.py            # a laptop, nothing prepared
    python -m cpt.main --config=configs/pile_to_slimpajama.py:dense      # the same run, every step after the switch
    python -m cpt.main --config=configs/pile_to_slimpajama.py:probes     # and more than losses
    python -m cpt.main --config=configs/pile_to_slimpajama.py:410m       # the papers' recipe

`:tiny` (the default) needs no data: English prose and Python code, both read from the running Python's standard
library, stand in for The Pile and SlimPajama. 600 steps, 5 TFLOP, under a minute on 2 CPU cores. To expect (CPython
3.11.7, jax 0.10.1, CPU; nats per token, ± half of the 95 % interval over documents; other Pythons carry other text):

    pile        4.470 -> 4.992  (+0.522 ± 0.073), depth of the gap 0.796 at 65.5k tokens
    slimpajama  4.957 -> 3.256  (-1.701 ± 0.302)
    with --config.phases.slimpajama.replay.share=0:  pile +1.400 ± 0.095

`:410m` is the shape, budget and schedule of the papers on your own token stores: 2,260,992 tokens per step, twice
132,685 steps, 5 % of the second phase replayed (285B + 15B tokens), 1.45 ZFLOP. The papers report (405M parameters,
2403.08763, tables for Pile -> SlimPajama): Pile 2.17 before, 2.23 after with 5 % replay and 2.44 without; SlimPajama
2.51 and 2.50. We have not run it.
"""

from cpt import config as c
from cpt.errors import ConfigError


def get_config(size: str = "tiny"):
    if size == "tiny":
        return tiny()
    if size == "dense":
        return dense()
    if size == "probes":
        return probes()
    if size == "410m":
        return papers_410m()
    raise ConfigError(f"--config=...:{size}: no such size  (sizes: tiny, dense, probes, 410m)")


def two_phases(tokens, *, peak, floor, warmup, evaluate):
    """Pre-training on D0, then D1 with 5 % compute-equivalent replay, a re-warmed cosine and a fresh optimizer."""
    rewarmed_cosine = dict(kind="cosine", peak=peak, floor=floor, warmup=warmup)
    return dict(
        order=("pile", "slimpajama"),
        phases=dict(
            pile=c.phase(tokens=tokens, mix={"pile": 1.0}, lr=c.lr(**rewarmed_cosine), evaluate=evaluate[0]),
            slimpajama=c.phase(
                tokens=tokens,
                mix={"slimpajama": 1.0},
                replay=c.replay(of="pile", share=0.05),
                lr=c.lr(**rewarmed_cosine),
                optimizer=c.policy(policy="reset"),
                evaluate=evaluate[1],
            ),
        ),
    )


def tiny():
    return c.run(
        name="pile_to_slimpajama",
        notice="stand-in corpora: pile = English prose, slimpajama = Python code, from this Python's standard library",
        model=c.model(layers=2, width=128, heads=4, vocab_size=2048, context=128),
        batch=c.batch(sequences=16, length=128),
        tokenizer=c.tokenizer(kind="bpe", vocab_size=2048, train_on="pile"),
        sources=dict(
            pile=c.source(corpus="stdlib_prose", validation=0.04, max_chars=8000),
            slimpajama=c.source(corpus="stdlib_code", validation=0.02, max_chars=8000),
        ),
        evaluation=c.evaluation(
            sets=dict(
                pile=c.evaluation_set(source="pile", sequences=256, tags=("upstream",)),
                slimpajama=c.evaluation_set(source="slimpajama", sequences=128, tags=("downstream",)),
            )
        ),
        checkpoints=c.checkpoints(grid=c.duration(steps=50), rolling=c.duration(steps=50)),
        **two_phases(
            614_400,
            peak=3e-3,
            floor=3e-4,
            warmup=c.duration(fraction=0.01),
            evaluate=(
                c.grid(geometric=0, every=c.duration(steps=50)),
                c.grid(geometric=64, every=c.duration(steps=25)),
            ),
        ),
    )


def dense():
    """`tiny` seen closely: small sets at each of the first 50 steps after the switch, large ones at the edges."""
    config = tiny()
    sets = config.evaluation.sets
    for name in ("pile", "slimpajama"):
        sets[f"{name}_full"] = c.evaluation_set(**{**sets[name].to_dict(), "at": "edges"})
        sets[name].sequences = 8
    config.phases.slimpajama.evaluate = c.grid(dense=50, geometric=256, every=c.duration(steps=25))
    return config


def probes():
    """`dense`, with everything that can be measured without further data."""
    config = dense()
    config.evaluation.probes = dict(
        gradients=c.probe(kind="gradients", first=50, options=dict(old="pile")),
        parameters=c.probe(kind="parameters", at="edges", first=1, options=dict(of=300)),
        rank=c.probe(kind="rankme", at="edges", first=8),
        copying=c.probe(kind="copy", at="edges", first=8),
        spectrum=c.probe(kind="spectral_alignment", at="edges", first=8),
    )
    return config


def papers_410m():
    return c.run(
        name="pile_to_slimpajama_410m",
        model=c.model(layers=24, width=1024, heads=16, vocab_size=50_304, context=2048, compute_dtype="bfloat16"),
        batch=c.batch(sequences=1104, length=2048, accumulate=23),
        tokenizer=c.tokenizer(kind="file"),  # the one that made the stores
        sources=dict(pile=c.source(store="stores/pile"), slimpajama=c.source(store="stores/slimpajama")),
        evaluation=c.evaluation(
            sets=dict(
                pile=c.evaluation_set(source="pile", sequences=512, tags=("upstream",)),
                slimpajama=c.evaluation_set(source="slimpajama", sequences=512, tags=("downstream",)),
            )
        ),
        checkpoints=c.checkpoints(grid=c.duration(steps=2000), rolling=c.duration(steps=500)),
        **two_phases(
            300_000_000_000,
            peak=3e-4,
            floor=3e-5,
            warmup=c.duration(fraction=0.01),
            evaluate=(
                c.grid(geometric=512, every=c.duration(steps=1000)),
                c.grid(dense=32, geometric=1024, every=c.duration(steps=500)),
            ),
        ),
    )
