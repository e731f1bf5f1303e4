"""New tokens are convex combinations of old ones, learned by skip-gram on new text (CW2V)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cpt.errors import ConfigError, DataError
from cpt.models.vocabulary._base import Fill, Matrices, Request, chunks, tracked
from cpt.models.vocabulary._weights import softmax

Pair = dict[str, np.ndarray]
"""The factors of one matrix: `left` [M, rank] and `right` [rank, K]."""

DEFAULTS = dict(
    rank=1024, epochs=3, learning_rate=0.005, weight_decay=0.01, window=1, pairs_per_step=4096, max_tokens=1_000_000
)


def convex_hull(request: Request) -> Fill:
    """Constrained word2vec (Mundra et al. 2024, arXiv 2407.05841).

    A new row is `softmax(A1 A2) W` with W the old rows of its matrix, which do not move: it lies in their convex hull.
    So a new token's logit is never above the largest of the old ones', whatever the hidden state, and what the model
    says greedily on old text stays what it was. A1 and A2 begin uniform on [0, 1); a model with a head of its own has
    a pair of them for each matrix. They are trained by skip-gram: the row of a token in the embedding predicts its
    neighbours' in the head by a softmax over all old and new tokens, with Adam and L2 decay.

    Options: `rank` (1024), `epochs` (3; 0 leaves the factors as they were drawn), `learning_rate` (0.005),
    `weight_decay` (0.01), `window` (1 token to each side), `pairs_per_step` (4096), `max_tokens` (1,000,000) read.

    Raises:
      ConfigError: no `text`, no such file, an option out of range.
      DataError: the text has no two tokens next to each other.
    """
    options = request.options(**DEFAULTS)
    for name in ("rank", "window", "pairs_per_step", "max_tokens"):
        if options[name] < 1:
            raise ConfigError(f"{request.where}options.{name}: {options[name]} is not at least 1")
    place_V = _places(request)
    pairs_Px2 = _pairs(request, options["window"], options["max_tokens"]) if options["epochs"] else None

    def fill(matrices: Matrices) -> Matrices:
        known = {name: old_VxD[request.known_K].astype(np.float32) for name, old_VxD in matrices.items()}
        factors = {name: _draw(request, name, options["rank"]) for name in matrices}
        if pairs_Px2 is not None and len(request.wanted_M):
            factors = _train(request, options, known, factors, place_V[pairs_Px2])
        return {name: _combine(factors[name], known[name]) for name in matrices}

    return fill


def _draw(request: Request, name: str, rank: int) -> Pair:
    rng, rows, columns = request.rng(name), len(request.wanted_M), len(request.known_K)
    left = rng.random((rows, rank), dtype=np.float32)
    return {"left": left, "right": rng.random((rank, columns), dtype=np.float32)}


def _combine(pair: Pair, known_KxD: np.ndarray) -> np.ndarray:
    """`softmax(A1 A2) W` in float64."""
    left, right = (np.asarray(pair[side], np.float64) for side in ("left", "right"))
    known_KxD = known_KxD.astype(np.float64)
    out_MxD = np.empty((len(left), known_KxD.shape[1]))
    for rows in chunks(len(left), "combining"):
        out_MxD[rows] = softmax(left[rows] @ right) @ known_KxD
    return out_MxD


def _places(request: Request) -> np.ndarray:
    """Where the row of each new id is among the K old tokens with the M new ones behind them; -1 for an unused id."""
    place_of_old = np.full(request.old.vocab_size, -1, np.int64)
    place_of_old[request.known_K] = np.arange(len(request.known_K))
    place_V = np.where(request.origin_V >= 0, place_of_old[request.origin_V], -1)
    place_V[request.wanted_M] = len(request.known_K) + np.arange(len(request.wanted_M))
    return place_V


def _pairs(request: Request, window: int, most: int) -> np.ndarray:
    """(token, neighbour) of the text in both directions, int64 `[P, 2]`; lines are texts of their own."""
    found, tokens = [np.empty((0, 2), np.int64)], 0
    for ids in _lines(request):
        ids = ids[: most - tokens].astype(np.int64)
        tokens += len(ids)
        for distance in range(1, window + 1):
            a, b = ids[:-distance], ids[distance:]
            found += [np.stack([a, b], 1), np.stack([b, a], 1)]
        if tokens >= most:
            break
    pairs_Px2 = np.concatenate(found)
    if not len(pairs_Px2):
        raise DataError(f"{request.spec.text}: no two tokens are next to each other in it; give text of the new kind")
    request.say(f"convex_hull: {len(pairs_Px2):,} pairs of {tokens:,} tokens")
    return pairs_Px2


def _lines(request: Request) -> Iterator[np.ndarray]:
    """The ids of each line of the text."""
    path = Path(request.required("text")).expanduser()
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise ConfigError(f"{request.where}text={request.spec.text}: no such file, or a folder without a .txt file")
    for file in files:
        try:
            with file.open(encoding="utf-8") as lines:
                for line in lines:
                    if text := line.rstrip("\n"):
                        yield request.new.encode_batch([text])[0]
        except UnicodeDecodeError as e:
            raise DataError(f"{file}: not UTF-8 text ({e}); convert it first") from e


def _train(
    request: Request, options: dict[str, float], known: Matrices, factors: dict[str, Pair], pairs_Px2: np.ndarray
) -> dict[str, Pair]:
    """The factors after the epochs of skip-gram; `pairs_Px2` are places."""
    decay, adam = optax.add_decayed_weights(options["weight_decay"]), optax.adam(options["learning_rate"])
    optimizer = optax.chain(decay, adam)  # the decay goes through the moments, as torch's Adam has it
    known, factors = jax.tree.map(jnp.asarray, (known, factors))
    state = optimizer.init(factors)
    rng, size = np.random.default_rng([request.spec.seed, 2]), min(options["pairs_per_step"], len(pairs_Px2))
    step = jax.jit(partial(_step, optimizer), donate_argnums=(0, 1))
    for epoch in range(options["epochs"]):
        order_P, losses = rng.permutation(len(pairs_Px2)), []
        for at in tracked(list(range(0, len(order_P) - size + 1, size)), f"epoch {epoch + 1}"):
            factors, state, loss = step(factors, state, known, pairs_Px2[order_P[at : at + size]])
            losses.append(loss)
        request.say(f"convex_hull: epoch {epoch + 1}, {np.mean(jax.device_get(losses)):.4f} nats per neighbour")
    return jax.device_get(factors)


def _step(optimizer: Any, factors: Any, state: Any, known: Any, pairs_Nx2: jax.Array) -> tuple[Any, Any, jax.Array]:
    loss, gradients = jax.value_and_grad(_loss)(factors, known, pairs_Nx2)
    updates, state = optimizer.update(gradients, state, factors)
    return optax.apply_updates(factors, updates), state, loss


def _loss(factors: dict[str, Pair], known: Matrices, pairs_Nx2: jax.Array) -> jax.Array:
    """Mean nats of a neighbour given a token, over all old and new tokens."""
    rows = {
        name: jnp.concatenate([known_KxD, jax.nn.softmax(f["left"] @ f["right"]) @ known_KxD])
        for (name, known_KxD), f in ((item, factors[item[0]]) for item in known.items())
    }
    centres_NxD = rows["input"][pairs_Nx2[:, 0]]
    logits_NxV = centres_NxD @ rows.get("output", rows["input"]).T
    return optax.softmax_cross_entropy_with_integer_labels(logits_NxV, pairs_Nx2[:, 1]).mean()
