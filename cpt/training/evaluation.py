"""What a run evaluates: its sets, in one compiled program for those of the grid and one for those of the edges, and its
probes. The loop and `cpt.evaluate` share it, so that both give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from cpt.errors import RunError
from cpt.evaluators.losses import SetLosses, take_set
from cpt.evaluators.probes._base import Probe, ProbeContext
from cpt.models.base import Model
from cpt.plan import AT, RunPlan
from cpt.registry import find
from cpt.training.feed import Data, end_of_document

Params = Any
Row = dict[str, Any]


class Evaluation:
    """The sets and probes of a plan, ready to be asked.

    Args:
      losses: the program of each kind of sets, `grid` and `edges`; none where a plan has no such sets.
      probes: by name.
      narrow: parameters in the dtypes that the forward pass takes them in (`Model.narrow`).
    """

    def __init__(
        self,
        losses: Mapping[str, SetLosses],
        probes: Mapping[str, Probe],
        narrow: Callable[[Params], Params] = lambda params: params,
    ):
        self.losses, self.probes, self.narrow = losses, probes, narrow

    def __call__(self, params: Params, kinds: Iterable[str]) -> dict[str, jax.Array]:
        """nats_PxR of the sets of these kinds, for `rows`; does not wait for them."""
        if not (kinds := tuple(kinds)):
            return {}
        params = self.narrow(params)  # a snapshot is already, and must give the same bits
        nats = {kind: self.losses[kind](params) for kind in kinds}
        # CPU devices run programs that do not depend on each other side by side, and what was made narrow depends on
        # nothing that an update gives up: two processes could each wait in a sum that the other has not begun.
        return jax.block_until_ready(nats) if jax.process_count() > 1 and jax.default_backend() == "cpu" else nats

    def rows(self, nats: Mapping[str, np.ndarray]) -> Iterator[tuple[Row, Row]]:
        """The columns of `eval.jsonl` and `eval_sequences.jsonl` that follow from the nats, one pair per set."""
        for kind, losses in self.losses.items():
            if kind in nats:
                yield from losses.rows(nats[kind])

    def origin(self) -> dict[str, dict[str, list]]:
        """What `eval_sets.json` holds."""
        return {name: said for losses in self.losses.values() for name, said in losses.origin().items()}

    def probe(self, name: str, params: Params, step: int) -> dict[str, Any]:
        """The values of a probe after `step` updates; does not wait for those that are still computed.

        Raises:
          RunError: it gave no mapping of names to numbers.
        """
        # Probes are other people's code, too, and asked seldom: what they move between host and devices is theirs.
        with jax.transfer_guard("allow"):
            values = self.probes[name](params, step)
        if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
            raise RunError(f"evaluation.probes.{name}: must give a mapping of names to numbers, gave {values!r}")
        return dict(values)


def build_evaluation(
    plan: RunPlan,
    data: Data,
    model: Model,
    batch: NamedSharding,
    batch_of: Callable[[int], dict[str, np.ndarray]] | None = None,
    params_at: Callable[[int], Params] | None = None,
) -> Evaluation:
    """The evaluation of `plan` on its opened `data`.

    Args:
      batch: sharding of a batch, whose axes split the rows of a pass.
      batch_of, params_at: of the probes, see `ProbeContext`.

    Raises:
      DataError: a set has no row to score.
      ConfigError: a probe does not know an option.
    """
    spec = plan.spec
    token_bytes = data.tokenizer.token_bytes() if data.tokenizer is not None else None
    taken = {
        name: take_set(name, data.sources[s.source], s.sequences, spec.batch.length, token_bytes)
        for name, s in spec.evaluation.sets.items()
    }
    losses = {}
    for kind in AT:
        if own := [taken[name] for name, s in spec.evaluation.sets.items() if s.at == kind]:
            losses[kind] = SetLosses(
                model.on(batch.mesh), own, spec.evaluation.rows_per_pass, batch, end_of_document(plan, data)
            )
    windows = {name: s.windows_RxM for name, s in taken.items()}
    probes = {}
    for name, probe in spec.evaluation.probes.items():
        where = f"evaluation.probes.{name}"
        make = find("cpt.evaluators.probes", probe.kind, f"{where}.kind")
        probes[name] = make(
            ProbeContext(model, probe.options, where, windows, data.tokenizer, plan, batch_of, params_at)
        )
    return Evaluation(losses, probes, narrowing(model))


def narrowing(model: Model) -> Callable[[Params], Params]:
    """What gives parameters in the dtypes that the forward pass takes them in, a program of its own."""
    if model.spec.compute_dtype == "float32":
        return lambda params: params
    return jax.jit(partial(model.narrow, embedding=True))


def without_probes(plan: RunPlan) -> RunPlan:
    """`plan`, for models that are at no step of a run."""
    return replace(plan, spec=replace(plan.spec, evaluation=replace(plan.spec.evaluation, probes={})))
