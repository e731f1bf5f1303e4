"""A run directory as training would leave it, from formulas instead of a model: for tests of evaluators and report."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

TOKENS_PER_STEP = 2048
SEQUENCES = 64
SEQUENCE_TOKENS = 128


def write_run(
    path: Path,
    *,
    old: str = "pile",
    new: str = "slimpajama",
    replay: float = 0.05,
    depth: float = 0.44,
    lasting: float = 0.16,
    steps: int = 300,
    until: int | None = None,
    seed: int = 0,
) -> Path:
    """Two phases of `steps` steps: `old`, then `new` with a share `replay` of `old`. `until` stops the run early.

    The old set's loss rises by about `depth` + part of `lasting` soon after the switch and ends `lasting` above it.
    """
    path.mkdir(parents=True, exist_ok=True)
    until = 2 * steps if until is None else until
    names = {"old": old, "new": new}
    _dump(path / "plan.json", _plan(names, replay, steps, seed))
    _dump(path / "config.json", {"seed": seed, "model": {"kind": "gpt_neox", "layers": 4, "width": 128},
                                 "phases": {new: {"replay": {"of": old, "share": replay}}}})  # fmt: skip
    _dump(path / "environment.json", {"jax": "0.10.1", "device": "cpu", "host": "desk", "wall_s": 183.2,
                                      "commands": ["python -m cpt.main --config=configs/demo.py"]})  # fmt: skip
    _dump(path / "ledger.json", _ledger(names, replay, steps, until))
    rng = np.random.default_rng(seed)
    _metrics(path / "metrics.jsonl", names, replay, steps, until, rng)
    _evals(path, names, (depth, lasting, replay), steps, until, rng)
    return path


def old_loss(step: int, steps: int, depth: float, lasting: float) -> float:
    """Falls in phase 1; in phase 2 a bump that is over soon and a rise that stays."""
    if step <= steps:
        return 3.4 + 1.9 * math.exp(-step / (steps / 5)) - 1.9 * math.exp(-5)
    u = (step - steps) / steps
    return 3.4 + depth * (u / 0.04) * math.exp(1 - u / 0.04) + lasting * (1 - math.exp(-u / 0.1))


def new_loss(step: int, steps: int, replay: float = 0.0) -> float:
    """Hardly changes in phase 1, rises a little while the learning rate re-warms, then is learned."""
    if step <= steps:
        return 4.9 - 0.1 * step / steps
    u = (step - steps) / steps
    return (
        2.4
        + 0.1 * replay
        + (2.4 - 0.1 * replay) * math.exp(-u / 0.12)
        + 0.25 * (u / 0.01) * math.exp(1 - u / 0.01) * (u < 0.2)
    )


def eval_steps(steps: int) -> list[int]:
    """Every 50 in phase 1; 0, 1, 2, 4, ..., 64 and every 25 in phase 2."""
    first = range(0, steps, 50)
    second = {steps, *(steps + 2**k for k in range(7) if 2**k < steps), *range(steps, 2 * steps + 1, 25)}
    return [*first, *sorted(second)]


def _plan(names: dict[str, str], replay: float, steps: int, seed: int) -> dict:
    tokens = steps * TOKENS_PER_STEP
    of = {"of": names["old"], "share": replay, "range": "seen", "order": "shuffled", "accounting": "fixed_total"}
    common = {"steps": steps, "tokens": tokens, "tokens_per_step": TOKENS_PER_STEP}
    return {
        "name": "demo", "hash": "3f9c2a71", "seed": seed, "total_steps": 2 * steps, "total_tokens": 2 * tokens,
        "phases": [
            {"name": names["old"], "first_step": 0, "first_token": 0, **common, "mix": {names["old"]: 1.0},
             "replay": None, "lr": "ramp 3 > cosine 1e-3..1e-4", "optimizer": "fresh"},
            {"name": names["new"], "first_step": steps, "first_token": tokens, **common,
             "mix": {names["new"]: 1 - replay}, "replay": {**of, "max_repeats": 1} if replay else None,
             "lr": "re-warm 3 > cosine 1e-3..1e-4", "optimizer": "reset"},
        ],
        "sets": {n: {"source": n, "tags": [k], "learned_in": n} for k, n in names.items()},
    }  # fmt: skip


def _ledger(names: dict[str, str], replay: float, steps: int, until: int) -> dict:
    total = steps * TOKENS_PER_STEP
    rows = [(names["old"], names["old"], "new", total, min(1.0, until / steps))]
    second = min(1.0, max(0.0, until / steps - 1))
    rows.append((names["new"], names["new"], "new", round(total * (1 - replay)), second))
    if replay:
        rows.append((names["new"], names["old"], "replay", round(total * replay), second))
    phases = [
        {"phase": p, "source": s, "role": r, "tokens_planned": t, "tokens_consumed": round(t * done),
         "unique_tokens": round(t * done), "epochs": 0.31 * done, "flops": 6.0e5 * t * done}
        for p, s, r, t, done in rows
    ]  # fmt: skip
    totals = {"tokens_consumed": sum(p["tokens_consumed"] for p in phases), "flops": sum(p["flops"] for p in phases)}
    return {"exact": True, "step": until, "phases": phases, "totals": totals}


def _metrics(
    path: Path, names: dict[str, str], replay: float, steps: int, until: int, rng: np.random.Generator
) -> None:
    rows = []
    for step in range(1, until + 1):
        second, u = step > steps, (step - 1) % steps
        lr = 1e-3 * min(1.0, (u + 1) / 3) if u < 3 else 1e-4 + 4.5e-4 * (1 + math.cos(math.pi * u / steps))
        share = (
            {names["new"]: 1 - replay, **({names["old"]: replay} if replay else {})} if second else {names["old"]: 1.0}
        )
        values = {names["old"]: old_loss(step, steps, 0.4, 0.1), names["new"]: new_loss(step, steps)}
        losses = {n: values[n] + rng.normal(0, 0.05) for n in share}
        row = {"step": step, "tokens": step * TOKENS_PER_STEP, "phase": names["new" if second else "old"], "lr": lr,
               "loss": sum(share[n] * losses[n] for n in share), "grad_norm": 1 + 0.1 * rng.random(),
               "tokens_per_second": 13_800 + 250 * rng.normal(), "data_wait_s": 0.001 + 0.0005 * rng.random(),
               "step_s": 0.148}  # fmt: skip
        row |= {f"source/{n}/loss": losses[n] for n in share}
        row |= {f"source/{n}/tokens": round(share[n] * TOKENS_PER_STEP) for n in share}
        rows.append(row)
    _dump_lines(path, rows)


def _evals(
    path: Path,
    names: dict[str, str],
    shape: tuple[float, float, float],
    steps: int,
    until: int,
    rng: np.random.Generator,
) -> None:
    hardness_S = rng.normal(0, 0.4, SEQUENCES)
    hardness_S -= hardness_S.mean()
    depth, lasting, replay = shape
    rows, sequences = [], []
    for step in [s for s in eval_steps(steps) if s <= until]:
        for name in names.values():
            mean = old_loss(step, steps, depth, lasting) if name == names["old"] else new_loss(step, steps, replay)
            noise_S = rng.normal(0, 0.03, SEQUENCES)
            nats_S = SEQUENCE_TOKENS * (mean + hardness_S + noise_S - noise_S.mean())
            scored, size = SEQUENCES * SEQUENCE_TOKENS, 4 * SEQUENCES * SEQUENCE_TOKENS
            phase = names["new" if step >= steps else "old"]
            rows.append({"step": step, "tokens": step * TOKENS_PER_STEP, "phase": phase, "set": name,
                         "nats": nats_S.sum(), "tokens_scored": scored, "bytes": size, "loss": nats_S.sum() / scored,
                         "bits_per_byte": nats_S.sum() / size / math.log(2), "checkpoint": None})  # fmt: skip
            sequences.append({"step": step, "set": name, "checkpoint": None, "nats": nats_S.tolist(),
                              "tokens": [SEQUENCE_TOKENS] * SEQUENCES})  # fmt: skip
    _dump_lines(path / "eval.jsonl", rows)
    _dump_lines(path / "eval_sequences.jsonl", sequences)


def _dump(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def _dump_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
