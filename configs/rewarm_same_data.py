"""Re-warming on the data the model was trained on (Gupta et al. 2308.04014, section 4.4): D0, then fresh D0.

    python -m cpt.main --config=configs/rewarm_same_data.py
    python -m cpt.main --config=configs/rewarm_same_data.py --config.phases.again.lr.peak=6e-3     # twice the peak
    python -m cpt.main --config=configs/rewarm_same_data.py --config.phases.again.lr.kind=constant # no re-warming

The control of every claim about a stability gap: no data changes at the switch, so what the upstream loss loses there
is due to the learning rate alone. It rises when the rate is re-warmed, more with a higher peak, and not when the rate
stays where it was. 320 steps, about 30 s on 2 CPU cores. To expect (CPython 3.11.7, jax 0.10.1, CPU; nats per token):

    peak     depth of the gap [95 %]    change at the end [95 %]
    3e-3     0.230 [0.192, 0.284]       -0.079 [-0.120, -0.036]
    6e-3     0.764 [0.693, 0.835]       -0.017 [-0.068, +0.034]
    (none)   0.000 [0.000, 0.007]       -0.054 [-0.070, -0.038]
"""

from cpt import config as c


def get_config():
    cosine = dict(kind="cosine", peak=3e-3, floor=3e-4, warmup=c.duration(fraction=0.01))
    return c.run(
        name="rewarm_same_data",
        notice="stand-in corpus: pile = English prose from this Python's standard library",
        model=c.model(layers=2, width=128, heads=4, vocab_size=2048, context=128),
        batch=c.batch(sequences=16, length=128),
        tokenizer=c.tokenizer(kind="bpe", vocab_size=2048, train_on="pile"),
        sources=dict(pile=c.source(corpus="stdlib_prose", validation=0.04, max_chars=8000)),
        order=("pile", "again"),
        phases=dict(
            pile=c.phase(
                steps=240,
                mix={"pile": 1.0},
                lr=c.lr(**cosine),
                evaluate=c.grid(geometric=0, every=c.duration(steps=60)),
            ),
            again=c.phase(
                steps=80,
                mix={"pile": 1.0},
                lr=c.lr(**cosine),
                optimizer=c.policy(policy="reset"),
                evaluate=c.grid(dense=16, geometric=64, every=c.duration(steps=16)),
            ),
        ),
        evaluation=c.evaluation(sets=dict(pile=c.evaluation_set(source="pile", sequences=256, tags=("upstream",)))),
        checkpoints=c.checkpoints(rolling=c.duration(steps=60)),
    )
