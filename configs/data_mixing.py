"""Mixers, replay over time and weights, one small run each: what is read when, and how much it counts.

    python -m cpt.main --config=configs/data_mixing.py:temperature
    python -m cpt.data plan --config=configs/data_mixing.py:curriculum     # the mix over time, nothing trained

`:METHOD` is one of `METHODS` below: every mixer, every schedule of the replayed share, and upweighting, as a few lines
over one base: English prose first, then prose and code, all of it from the running Python's standard library. 80 steps
of a tiny model, half a minute on 2 CPU cores. To expect: the plan table that is printed first shows the first and last
share of every source, and the run ends with `ledger exact`; the losses are no result of any method.

Sizes are written down where a mixer needs them, since these sources are prepared on first use; of a store that
`python -m cpt.prepare` made they are known (`mixer.options.sizes` is then left out).
"""

from cpt import config as c
from cpt.errors import ConfigError

SIZES = dict(prose=600_000, code=2_000_000)
EVEN = dict(prose=0.5, code=0.5)

# What the second phase says; what it does not say is that of `base`.
METHODS = {
    # ---- mixers
    "fixed": dict(mix=dict(prose=0.2, code=0.8)),
    "linear": dict(mix=dict(prose=0.9, code=0.1), mixer=c.mixer(kind="linear", options=dict(end=EVEN))),
    "proportional": dict(mixer=c.mixer(kind="proportional", options=dict(sizes=SIZES))),
    "temperature": dict(mixer=c.mixer(kind="temperature", options=dict(tau=5.0, sizes=SIZES))),
    "cooldown": dict(mixer=c.mixer(kind="cooldown", options=dict(tau=5.0, end_tau=1.0, at=0.5, sizes=SIZES))),
    "unimax": dict(mixer=c.mixer(kind="unimax", options=dict(epochs=0.05, sizes=SIZES))),
    "curve": dict(
        mixer=c.mixer(
            kind="curve",
            options=dict(at=(0.0, 0.5, 1.0), weights=dict(prose=(1.0, 0.2, 0.2), code=(0.0, 0.8, 0.8)), shape="linear"),
        )
    ),
    "curriculum": dict(mixer=c.mixer(kind="curriculum", options=dict(order=("prose", "code"), overlap=0.2))),
    "blend_at_lr": dict(mixer=c.mixer(kind="blend_at_lr", options=dict(then=dict(prose=0.9, code=0.1), of_peak=0.2))),
    "skill_it": dict(mixer=c.mixer(kind="skill_it", options=dict(every=10, eta=2.0, window=3))),
    # ---- replay (of the first phase, unless it says otherwise)
    "replay_constant": dict(mix=dict(code=1.0), replay=dict(share=0.25)),
    "replay_linear": dict(mix=dict(code=1.0), replay=dict(share=0.3, schedule=c.replay_share(kind="linear", end=0.05))),
    "replay_burst": dict(
        mix=dict(code=1.0),
        replay=dict(share=0.5, schedule=c.replay_share(kind="burst", end=0.05, over=c.duration(steps=10))),
    ),
    "replay_decay": dict(
        mix=dict(code=1.0),
        replay=dict(share=0.5, schedule=c.replay_share(kind="decay", end=0.05, over=c.duration(steps=10))),
    ),
    "replay_shuffled": dict(mix=dict(code=1.0), replay=dict(share=0.25, order="shuffled")),
    "replay_unseen": dict(mix=dict(code=1.0), replay=dict(share=0.25, range="unseen")),
    "replay_reservoir": dict(
        mix=dict(code=1.0), replay=dict(share=0.25, range="reservoir", reservoir=5000, max_repeats=8.0)
    ),
    "replay_on_top": dict(mix=dict(code=1.0), replay=dict(share=0.25, accounting="fixed_new")),
    "replay_outside": dict(mix=dict(code=1.0), replay=dict(of="seen_elsewhere", share=0.25)),
    # ---- weights
    "upweighting": dict(mix=dict(prose=0.2, code=0.8), weights=dict(prose=0.5, code=0.5)),
    "weights_moving": dict(mix=dict(prose=0.2, code=0.8), weights=dict(prose=0.8), weights_end=dict(prose=0.2)),
    # ---- three phases: the third replays both before it, in equal parts, by their tokens, or the older one less
    "rehearsal_equal": dict(mix=dict(code=1.0), third=dict(between="equal")),
    "rehearsal_proportional": dict(mix=dict(code=1.0), third=dict(between="proportional")),
    "power_law_rehearsal": dict(mix=dict(code=1.0), third=dict(between="power", power=1.0)),
}


def get_config(method: str = "temperature"):
    if method not in METHODS:
        raise ConfigError(f"--config=...:{method}: no such method  (methods: {', '.join(METHODS)})")
    second = dict(METHODS[method])
    third = second.pop("third", None)
    if "replay" in second:
        second["replay"] = c.replay(**{"of": "first", **second["replay"]})
    config = base(dict(mix=EVEN) | second)
    config.name = f"data_mixing_{method}"
    if third:
        config.order = ("first", "second", "third")
        config.phases.third = phase(dict(mix=EVEN, replay=c.replay(of="earlier", share=0.3, **third)))
    return config


def phase(says):
    return c.phase(
        steps=40,
        lr=c.lr(kind="cosine", peak=3e-3, floor=3e-4, warmup=c.duration(steps=4)),
        evaluate=c.grid(geometric=0, every=c.duration(steps=20)),
        **says,
    )


def base(second):
    return c.run(
        name="data_mixing",
        notice="corpora: prose and code of this Python's standard library",
        model=c.model(layers=2, width=64, heads=2, vocab_size=512, context=64),
        batch=c.batch(sequences=16, length=64),
        tokenizer=c.tokenizer(kind="bpe", vocab_size=512, train_on="prose", max_bytes=1_000_000),
        sources=dict(
            prose=c.source(corpus="stdlib_prose", validation=0.04, max_chars=8000, skip_tokens=100_000),
            code=c.source(corpus="stdlib_code", validation=0.02, max_chars=8000),
            seen_elsewhere=c.source(corpus="stdlib_prose", validation=0.04, max_chars=8000, take_tokens=100_000),
        ),
        order=("first", "second"),
        phases=dict(first=phase(dict(mix=dict(prose=1.0))), second=phase(second)),
        evaluation=c.evaluation(
            sets=dict(prose=c.evaluation_set(source="prose"), code=c.evaluation_set(source="code"))
        ),
    )
