"""A continual run small enough for tests: two artificial languages, a byte tokenizer, a one-layer model.

python -m cpt.main --config=tests/toy.py:DIR      # DIR gets corpora and stores
"""

import json
import random
from pathlib import Path

from cpt import config as c

LETTERS = {"old": "abcdefghijklm", "new": "nopqrstuvwxyz"}


def write_corpora(root: Path) -> None:
    """Two JSONL corpora whose words share no letter, so that learning one must hurt the other."""
    root.mkdir(parents=True, exist_ok=True)
    for name, letters in LETTERS.items():
        path = root / f"{name}.jsonl"
        if path.exists():
            continue
        rng = random.Random(name)
        words = ["".join(rng.choices(letters, k=rng.randint(2, 6))) for _ in range(60)]
        lines = [json.dumps({"text": " ".join(rng.choices(words, k=40))}) for _ in range(300)]
        temporary = path.with_suffix(f".{rng.random()}")
        temporary.write_text("\n".join(lines) + "\n")
        temporary.rename(path)


def get_config(root: str):
    write_corpora(Path(root))
    schedule = c.lr(kind="cosine", peak=1e-2, floor=1e-3, warmup=c.duration(steps=2))
    return c.run(
        name="toy",
        model=c.model(layers=1, width=32, heads=2, vocab_size=257, context=32),
        batch=c.batch(sequences=8, length=32),
        tokenizer=c.tokenizer(kind="byte"),
        sources={
            name: c.source(corpus="jsonl", path=str(Path(root) / f"{name}.jsonl"), validation=0.1) for name in LETTERS
        },
        order=("first", "second"),
        phases=dict(
            first=c.phase(
                steps=20, mix={"old": 1.0}, lr=schedule, evaluate=c.grid(geometric=4, every=c.duration(steps=10))
            ),
            second=c.phase(
                steps=20,
                mix={"new": 1.0},
                replay=c.replay(of="first", share=0.1),
                lr=schedule,
                optimizer=c.policy(policy="reset"),
                evaluate=c.grid(dense=4, geometric=8, every=c.duration(steps=5)),
            ),
        ),
        evaluation=c.evaluation(
            rows_per_pass=8,
            sets=dict(
                old=c.evaluation_set(source="old", sequences=12, tags=("upstream",)),
                new=c.evaluation_set(source="new", sequences=10, tags=("downstream",)),
            ),
        ),
        checkpoints=c.checkpoints(rolling=c.duration(steps=5), grid=c.duration(steps=10)),
        stores=str(Path(root) / "stores"),
    )
