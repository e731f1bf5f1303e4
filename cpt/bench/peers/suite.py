"""Ours beside a plain Flax trainer and Hugging Face on PyTorch: same weights, same tokens, turn by turn in one run."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cpt.bench.contention import Others
from cpt.bench.facts import commit
from cpt.bench.peers import environment
from cpt.bench.peers.talking import Peer, PeerFailed
from cpt.bench.timing import Step, figures, ratio
from cpt.models import base, convert
from cpt.models.spec import ModelSpec, flops_per_token

NAMES = ("ours", "plain_flax", "hf_torch")
ALIKE = 1e-5  # relative; losses of the same weights on the same rows


@dataclass(frozen=True)
class Shape:
    """What is trained: GPT-NeoX on random tokens.

    Attributes:
      layers, width, heads, vocab_size: of the model.
      sequences, length: rows of a batch and of the evaluation, and tokens of a row.
      dtype: of the computation; parameters are float32.
    """

    layers: int = 6
    width: int = 256
    heads: int = 4
    vocab_size: int = 4096
    sequences: int = 8
    length: int = 256
    dtype: str = "float32"

    @property
    def spec(self) -> ModelSpec:
        names = ("layers", "width", "heads", "vocab_size")
        return ModelSpec(**{n: getattr(self, n) for n in names}, context=self.length)


CPU = Shape()
SMALL = Shape(layers=1, width=16, heads=2, vocab_size=64, sequences=2, length=16)
PYTHIA_410M = Shape(24, 1024, 16, 50_304, 16, 2048, "bfloat16")


def bench_peers(
    shape: Shape,
    turns: int,
    python: str | None,
    home: Path | None,
    say: Callable[[str], None],
    names: tuple[str, ...] = NAMES,
    updates: int = 1,
) -> dict[str, Any]:
    """Step and evaluation times of each peer, and the ratios to ours.

    Args:
      turns: updates of each; after each, an evaluation of one batch.
      python: an interpreter with torch and transformers; None makes an environment in `home`, or in the user's cache.
      names: of the peers, ours first.
      updates: and evaluations, of a turn; several where a device works ahead of the host.
    """
    missing: dict[str, str] = {"jax_linear_attention": environment.why_no_jla()}
    pythons: dict[str, str] = {}
    if "hf_torch" in names:
        try:
            pythons["hf_torch"] = environment.peer_python(python, home, say)
        except environment.NoPeer as e:
            missing["hf_torch"] = str(e)
    with tempfile.TemporaryDirectory() as folder:
        setting = write_setting(Path(folder), shape)
        with ExitStack() as stack:
            peers = []
            for name in names:
                if name in missing:
                    continue
                try:
                    say(f"starting {name}")
                    peers.append(stack.enter_context(Peer(name, setting, pythons.get(name))))
                except PeerFailed as e:
                    missing[name] = str(e)
            if [p.name for p in peers][:1] != ["ours"]:
                raise PeerFailed(missing["ours"])
            heard = dict(measure(peers, turns, updates, missing, say))
    for name, why in missing.items():
        say(f"{name}: left out: {why}")
    return {"shape": asdict(shape), "turns": turns, "missing": missing, "commit": commit(), **told(shape, heard)}


def measure(
    peers: list[Peer], turns: int, updates: int, missing: dict[str, str], say: Callable[[str], None]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Let them take turns; yields for each that came through what it said and how long it took.

    One that fails on the way goes into `missing`, the others go on.
    """
    answers: dict[str, dict[str, list]] = {p.name: {"step": [], "evaluate": []} for p in peers}
    with Others([os.getpid(), *(p.pid for p in peers)]) as others:
        for turn in range(turns + 1):
            # At the first turn they evaluate before they train: at weights that are the same.
            for what in ("evaluate", "step") if turn == 0 else ("step", "evaluate"):
                for peer in [p for p in peers if p.name not in missing]:
                    try:
                        answers[peer.name][what].append(peer.ask(what, 1 if turn == 0 else updates))
                    except PeerFailed as e:
                        missing[peer.name] = str(e)
            say(f"turn {turn}/{turns}: " + ", ".join(f"{n} {_last(a):.0f} ms" for n, a in answers.items() if a["step"]))
    for peer in peers:
        if peer.name not in missing:
            heard = answers[peer.name]

            def steps(told: list[dict[str, Any]]) -> list[Step]:
                return [Step((a["end"] - a["begin"]) / updates, others.share(a["begin"], a["end"])) for a in told]

            timed = {what: steps(told[1:]) for what, told in heard.items()}  # the first turn compiles
            yield peer.name, {"facts": peer.facts, "timed": timed, "answers": heard}


def told(shape: Shape, heard: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Figures of each peer, ratios (theirs over ours: above 1 we are faster), and how far losses are apart.

    `ratio_cpu` is that of processor seconds: steadier where others use the machine as well, but threads that spin while
    they wait count as work.
    """
    tokens = shape.sequences * shape.length
    flops = {"step": tokens * flops_per_token(shape.spec, shape.length)}
    flops["evaluate"] = flops["step"] / 3
    out: dict[str, Any] = {"flops": flops, "peers": {}, "ratio": {}, "ratio_cpu": {}, "loss": {}}
    worked = {
        name: {what: float(np.median([a["cpu_s"] for a in told[1:]])) for what, told in said["answers"].items()}
        for name, said in heard.items()
    }
    for name, said in heard.items():
        one: dict[str, Any] = {
            "facts": said["facts"],
            "memory_bytes": max(a["memory"] for a in said["answers"]["step"]),
        }
        for what, steps in said["timed"].items():
            one[what] = figures(steps)
            one[what]["tokens_per_second"] = tokens / one[what]["median_s"]
            one[what]["gflops_per_second"] = flops[what] / one[what]["median_s"] / 1e9
            if name != "ours":
                out["ratio"].setdefault(what, {})[name] = ratio(heard["ours"]["timed"][what], steps)
                out["ratio_cpu"].setdefault(what, {})[name] = worked[name][what] / max(worked["ours"][what], 1e-9)
        out["peers"][name] = one
        evaluated = [a["loss"] for a in said["answers"]["evaluate"]]
        out["loss"][name] = {
            "evaluation": evaluated[0],
            "first_step": said["answers"]["step"][0]["loss"],
            "evaluation_at_the_end": evaluated[-1],
        }
    ours = out["loss"]["ours"]
    for said in out["loss"].values():
        said["apart"] = max(abs(said[k] / ours[k] - 1) for k in ("evaluation", "first_step"))
        said["apart_at_the_end"] = abs(said["evaluation_at_the_end"] / ours["evaluation_at_the_end"] - 1)
    out["same_loss"] = all(said["apart"] <= ALIKE for said in out["loss"].values())
    return out


def write_setting(folder: Path, shape: Shape, batches: int = 8, device: str = "any") -> Path:
    """Weights, tokens and hyper-parameters for all peers; returns the JSON file that names them."""
    rng = np.random.default_rng(0)
    params = base.build(shape.spec).init(jax.random.key(0))
    convert.write(folder / "model", shape.spec, params)
    rows = (batches, shape.sequences, shape.length + 1)
    np.save(folder / "rows.npy", rng.integers(0, shape.vocab_size, rows, np.int32))
    np.save(folder / "evaluation.npy", rng.integers(0, shape.vocab_size, rows[1:], np.int32))
    setting = {
        "model": str(folder / "model"),
        "rows": str(folder / "rows.npy"),
        "evaluation": str(folder / "evaluation.npy"),
        "sequences": shape.sequences,
        "length": shape.length,
        "dtype": shape.dtype,
        "device": device,
        "threads": max(len(Others().cores), 1),
        "lr": 1e-3,
        "b1": 0.9,
        "b2": 0.95,
        "eps": 1e-8,
        "weight_decay": 0.1,
        "clip": 1.0,
    }
    (folder / "setting.json").write_text(json.dumps(setting))
    return folder / "setting.json"


def _last(answers: dict[str, list]) -> float:
    return 1e3 * (answers["step"][-1]["end"] - answers["step"][-1]["begin"])
