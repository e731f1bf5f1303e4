"""What a run reads: its opened data, checked against the plan, and the batches that come of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cpt.data.decisions import Decision
from cpt.data.ledger import Ledger
from cpt.data.loader import Batches, start_at
from cpt.data.mix import MixPlan
from cpt.errors import DataError
from cpt.plan import RunPlan
from cpt.training.processes import here


@dataclass(frozen=True)
class Data:
    """The opened data of a run: sources by name (each with `.train`, `.validation`, `.epochs`), and the tokenizer."""

    sources: Mapping[str, Any]
    tokenizer: Any


def check_data(plan: RunPlan, data: Data) -> MixPlan:
    """The data plan; raises DataError for a source that runs out, ids that exceed the model's vocabulary, documents
    that are to be masked but whose ends nobody knows.
    """
    spec = plan.spec
    end_of_document(plan, data)
    if data.tokenizer is not None and data.tokenizer.vocab_size > spec.model.vocab_size:
        raise DataError(
            f"tokenizer: its {data.tokenizer.vocab_size} ids exceed model.vocab_size={spec.model.vocab_size}; "
            "raise model.vocab_size"
        )
    for name, source in data.sources.items():
        if (largest := source.train.max_id()) >= spec.model.vocab_size:
            raise DataError(
                f"sources.{name}: token id {largest} exceeds model.vocab_size={spec.model.vocab_size}; "
                "raise model.vocab_size or prepare the store with the model's tokenizer"
            )
    rows = {name: source.train.rows(spec.batch.length) for name, source in data.sources.items()}
    return MixPlan(plan, rows, {name: source.epochs for name, source in data.sources.items()})


def identity(data: Data, meta: Mapping[str, Any] | None) -> dict[str, Any]:
    """Which data a run trains on, for its checkpoints: `fingerprints` of the sources and the hash of the `tokenizer`.

    Args:
      meta: of the checkpoint that a run goes on from; None for a new one.

    Raises:
      DataError: the run would go on with other data than it began with.
    """
    now = {name: source.train.fingerprint for name, source in data.sources.items()}
    for name, before in (meta or {}).get("fingerprints", {}).items():
        if name in now and now[name] != before:
            raise DataError(
                f"sources.{name}: its store changed since this run's checkpoint ({before[:8]} -> {now[name][:8]}); "
                "restore the old store, or start a new run with another --workdir"
            )
    return {"fingerprints": now, "tokenizer": None if data.tokenizer is None else data.tokenizer.hash}


def end_of_document(plan: RunPlan, data: Data) -> int | None:
    """The id that ends a document, where attention is to stay inside documents; else None.

    Raises:
      DataError: `batch.mask_documents` without a tokenizer that could say where a document ends.
    """
    if not plan.spec.batch.mask_documents:
        return None
    if data.tokenizer is None or data.tokenizer.eod_id is None:
        raise DataError(
            "batch.mask_documents: no tokenizer says which id ends a document; name one with tokenizer.kind=file and "
            "tokenizer.path, or turn mask_documents off"
        )
    return data.tokenizer.eod_id


def decided_mix(plan: RunPlan, data: Data, mix: MixPlan, workdir: Path, step: int) -> MixPlan:
    """The data plan at `step`, with what the run in `workdir` has decided up to there; `mix` where nothing decides."""
    if not any(p.decides_every for p in plan.phases):
        return mix
    here().meet()  # the first process may cut the log: not while another one writes what it decided before
    plan.phases[0].decisions.load(workdir, step, cut=here().first)
    return check_data(plan, data)


def read_batches(
    plan: RunPlan,
    data: Data,
    ledger: Ledger,
    workdir: Path,
    losses_at: Callable[[int], Mapping[str, float]],
    step: int,
    rows: np.ndarray | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """The `rows` (all by default) of every batch from `step` on.

    Where a mixer with feedback has to decide before a batch, it does so from the losses of that step, notes it, and the
    data plan (the ledger's as well) is that of the decision from there on.

    Args:
      losses_at: waits for the evaluation of a step and gives the loss of every set.
    """
    used_s: deque[float] = deque()
    while step < plan.total_steps:
        phase = plan.phase_at(step)
        every, inside = phase.decides_every, step - phase.first_step
        made = phase.decisions
        if every and inside and inside % every == 0 and not any(d.step == step for d in made.made):
            losses = losses_at(step)
            log = workdir if here().first else None
            made.add(Decision(step, phase.name, inside, losses, phase.decide(losses)), log)
            ledger.mix = check_data(plan, data)
        # A round without a decision at its end ends with its phase; other phases are read in one go.
        stop = min(phase.end, step - inside % every + every) if every else _until_decision(plan, step)
        yield from start_at(host_batches(plan, data, ledger.mix, rows), step, stop=stop, used_s=used_s)
        step = stop


def _until_decision(plan: RunPlan, step: int) -> int:
    """The beginning of the next phase that decides, or the end."""
    return next((p.first_step for p in plan.phases if p.first_step > step and p.decides_every), plan.total_steps)


def host_batches(plan: RunPlan, data: Data, mix: MixPlan, rows: np.ndarray | None = None) -> Batches:
    """The `rows` (of this process; all by default) of every batch."""
    stores = {name: source.train for name, source in data.sources.items()}
    return Batches(mix, stores, rows, end_of_document(plan, data), plan.spec.model.vocab_size)
