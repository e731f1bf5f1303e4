"""A model's life in four commands: pre-trained, exported, brought back with a larger vocabulary, continued, judged.

    python -m cpt.main --config=configs/story.py:pretrain --workdir=runs/story/pretrain
    python -m cpt.convert export --workdir=runs/story/pretrain --out=models/story
    python -m cpt.main --config=configs/story.py:continue --workdir=runs/story/continue
    python -m cpt.report --workdir=runs/story/pretrain,runs/story/continue --out=story.html

`:pretrain` learns English prose, with a BPE of 2,048 ids trained on it. The export is a Hugging Face directory, which
`transformers` loads. `:continue` starts from it on Python code: the training of the tokenizer goes on on code up to
3,072 ids (2512.03989), the new rows of embedding and head are drawn around the old ones (`gaussian`), a quarter of each
batch is prose again. Both texts are this Python's standard library; for a story of your own, change `sources`.

A token of the second part stands for more text than one of the first, so nats per token cannot be compared. The report
sees that and gives everything in bits per byte. The sets take all that was held out, so both parts score the same text
but for its last few bytes.

300 + 300 steps, about 70 s and 85 s of processor time. To expect (CPython 3.11.7, jax 0.10.1, CPU; bits per byte, ±
half of the 95 % interval over documents; other Pythons carry other text):

             pretrain          continue
    prose    3.684 -> 2.092    2.140 -> 2.092  (-0.048 ± 0.013), depth of the gap 0.155
    code     4.144 -> 2.649    2.683 -> 1.636  (-1.047 ± 0.123)
"""

from pathlib import Path

from cpt import config as c
from cpt.errors import ConfigError

MODEL = "models/story"
OLD, NEW = 2048, 3072  # ids


def get_config(part: str = "pretrain"):
    if part == "pretrain":
        return pretrain()
    if part == "continue":
        return continue_()
    raise ConfigError(f"--config=...:{part}: no such part of the story  (parts: pretrain, continue)")


def pretrain():
    """English prose, with a tokenizer trained on it."""
    return c.run(
        name="story_pretrain",
        model=c.model(layers=2, width=128, heads=4, vocab_size=OLD, context=128),
        tokenizer=c.tokenizer(kind="bpe", vocab_size=OLD, train_on="prose"),
        order=("prose",),
        phases=dict(prose=c.phase(tokens=614_400, mix={"prose": 1.0}, lr=cosine(), evaluate=every(50))),
        **shared(),
    )


def continue_():
    """Python code, with a quarter of prose, from the exported model and a tokenizer that goes on from its own."""
    if not Path(MODEL, "config.json").is_file():
        raise ConfigError(
            f"{MODEL}: no model there; train it with `:pretrain` and export it, as the docstring of the recipe says"
        )
    return c.run(
        name="story_continue",
        init=c.init(from_hf=MODEL, vocabulary=c.vocabulary(method="gaussian")),
        model=c.model_of(MODEL, vocab_size=NEW),
        tokenizer=c.tokenizer(kind="continued_bpe", path=MODEL, vocab_size=NEW, train_on="code", max_bytes=2_000_000),
        order=("code",),
        phases=dict(
            code=c.phase(
                tokens=614_400,
                mix={"code": 1.0},
                replay=c.replay(of="prose", share=0.25),
                lr=cosine(),
                evaluate=every(25, geometric=64),
            )
        ),
        **shared(),
    )


def shared():
    """What both parts read and are measured on: the sets take all that the validation splits hold."""
    return dict(
        notice="stand-in corpora: English prose and Python code from this Python's standard library",
        batch=c.batch(sequences=16, length=128),
        sources=dict(
            prose=c.source(corpus="stdlib_prose", validation=0.04, max_chars=8000),
            code=c.source(corpus="stdlib_code", validation=0.02, max_chars=8000),
        ),
        evaluation=c.evaluation(
            sets=dict(
                prose=c.evaluation_set(source="prose", sequences=4096, tags=("upstream",)),
                code=c.evaluation_set(source="code", sequences=4096, tags=("downstream",)),
            )
        ),
        checkpoints=c.checkpoints(rolling=c.duration(steps=100)),
    )


def cosine():
    return c.lr(kind="cosine", peak=3e-3, floor=3e-4, warmup=c.duration(fraction=0.01))


def every(steps, geometric=0):
    return c.grid(geometric=geometric, every=c.duration(steps=steps))
