"""What probes share: rows on the devices in passes of one size, some positions of them, options that are checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from cpt.errors import ConfigError
from cpt.evaluators.losses import segments, spread
from cpt.evaluators.probes._base import ProbeContext

ROWS_PER_PASS = 16  # where no plan says how many rows of a forward pass fit
ROW_AXES = ("data", "fsdp")  # of a mesh; over the others, rows are whole


def count(value: Any, where: str, least: int = 1) -> int:
    """`value`, a whole number of at least `least`.

    Raises:
      ConfigError: it is not that; the line names `where`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{where}: {value!r} must be a whole number of at least {least}")
    return value


def rows_per_pass(context: ProbeContext) -> int:
    """Rows of one forward pass, as for the losses of the run."""
    return ROWS_PER_PASS if context.plan is None else context.plan.spec.evaluation.rows_per_pass


def end_of_document(context: ProbeContext) -> int | None:
    """The id that ends a document where the run keeps attention inside documents, else None."""
    masks = context.plan is not None and context.plan.spec.batch.mask_documents
    return context.tokenizer.eod_id if masks and context.tokenizer is not None else None


def row_sharding(params: Any, axis: int = 0) -> tuple[Sharding, int]:
    """How rows, numbered along `axis`, lie beside `params`, and over how many devices they are split."""
    sharding = jax.tree.leaves(params)[0].sharding
    if not isinstance(sharding, NamedSharding):
        return sharding, 1
    mesh = sharding.mesh
    axes = tuple(a for a in ROW_AXES if a in mesh.shape)
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, axes)), math.prod(mesh.shape[a] for a in axes)


def in_passes(params: Any, rows: int, arrays: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Arrays whose first axis counts rows as `[passes, rows, ...]` beside `params`, padded at the end with zeros.

    Every process gives all rows. The transfer is explicit: a transfer guard of the caller lets it through.

    Args:
      rows: of a pass, rounded up to whole rows per device.
    """
    sharding, devices = row_sharding(params, axis=1)
    rows = -(-rows // devices) * devices

    def put(x: np.ndarray) -> jax.Array:
        padded = np.pad(x, [(0, -len(x) % rows), *[(0, 0)] * (x.ndim - 1)]).reshape(-1, rows, *x.shape[1:])
        places = sharding.addressable_devices_indices_map(padded.shape).items()
        shards = [jax.device_put(padded[i], device) for device, i in places]
        return jax.make_array_from_single_device_arrays(padded.shape, sharding, shards)

    return {name: put(x) for name, x in arrays.items()}


class Positions:
    """`n` token positions, evenly spread over the rows of a set and always the same ones; all if there are no more.

    Args:
      tokens_RxL: the rows.
      n: how many positions.
      rows: of one pass.
      end_of_document: as of the model's training, see `end_of_document`.
    """

    def __init__(self, tokens_RxL: np.ndarray, n: int, rows: int, end_of_document: int | None = None):
        n_rows, length = tokens_RxL.shape
        self.n, self._rows, self._end = min(n, n_rows * length), rows, end_of_document
        row_N, column_N = np.divmod(spread(self.n, n_rows * length), length)
        rank_N = np.arange(self.n) - np.searchsorted(row_N, row_N)  # among the positions of its row
        columns_RxK = np.zeros((n_rows, rank_N.max() + 1), np.int32)
        columns_RxK[row_N, rank_N] = column_N
        taken_RxK = np.zeros(columns_RxK.shape, bool)
        taken_RxK[row_N, rank_N] = True
        self._arrays = {"tokens": tokens_RxL.astype(np.int32), "columns": columns_RxK}
        self._taken_N = np.flatnonzero(taken_RxK)

    def put(self, params: Any) -> dict[str, jax.Array]:
        """The rows and which of their positions are taken, beside `params`: the argument of `gather`."""
        return in_passes(params, self._rows, self._arrays)

    def gather(self, states: Callable[[jax.Array, jax.Array | None], Any], placed: Mapping[str, jax.Array]) -> Any:
        """The states at the positions, float32 `[n, ...]`; pass by pass, so that those of all rows never exist at once.

        Args:
          states: `(tokens_RxL, segments_RxL)` to an array `[R, L, ...]`, or to a tree of them.
          placed: from `put`.
        """

        def one_pass(rows: Mapping[str, jax.Array]) -> Any:
            tokens_RxL = rows["tokens"]
            found = states(tokens_RxL, None if self._end is None else segments(tokens_RxL, self._end))
            take = jax.vmap(lambda state_LxX, columns_K: state_LxX[columns_K])
            return jax.tree.map(lambda x: take(x, rows["columns"]).astype(jnp.float32), found)

        gathered = jax.lax.map(one_pass, dict(placed))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:])[self._taken_N], gathered)
