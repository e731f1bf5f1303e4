"""Gradients of new and of replayed data in one batch: how strong each is, and whether they pull together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cpt.errors import ConfigError
from cpt.evaluators.losses import spread
from cpt.evaluators.probes._base import Probe, ProbeContext
from cpt.evaluators.probes._rows import end_of_document, in_passes, row_sharding
from cpt.models.base import Model, Params
from cpt.objectives.cross_entropy import automatic_rows, cross_entropy

Batch = Mapping[str, jax.Array]


def gradients(context: ProbeContext) -> Probe:
    """Norms and cosine of the gradients of new and of old data, of the batch of update `step`.

    The mechanism of the stability gap (De Lange et al. 2023, arXiv 2205.13452): right after a switch the parameters lie
    at a minimum of the old loss, whose gradient is then too small to hold against that of the new data; replay pulls
    back only after the damage is done. Each gradient is that of the mean cross-entropy of the rows of one role, without
    loss weights, so that neither the share nor the weight of replay enters its norm.

    Options:
      old: evaluation set whose rows stand for old data in a batch without replay, as many as a batch has at most.

    Values: `norm_new`, `norm_replay`, `cosine`. NaN for what a batch has no rows of, and where the run has ended.
    A call costs two gradients of a whole batch, or one where there is no old data.

    Raises:
      ConfigError: there is no such set, or no run to take batches from.
    """
    old = context.read(old=None)["old"]
    if context.batch is None or context.plan is None:
        raise ConfigError(f"{context.where}: 'gradients' reads the batches of a run, and there is none here")
    plan, batch_of, end = context.plan, context.batch, end_of_document(context)
    micro = plan.spec.batch.sequences // plan.spec.batch.accumulate
    stand_in = None if old is None else _rows_of(_windows(context, old), plan.spec.batch.sequences, end)
    measured = jax.jit(_measured(context.model, plan.spec.batch.accumulate))

    def probe(params: Params, step: int) -> dict[str, Any]:
        if step >= plan.total_steps:
            return dict.fromkeys(("norm_new", "norm_replay", "cosine"), math.nan)
        batch = dict(batch_of(step))
        is_replay_K = np.array([c.role == "replay" for c in plan.phase_at(step).columns])
        batch["replay_B"] = is_replay_K[batch.pop("source_B")].astype(np.float32)
        beside, _ = row_sharding(params)
        # A process has its own rows only, so it cannot know whether the batch has replay: the program finds out.
        with jax.transfer_guard("allow"):
            placed = {name: jax.make_array_from_process_local_data(beside, x) for name, x in batch.items()}
        return measured(params, placed, None if stand_in is None else in_passes(params, micro, stand_in))

    return probe


def _windows(context: ProbeContext, old: Any) -> np.ndarray:
    if old not in context.windows:
        context.windows_of(None)
        raise ConfigError(
            f"{context.where}.options.old: no evaluation set '{old}'  (sets: {', '.join(context.windows)})"
        )
    return context.windows[old]


def _rows_of(windows_RxM: np.ndarray, most: int, end: int | None) -> dict[str, np.ndarray]:
    """At most `most` rows, evenly spread, in the form of a batch."""
    rows_RxM = windows_RxM[spread(min(most, len(windows_RxM)), len(windows_RxM))].astype(np.int32)
    tokens_RxL, targets_RxL = rows_RxM[:, :-1], rows_RxM[:, 1:]
    rows = {"tokens_BxL": tokens_RxL, "targets_BxL": targets_RxL, "weights_BxL": np.ones(tokens_RxL.shape, np.float32)}
    if end is not None:
        ends_RxL = tokens_RxL == end
        rows["segments_BxL"] = (np.cumsum(ends_RxL, axis=1) - ends_RxL).astype(np.int32)
    return rows


def _measured(model: Model, accumulate: int) -> Callable[[Params, Batch, Batch | None], dict[str, jax.Array]]:
    def gradient(params: Params, passes_PxR: Batch) -> Params:
        """Gradient of the mean nats over all passes; their gradients are added one by one, as in training."""
        denominator = passes_PxR["weights_BxL"].sum()

        def loss(params: Params, rows: Batch) -> jax.Array:
            hidden_BxLxD = model.apply(params, rows["tokens_BxL"], rows.get("segments_BxL"))
            chunk = automatic_rows(rows["tokens_BxL"].size, model.spec.vocab_size)
            nll_BxL = cross_entropy(hidden_BxLxD, model.head(params), rows["targets_BxL"], chunk)
            return (nll_BxL * rows["weights_BxL"]).sum() / denominator

        def add(total: Params, rows: Batch) -> tuple[Params, None]:
            return jax.tree.map(jnp.add, total, jax.grad(loss)(params, rows)), None

        return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), dict(passes_PxR))[0]

    def measured(params: Params, batch: Batch, old: Batch | None) -> dict[str, jax.Array]:
        # Row i goes to pass i % accumulate, as in a training step: each device keeps its own rows.
        passes_PxR = {k: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1) for k, x in batch.items()}
        replay_PxRx1 = passes_PxR.pop("replay_B")[..., None]
        new = passes_PxR | {"weights_BxL": passes_PxR["weights_BxL"] * (1 - replay_PxRx1)}
        replay = passes_PxR | {"weights_BxL": passes_PxR["weights_BxL"] * replay_PxRx1}

        def no_data() -> Params:
            return jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params)

        instead = no_data if old is None else lambda: gradient(params, old)
        g_new = jax.lax.cond(new["weights_BxL"].sum() > 0, lambda: gradient(params, new), no_data)
        g_old = jax.lax.cond(replay["weights_BxL"].sum() > 0, lambda: gradient(params, replay), instead)
        norm_new, norm_old = jnp.sqrt(_dot(g_new, g_new)), jnp.sqrt(_dot(g_old, g_old))
        cosine = _dot(g_new, g_old) / (norm_new * norm_old)
        return {"norm_new": norm_new, "norm_replay": norm_old, "cosine": cosine}

    return measured


def _dot(a: Params, b: Params) -> jax.Array:
    return sum((x * y).sum() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
