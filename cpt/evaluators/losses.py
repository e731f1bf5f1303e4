"""Loss of many fixed sets in one compiled program: the same rows in the same order at every evaluation.

All sets are laid end to end, padded to whole passes, and kept on the devices; one call returns the nats of every row.
Rows are summed per set on the host in float64, so a set's loss does not depend on what other sets there are.

The rows of a set lie evenly over its whole validation split. Its first rows would do for a loss, but they come from few
documents, and then neither the loss nor its interval says much about the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from cpt.errors import DataError
from cpt.models.base import Model
from cpt.objectives.cross_entropy import automatic_rows, cross_entropy


@dataclass(frozen=True)
class EvalSet:
    """Rows of one set.

    Attributes:
      name: what `eval.jsonl` calls it.
      windows_RxM: int32 rows of length + 1 tokens; the last `length` of each are scored.
      bytes_R: UTF-8 bytes of the scored text of each row; None where the tokenizer cannot say.
      rows_R, documents_R: number of each row in the validation split, and of the document that it begins in.
      domains_R: domain of that document, where the split has several; else None.
    """

    name: str
    windows_RxM: np.ndarray
    bytes_R: np.ndarray | None
    rows_R: np.ndarray
    documents_R: np.ndarray
    domains_R: list[str] | None = None


class SetLosses:
    """Call it with parameters; it returns the nats per row as an array on the devices, to be read later by `rows`.

    Args:
      model: gives hidden states and output matrix.
      sets: what to evaluate; all rows have the same length.
      rows_per_pass: rows of one forward pass, rounded up to whole rows per device.
      batch: sharding of a batch; its axes split the rows of a pass.
      end_of_document: id that ends a document; given, attention stays inside each document of a row, as in training
        with `batch.mask_documents`.
    """

    def __init__(
        self,
        model: Model,
        sets: list[EvalSet],
        rows_per_pass: int,
        batch: NamedSharding,
        end_of_document: int | None = None,
    ):
        self.sets = sets
        mesh, axes = batch.mesh, batch.spec[0]
        devices = int(np.prod([mesh.shape[a] for a in axes]))
        per_pass = -(-rows_per_pass // devices) * devices
        windows_RxM = np.concatenate([s.windows_RxM for s in sets])
        padding = -len(windows_RxM) % per_pass
        windows_PxRxM = np.pad(windows_RxM, ((0, padding), (0, 0))).reshape(-1, per_pass, windows_RxM.shape[1])
        spread = NamedSharding(mesh, PartitionSpec(None, axes))
        self._windows = jax.make_array_from_callback(windows_PxRxM.shape, spread, lambda i: windows_PxRxM[i])
        self._nats = jax.jit(
            _row_nats(model, devices, end_of_document), out_shardings=NamedSharding(mesh, PartitionSpec())
        )

    def __call__(self, params: Any) -> jax.Array:
        """nats_PxR of every row, padding rows included; does not wait for the result."""
        return self._nats(params, self._windows)

    def origin(self) -> dict[str, dict[str, list]]:
        """What `eval_sets.json` holds: where the rows of each set come from, which the intervals need to know."""
        return {
            s.name: {"rows": s.rows_R.tolist(), "documents": s.documents_R.tolist()}
            | ({} if s.domains_R is None else {"domains": s.domains_R})
            for s in self.sets
        }

    def rows(self, nats_PxR: np.ndarray) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """The columns of `eval.jsonl` and `eval_sequences.jsonl` that follow from the nats, one pair per set."""
        nats_R, out, first = np.asarray(nats_PxR).reshape(-1), [], 0
        for s in self.sets:
            mine = nats_R[first : first + len(s.windows_RxM)]
            first += len(s.windows_RxM)
            scored, nats = s.windows_RxM[:, 1:].size, float(mine.astype(np.float64).sum())
            n_bytes = None if s.bytes_R is None else int(s.bytes_R.sum())
            row = {
                "set": s.name,
                "nats": nats,
                "tokens_scored": scored,
                "bytes": n_bytes,
                "loss": nats / scored,
                "bits_per_byte": nats / (np.log(2) * n_bytes) if n_bytes else None,
            }
            per_row = scored // len(mine)
            out.append(
                (row, {"set": s.name, "nats": [float(f"{x:.7g}") for x in mine], "tokens": [per_row] * len(mine)})
            )
        return out


def _row_nats(model: Model, devices: int, end_of_document: int | None) -> Callable[[Any, jax.Array], jax.Array]:
    def nats(params: Any, windows_PxRxM: jax.Array) -> jax.Array:
        def one_pass(windows_RxM: jax.Array) -> jax.Array:
            tokens_RxL, targets_RxL = windows_RxM[:, :-1], windows_RxM[:, 1:]
            segments_RxL = None if end_of_document is None else segments(tokens_RxL, end_of_document)
            hidden_RxLxD = model.apply(params, tokens_RxL, segments_RxL)
            chunk = automatic_rows(tokens_RxL.size, model.spec.vocab_size, devices)
            return cross_entropy(hidden_RxLxD, model.head(params), targets_RxL, chunk).sum(axis=1)

        return jax.lax.map(one_pass, windows_PxRxM)

    return nats


def segments(tokens_RxL: jax.Array, end_of_document: int) -> jax.Array:
    """Number of the document, within its row, of each token; the end itself still belongs to its document."""
    ends_RxL = (tokens_RxL == end_of_document).astype(jnp.int32)
    return jnp.cumsum(ends_RxL, axis=1) - ends_RxL


def take_set(name: str, source: Any, sequences: int, length: int, token_bytes: np.ndarray | None) -> EvalSet:
    """`sequences` rows of a source's validation split, evenly spaced over all of it; every row if it has no more.

    Args:
      source: has `.validation`, a `TokenStore` or None.
      token_bytes: bytes of each token id, or None.

    Raises:
      DataError: the source has no validation split, or one that is too short for a single row.
    """
    available = source.validation.rows(length) if source.validation is not None else 0
    if not available:
        raise DataError(
            f"evaluation.sets.{name}: the validation split of source '{source.name}' holds no row of {length + 1} "
            f"tokens; prepare it with a larger validation share"
        )
    rows_R = spread(min(sequences, available), available)
    windows_RxM = source.validation.read_rows(rows_R, length)
    bytes_R = None if token_bytes is None else token_bytes[windows_RxM[:, 1:]].sum(axis=1)
    documents_R = source.validation.document_at(source.validation.first_token(rows_R, length))
    domains_R = source.validation.domain_of(documents_R)
    several = len(set(domains_R)) > 1
    return EvalSet(name, windows_RxM, bytes_R, rows_R, documents_R, domains_R if several else None)


def spread(n: int, available: int) -> np.ndarray:
    """`n` of the numbers 0..available-1, evenly spaced and the same at both ends; int64, increasing."""
    return (np.arange(n, dtype=np.int64) * 2 + 1) * available // (2 * n)
