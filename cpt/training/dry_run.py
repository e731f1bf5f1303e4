"""What a run would take on a machine that is only named: compiled for it where that is possible, else estimated."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from cpt.errors import RunError
from cpt.models.spec import flops_per_token
from cpt.plan import RunPlan
from cpt.reports.plan_table import flop_text
from cpt.training.memory import GB, device_memory, size_text
from cpt.training.mesh import mesh_line
from cpt.training.topologies import Topology, topology


class CannotCompile(Exception):
    """Why nothing can be compiled here for a topology, in words."""


def topology_lines(plan: RunPlan, name: str) -> Iterator[str]:
    """Lines on what `plan` would take on the machine called `name`; the last ones come when the compiler is done.

    Raises:
      ConfigError: no such machine, or the run's mesh, rows, heads or length do not fit it.
    """
    machine = topology(name)
    devices = machine.devices
    slices = f" in {machine.slices} slices" if machine.slices > 1 else ""
    yield f"topology {name}: {devices.count} x {devices.kind}{slices}"
    yield mesh_line(plan.spec, devices)
    started = time.monotonic()
    try:
        found = devices_of(machine)
    except CannotCompile as e:
        yield f"not compiled: {e}; the memory above is an estimate from the config"
        return
    yield f"compiling one update for {devices.count} x {devices.kind}; this takes minutes for a deep model"
    yield from compiled_lines(plan, machine, found, started)


def compiled_lines(plan: RunPlan, machine: Topology, found: list[Any], started: float) -> Iterator[str]:
    """The same from the compiler."""
    from cpt.training.compiled import compile_step
    from cpt.training.sharding import run_attention_line, run_mesh

    mesh = run_mesh(plan.spec, found, machine.devices)
    yield run_attention_line(plan.spec, mesh)
    facts = compile_step(plan, mesh)
    limit = device_memory(machine.family.kind)
    total = facts.arguments + facts.temporary
    over = "; it does not fit" if limit and total > limit and machine.family.platform != "cpu" else ""
    yield (
        f"compiled in {time.monotonic() - started:.0f} s · per device: state and batch {size_text(facts.arguments)}, "
        f"while a step runs {size_text(facts.temporary)} more = {size_text(total)} of {limit / GB:.0f} GB{over}"
    )
    spec = plan.spec
    tokens = spec.batch.sequences // spec.batch.accumulate * spec.batch.length
    model_flops = tokens * flops_per_token(spec.model, spec.batch.length) / machine.devices.count
    yield (
        f"per device and micro-batch: {flop_text(facts.flops)} as the compiler counts them, {flop_text(model_flops)} "
        "of the model"
    )
    count, size = Counter(c.kind for c in facts.collectives), Counter[str]()
    for c in facts.collectives:
        size[c.kind] += c.bytes
    listed = ", ".join(f"{kind} {n} ({size_text(size[kind])})" for kind, n in sorted(count.items()))
    yield f"collectives in the program: {listed or 'none'}"


def devices_of(machine: Topology) -> list[Any]:
    """The devices of a machine that need not be there.

    Raises:
      CannotCompile: nothing installed here can compile for it.
    """
    if machine.family.platform == "gpu":
        raise CannotCompile("jaxlib compiles for GPUs only where there is one")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # what is compiled for is not what is used
    if machine.family.platform == "cpu":
        return _simulated(machine.devices.count)
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else libtpu asks the cloud which machine this is
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no TPU is touched, so nobody has to wait for one
    from jax.experimental import topologies

    family = machine.name.split("x")[-1].split("-")[0].replace("litepod", "e")
    named = f"{family}:{'x'.join(map(str, machine.torus))}"
    options = {"num_slices": machine.slices} if machine.slices > 1 else {}
    if family == "v4":
        options["chip_config_name"] = "megacore"  # the two cores of a chip as one device, as on Cloud machines
    try:
        found = list(topologies.get_topology_desc(named, platform="tpu", **options).devices)
    except Exception as e:  # libtpu is missing (RuntimeError), or does not know the topology (JaxRuntimeError)
        missing = "" if find_spec("libtpu") else "that needs libtpu, pip install 'cpt[tpu]': "
        raise CannotCompile(f"{missing}{str(e).splitlines()[0][:160]}") from e
    if len(found) != machine.devices.count:
        raise CannotCompile(f"libtpu shows {len(found)} devices for {named}, not {machine.devices.count}")
    return found


def _simulated(count: int) -> list[Any]:
    """`count` devices of this CPU; raises RunError where JAX runs already with fewer."""
    import jax

    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as e:
        raise RunError(
            f"--dry_run=cpu-{count}: JAX has started with other devices; run it as a command of its own"
        ) from e
    return jax.devices()[:count]
