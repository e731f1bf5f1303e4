"""Cross-entropy of the output head in three matrix products: the gradient is formed where the logits are.

Differentiated as it stands, cross-entropy keeps the logits of a batch for its backward pass, or forms them a second
time there. But their gradient is softmax minus one-hot, times the weight of the token: all of it is known as soon as
the logits are. So each tile of tokens forms its logits, reduces them to losses, turns them into their gradient and
multiplies that into the gradients of states and head, before the next tile begins (Hsu et al. 2024, arXiv 2410.10989,
section 3.2). What the backward pass has left to do is to scale both by one number.

Logits, sums, and the gradient of the head over all tiles are float32; what the products read is in the compute dtype.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from cpt.models.layout import PARAMETER_RULES, TOKEN_AXES, alone_on_cpu
from cpt.models.products import weight_gradient
from cpt.objectives.tiles import rows_per_tile

LANES = 128
"""Off the CPU the vocabulary of each device is padded to a multiple of this, as matrix units want it."""


def linear_cross_entropy(
    hidden_BxLxD: jax.Array,
    head_DxV: jax.Array,
    targets_BxL: jax.Array,
    weights_BxL: jax.Array,
    denominator: jax.Array | float = 1.0,
    z_loss: float = 0.0,
    mesh: Mesh | None = None,
    rows: int | None = None,
    lanes: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`sum(weight * (nll + z_loss * logsumexp^2)) / denominator` of `logits = hidden head`, and the nll of each token.

    Args:
      hidden_BxLxD: states after the final norm; their dtype is the dtype of the products.
      head_DxV: output matrix; cast to the dtype of `hidden_BxLxD`, while its gradient is summed in float32.
      targets_BxL: int ids in [0, V).
      weights_BxL: what each token counts: 0 for padding.
      denominator: number the sum is divided by; a constant, as far as gradients go.
      z_loss: factor of PaLM's term that keeps the normaliser near 1 (Chowdhery et al. 2022, arXiv 2204.02311, section
        5, took 1e-4); with 0 it is not computed.
      mesh: of `cpt.models.layout`, where the arrays lie on one. Each device then takes the tokens it has, over all its
        tiles, and the gradient of the head is added up over devices once. None leaves it to the partitioner.
      rows: tokens whose logits exist at once on one device; None takes `rows_per_tile`.
      lanes: the vocabulary of each device is padded to a multiple of this, with columns that count for nothing; None
        takes 1 on CPU and else `LANES`.

    Returns:
      objective: float32, differentiable by states, head and weights.
      nll_BxL: float32, nats per token, without `z_loss`. No gradient passes through it: for that there is
        `cpt.objectives.cross_entropy.cross_entropy`.
    """
    if lanes is None:
        platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
        lanes = 1 if platform == "cpu" else LANES
    spread = None if mesh is None else Spread.over(mesh, targets_BxL.size, head_DxV.shape)
    tokens, vocab = targets_BxL.size, head_DxV.shape[1]
    if spread is not None:
        tokens, vocab = tokens // spread.parts(spread.tokens), vocab // spread.parts((spread.vocab,))
    rows = min(tokens, rows or rows_per_tile(tokens, vocab, half=hidden_BxLxD.dtype.itemsize == 2))
    form = Form(float(z_loss), rows, lanes, spread, alone_on_cpu(mesh))
    given = hidden_BxLxD, head_DxV, targets_BxL, weights_BxL.astype(jnp.float32), jnp.asarray(denominator, jnp.float32)
    objective, nll_BxL = _objective(form, *given)
    return objective, jax.lax.stop_gradient(nll_BxL)


@dataclass(frozen=True)
class Spread:
    """How tokens and the head lie on a mesh.

    Attributes:
      tokens: axes that split the tokens.
      width, vocab: axis that splits each dimension of the head; None where it does not divide it.
    """

    mesh: Mesh
    tokens: tuple[str, ...]
    width: str | None
    vocab: str | None

    @classmethod
    def over(cls, mesh: Mesh, tokens: int, head: tuple[int, int]) -> Spread | None:
        """None where there is one device, or the tokens cannot be split evenly."""
        axes = tuple(axis for axis in TOKEN_AXES if axis in mesh.shape)
        if mesh.size == 1 or tokens % math.prod(mesh.shape[axis] for axis in axes):
            return None
        names = PARAMETER_RULES["embed"], PARAMETER_RULES["vocab"]
        sizes = zip(names, head, strict=True)
        split = [n if mesh.shape.get(n, 1) > 1 and size % mesh.shape[n] == 0 else None for n, size in sizes]
        return cls(mesh, axes, *split)

    def parts(self, axes: tuple[str | None, ...]) -> int:
        """Devices that these axes split something over."""
        return math.prod(self.mesh.shape.get(axis, 1) for axis in axes)


@dataclass(frozen=True)
class Form:
    """What of `linear_cross_entropy` is known while it is traced; `rows` and `lanes` of one device.

    Attributes:
      cpu: whether one CPU device computes it.
    """

    z_loss: float
    rows: int
    lanes: int
    spread: Spread | None
    cpu: bool


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _objective(form: Form, hidden_BxLxD, head_DxV, targets_BxL, weights_BxL, denominator):
    nll_BxL, loss_BxL = _over_devices(form, False, hidden_BxLxD, head_DxV, targets_BxL, weights_BxL)
    return jnp.sum(loss_BxL * weights_BxL) / denominator, nll_BxL


def _forward(form: Form, hidden_BxLxD, head_DxV, targets_BxL, weights_BxL, denominator):
    given = hidden_BxLxD, head_DxV, targets_BxL, weights_BxL / denominator
    nll_BxL, loss_BxL, slope_BxLxD, slope_DxV = _over_devices(form, True, *given)
    objective = jnp.sum(loss_BxL * weights_BxL) / denominator
    return (objective, nll_BxL), (slope_BxLxD, slope_DxV, loss_BxL / denominator)


def _backward(form: Form, slopes, cotangents):
    by_hidden_BxLxD, by_head_DxV, by_weights_BxL = ((cotangents[0] * x).astype(x.dtype) for x in slopes)
    return by_hidden_BxLxD, by_head_DxV, None, by_weights_BxL, None


_objective.defvjp(_forward, _backward)


def _over_devices(form: Form, slopes: bool, hidden_BxLxD, head_DxV, targets_BxL, weights_BxL):
    """nll_BxL, loss_BxL, and with `slopes` the gradients of `sum(weight * loss)` by states and head."""
    spread, own = form.spread, partial(_own_tokens, form, slopes)
    if spread is not None:
        tokens, head = PartitionSpec(spread.tokens), PartitionSpec(spread.width, spread.vocab)
        out = (tokens, tokens, tokens, head) if slopes else (tokens, tokens)
        own = jax.shard_map(
            own, mesh=spread.mesh, in_specs=(tokens, head, tokens, tokens), out_specs=out, check_vma=False
        )
    hidden_NxD = hidden_BxLxD.reshape(-1, hidden_BxLxD.shape[-1])
    head = head_DxV.astype(hidden_NxD.dtype)
    nll_N, loss_N, *slope = own(hidden_NxD, head, targets_BxL.reshape(-1), weights_BxL.reshape(-1))
    sums = nll_N.reshape(targets_BxL.shape), loss_N.reshape(targets_BxL.shape)
    if not slopes:
        return sums
    return *sums, slope[0].reshape(hidden_BxLxD.shape), slope[1].astype(head_DxV.dtype)


def _own_tokens(form: Form, slopes: bool, hidden_NxD, head_DxV, targets_N, weights_N):
    """nll_N, loss_N, and with `slopes` the gradients by states and head, of the tokens of one device."""
    spread = form.spread
    if spread is not None and spread.width is not None:
        head_DxV = jax.lax.all_gather(head_DxV, spread.width, axis=0, tiled=True)
    vocab = head_DxV.shape[1]
    head_DxV = jnp.pad(head_DxV, ((0, 0), (0, -vocab % form.lanes)))
    tile = partial(_tile, form, slopes, vocab)
    if form.rows == len(targets_N):
        nll_N, loss_N, *slope = tile(hidden_NxD, head_DxV, targets_N, weights_N)
    else:
        nll_N, loss_N, *slope = _over_tiles(tile, slopes, form.rows, hidden_NxD, head_DxV, targets_N, weights_N)
    if not slopes:
        return nll_N, loss_N
    slope_NxD, slope_DxV = slope[0], slope[1][:, :vocab]
    return (nll_N, loss_N, *(_summed(spread, slope_NxD, slope_DxV) if spread else (slope_NxD, slope_DxV)))


def _over_tiles(tile, slopes: bool, rows: int, hidden_NxD, head_DxV, targets_N, weights_N):
    """`tile` over pieces of `rows` tokens, the last one filled up with tokens that count for nothing."""
    tokens = len(targets_N)

    def cut(x_N):
        return jnp.pad(x_N, ((0, -tokens % rows), *[(0, 0)] * (x_N.ndim - 1))).reshape(-1, rows, *x_N.shape[1:])

    def step(total_DxV, piece):
        hidden_RxD, targets_R, weights_R = piece
        nll_R, loss_R, *slope = tile(hidden_RxD, head_DxV, targets_R, weights_R)
        if not slopes:
            return total_DxV, (nll_R, loss_R)
        return total_DxV + slope[1], (nll_R, loss_R, slope[0])

    start = jnp.zeros(head_DxV.shape if slopes else (), jnp.float32)
    total_DxV, out = jax.lax.scan(step, start, (cut(hidden_NxD), cut(targets_N), cut(weights_N)))
    return *(x.reshape(-1, *x.shape[2:])[:tokens] for x in out), total_DxV


def _tile(form: Form, slopes: bool, vocab: int, hidden_RxD, head_DxV, targets_R, weights_R):
    """nll_R, loss_R, and with `slopes` the gradients by states and head, of tokens whose logits are held together.

    Args:
      vocab: columns of the head that are no padding; of this device, where `spread.vocab` splits them.
    """
    axis = form.spread and form.spread.vocab
    logits_RxV = jnp.dot(hidden_RxD, head_DxV, preferred_element_type=jnp.float32)
    column_V = jnp.arange(head_DxV.shape[1])
    if len(column_V) > vocab:
        logits_RxV = jnp.where(column_V < vocab, logits_RxV, -jnp.inf)
    top_R = logits_RxV.max(axis=1)
    if axis is not None:
        top_R = jax.lax.pmax(top_R, axis)
    above_RxV = jnp.exp(logits_RxV - top_R[:, None])
    total_R = above_RxV.sum(axis=1)
    if axis is None:
        target_R = jnp.take_along_axis(logits_RxV, targets_R[:, None], axis=1)[:, 0]
    else:
        # The target is a column of one device; to the others it is none, not even one of their padding.
        targets_R = targets_R - vocab * jax.lax.axis_index(axis)
        targets_R = jnp.where(targets_R < vocab, targets_R, -1)
        target_R = jnp.where(targets_R[:, None] == column_V, logits_RxV, 0).sum(axis=1)
        target_R, total_R = jax.lax.psum(jnp.stack([target_R, total_R]), axis)
    logsumexp_R = top_R + jnp.log(total_R)
    nll_R = logsumexp_R - target_R
    loss_R = nll_R + form.z_loss * jnp.square(logsumexp_R) if form.z_loss else nll_R
    if not slopes:
        return nll_R, loss_R
    weighted_R = weights_R * (1 + 2 * form.z_loss * logsumexp_R) if form.z_loss else weights_R
    one_hot_RxV = targets_R[:, None] == column_V
    slope_RxV = above_RxV * (weighted_R / total_R)[:, None] - jnp.where(one_hot_RxV, weights_R[:, None], 0)
    slope_RxV = slope_RxV.astype(hidden_RxD.dtype)
    slope_RxD = jax.lax.dot_general(
        slope_RxV, head_DxV, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    ).astype(hidden_RxD.dtype)
    slope_DxV = weight_gradient(hidden_RxD, slope_RxV, form.cpu, jnp.float32)
    return nll_R, loss_R, slope_RxD, slope_DxV


def _summed(spread: Spread, slope_NxD, slope_DxV):
    """Gradients of one device's tokens and columns, added up over the devices that have others."""
    if spread.vocab is not None:
        slope_NxD = jax.lax.psum(slope_NxD, spread.vocab)
    if spread.width is not None:
        slope_DxV = jax.lax.psum_scatter(slope_DxV, spread.width, scatter_dimension=0, tiled=True)
    rest = tuple(axis for axis in spread.tokens if axis != spread.width and spread.mesh.shape[axis] > 1)
    return slope_NxD, jax.lax.psum(slope_DxV, rest) if rest else slope_DxV
