"""One infinite learning rate over three data sets, or a re-warmed cosine in each (Ibrahim et al. 2403.08763, Singh et
al. 2503.02844).

    python -m cpt.main --config=configs/infinite_schedule.py              # the infinite trunk and its annealed branches
    python -m cpt.main --config=configs/infinite_schedule.py:cosine       # the same tokens, re-warmed at each switch
    python -m cpt.report --workdir='runs/infinite_schedule*' --out=answer.html

English prose, then Python code, then both, from this Python's standard library. The infinite schedule warms up once,
cools down to a constant and switches data there; each data set is shipped from a cooldown of its own, a branch of 20
steps that the trunk does not see. The cosine re-warms at both switches. Compare the bump of `prose` after the switches,
and the annealed branches (not the trunk) with the ends of the cosines. 480 steps and 60 of branches, about a minute on
2 CPU cores. To expect (CPython 3.11.7, jax 0.10.1, CPU; nats per token, one seed):

                                      infinite                 cosine
    prose, highest after its switch   +0.858                   +1.241
    code, highest after its switch    +0.068                   +0.297
    prose at the end                  4.553 (trunk 4.575)      4.633
    code at the end                   3.479 (trunk 3.524)      3.533

`python -m cpt.merge --workdir=<the run> --steps=440,460,480 --out=merged` averages the last three checkpoints of the
trunk instead: prose 4.553, code 3.463.
"""

from cpt import config as c
from cpt.errors import ConfigError


def get_config(schedule: str = "infinite"):
    if schedule not in ("infinite", "cosine"):
        raise ConfigError(f"--config=...:{schedule}: no such schedule  (schedules: infinite, cosine)")
    infinite = schedule == "infinite"
    cosine = c.lr(kind="cosine", peak=3e-3, floor=3e-4, warmup=c.duration(fraction=0.02))
    # Cooled down within the first phase; no annealing of its own, the branches do that.
    trunk = c.lr(
        kind="infinite_cosine",
        peak=3e-3,
        floor=3e-4,
        constant=1.5e-3,
        warmup=c.duration(steps=4),
        cooldown=c.duration(steps=96),
        decay=c.duration(steps=0),
    )
    carry_on = c.lr(kind="continue")

    def phase(mix, first=False):
        return c.phase(
            steps=160,
            mix=mix,
            lr=(trunk if first else carry_on) if infinite else cosine,
            # What the papers do at a switch: a re-warmed phase begins with fresh moments, a trunk goes on.
            optimizer=c.policy(policy="keep" if infinite else "reset"),
            evaluate=c.grid(geometric=0 if first else 64, every=c.duration(steps=20)),
        )

    return c.run(
        name=f"infinite_schedule_{schedule}",
        notice="stand-in corpora: English prose and Python code from this Python's standard library",
        model=c.model(layers=2, width=128, heads=4, vocab_size=2048, context=128),
        batch=c.batch(sequences=16, length=128),
        tokenizer=c.tokenizer(kind="bpe", vocab_size=2048, train_on="prose"),
        sources=dict(
            prose=c.source(corpus="stdlib_prose", validation=0.04, max_chars=8000),
            code=c.source(corpus="stdlib_code", validation=0.02, max_chars=8000),
        ),
        order=("prose", "code", "both"),
        phases=dict(
            prose=phase({"prose": 1.0}, first=True), code=phase({"code": 1.0}), both=phase({"prose": 0.5, "code": 0.5})
        ),
        evaluation=c.evaluation(
            sets=dict(
                prose=c.evaluation_set(source="prose", sequences=256, tags=("upstream",)),
                code=c.evaluation_set(source="code", sequences=128),
            )
        ),
        anneal=c.anneal(phase_ends=infinite, decay=c.duration(steps=20), floor=3e-4),
        checkpoints=c.checkpoints(grid=c.duration(steps=20), rolling=c.duration(steps=40)),
    )
