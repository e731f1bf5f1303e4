"""The train step, compiled for devices that need not be there, and what the compiler says of it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from cpt.plan import RunPlan
from cpt.training.machine import make_machine

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "f64": 8}


@dataclass(frozen=True)
class Collective:
    """One collective operation of a compiled program.

    Attributes:
      kind: one of `KINDS`.
      shapes: dtype and dimensions of what it gives on one device.
    """

    kind: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def bytes(self) -> int:
        return sum(_ITEM_BYTES.get(dtype, 4) * math.prod(dims) for dtype, dims in self.shapes)


@dataclass(frozen=True)
class StepFacts:
    """What one update takes on each device.

    Attributes:
      arguments, temporary: bytes of the state and batch, and of what is alive while the step runs.
      flops: floating-point operations, as the compiler counts them; 0 where it does not.
      collectives: of the program, a loop's body once.
      calls_host: whether the program calls back into Python.
    """

    arguments: int
    temporary: int
    flops: float
    collectives: tuple[Collective, ...]
    calls_host: bool


def compile_step(plan: RunPlan, mesh: Mesh) -> StepFacts:
    """What the compiler says of the update of a run on `mesh`; as `compile_update`."""
    return facts(compile_update(plan, mesh))


def compile_update(plan: RunPlan, mesh: Mesh) -> jax.stages.Compiled:
    """Compile the update of a run for `mesh`, whose devices may be descriptions only; nothing is allocated."""
    return make_machine(plan, mesh).lower().compile()


def facts(compiled: Any) -> StepFacts:
    """What a `jax.stages.Compiled` says of itself."""
    memory, cost, text = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    cost = cost[0] if isinstance(cost, Sequence) else cost
    return StepFacts(
        arguments=memory.argument_size_in_bytes,
        temporary=memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes,
        flops=float((cost or {}).get("flops", 0.0)),
        collectives=tuple(collectives(text)),
        calls_host=bool(re.search(r"callback|outfeed|infeed|host_compute", text)),
    )


def collectives(text: str) -> list[Collective]:
    """The collective operations in the text of an HLO module.

    An asynchronous one counts where it starts; what it gives is then the last part of a tuple (operand, result, ...).
    """
    found = []
    for shape, kind, start in re.findall(rf"= (\(.*?\)|\S+) ({'|'.join(KINDS)})(-start)?\(", text):
        shapes = [(t, tuple(map(int, filter(None, d.split(","))))) for t, d in re.findall(r"(\w+)\[([\d,]*)\]", shape)]
        if start and kind in ("all-gather", "collective-permute") and shape.startswith("("):
            shapes = [s for s in shapes if s[1]][len([s for s in shapes if s[1]]) // 2 :]
        found.append(Collective(kind, tuple(shapes)))
    return found


def loop_bodies(text: str) -> list[str]:
    """The computations of an HLO module that run in its loops."""
    parts = dict(re.findall(r"^(?:ENTRY )?%?([\w.\-]+) \([^\n]*\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL))
    found, open_ = set(), re.findall(r"body=%?([\w.\-]+)", text)
    while open_:
        name = open_.pop()
        if name in parts and name not in found:
            found.add(name)
            open_ += re.findall(r"%([\w.\-]+)", parts[name])
    return [parts[name] for name in sorted(found)]
