"""One optimizer update as a pure function: `(state, batch, lr, multipliers_K, extra) -> (state, sums)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cpt.models.base import Model
from cpt.models.layout import alone_on_cpu
from cpt.objectives.cross_entropy import weighted_sums
from cpt.objectives.linear_cross_entropy import linear_cross_entropy
from cpt.optimizers.clipping import global_norm
from cpt.training.state import State, Sums


def jit_train_step(
    model: Model,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    shardings: tuple[Any, ...],
    accumulate: int,
    z_loss: float = 0.0,
) -> Any:
    """`make_train_step` for `mesh`: jitted, the state donated and left where it lay, the sums on every device.

    Args:
      shardings: of each argument; what comes from the host is put there by the program.
    """
    step = make_train_step(model.on(mesh), tx, accumulate, z_loss)
    out_shardings = shardings[0], NamedSharding(mesh, PartitionSpec())
    return jax.jit(step, donate_argnums=0, in_shardings=shardings, out_shardings=out_shardings)


def make_train_step(
    model: Model, tx: optax.GradientTransformation, accumulate: int = 1, z_loss: float = 0.0
) -> Callable[[State, dict[str, jax.Array], jax.Array, jax.Array], tuple[State, Sums]]:
    """The update, to be jitted with the state donated.

    The learning rate, the loss multiplier of each column and, in `extra`, beta2 and weight decay where they vary and
    the limits of a spike, are arguments: they are the business of plan and guard. The objective is
    `sum(multiplier * (nll + z_loss * logsumexp^2)) / tokens`; with multipliers of 1 and without `z_loss` it is plain
    cross-entropy, bit for bit.

    Args:
      model: gives hidden states and the output matrix.
      tx: optimizer without a learning rate.
      accumulate: micro-batches per update; their gradients are added in float32.
      z_loss: as in `linear_cross_entropy`.
    """

    def loss(params: Any, micro: dict[str, jax.Array], multipliers_K: jax.Array, denominator: jax.Array):
        tokens_BxL, source_B = micro["tokens_BxL"], micro["source_B"]
        hidden_BxLxD = model.apply(params, tokens_BxL, micro.get("segments_BxL"))
        weights_BxL = micro["weights_BxL"] * multipliers_K[source_B][:, None]
        mean, nll_BxL = linear_cross_entropy(
            hidden_BxLxD, model.head(params), micro["targets_BxL"], weights_BxL, denominator, z_loss, model.mesh
        )
        nats_K, tokens_K = weighted_sums(nll_BxL, micro["weights_BxL"], source_B, multipliers_K.shape[0])
        return mean, (nats_K, tokens_K.astype(jnp.int32))

    value_and_grad = jax.value_and_grad(loss, has_aux=True)
    tx = optax.with_extra_args_support(tx)
    alone = alone_on_cpu(model.mesh)

    def gradients(params: Any, batch: dict[str, jax.Array], multipliers_K: jax.Array):
        # Tokens, not weights: the multipliers are normalised already, by the plan. Known before the forward pass, so
        # that every micro-batch is divided by the whole batch.
        denominator = jnp.sum(batch["weights_BxL"])
        if accumulate == 1:
            return value_and_grad(params, batch, multipliers_K, denominator)
        # Row i goes to micro-batch i % accumulate: each device keeps its own rows, nothing moves.
        micro_AxB = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)

        narrow = model.narrow(params)  # once, not once per micro-batch

        def add(total: Any, micro: dict[str, jax.Array]):
            value, grads = value_and_grad(narrow, micro, multipliers_K, denominator)
            return jax.tree.map(lambda sum, x: sum + x.astype(sum.dtype), total, (value, grads)), None

        first = jax.tree.map(lambda x: x[0], micro_AxB)
        shapes = jax.eval_shape(value_and_grad, params, first, multipliers_K, denominator)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.scan(add, zeros, micro_AxB)[0]

    def train_step(
        state: State, batch: dict[str, jax.Array], lr: jax.Array, multipliers_K: jax.Array, extra: dict | None = None
    ):
        extra, asked_Dx2 = dict(extra or {}), batch.get("asked_Dx2")
        limits = extra.pop("loss_limit", jnp.inf), extra.pop("norm_limit", jnp.inf)
        rows = {name: x for name, x in batch.items() if name != "asked_Dx2"}
        (objective, (nats_K, tokens_K)), grads = gradients(state.params, rows, multipliers_K)
        grad_norm = global_norm(grads, alone)

        def changed() -> State:
            updates, opt_state = tx.update(grads, state.opt_state, state.params, grad_norm=grad_norm, **extra)
            return State(jax.tree.map(lambda p, u: p - lr * u, state.params, updates), opt_state)

        finite = jnp.isfinite(objective) & jnp.isfinite(grad_norm)
        spike = finite & ((objective > limits[0]) | (grad_norm > limits[1]))
        # What is not applied leaves no trace: neither in the parameters nor in the moments.
        applied = finite & ~spike
        if alone:
            # Choosing number by number, XLA on CPU first copies the moments.
            new = jax.lax.cond(applied, changed, lambda: state)
        else:
            new = jax.tree.map(lambda a, b: jnp.where(applied, a, b), changed(), state)
        asked_2 = None if asked_Dx2 is None else asked_Dx2.max(axis=0)
        return new, Sums(nats_K, tokens_K, objective, grad_norm, finite, spike, asked_2)

    return train_step
