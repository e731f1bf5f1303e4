"""How many devices lie along each axis of the mesh: what was asked for, what is chosen, what cannot be. Pure Python.

`data` holds copies of the model, each with rows of its own. `fsdp` splits parameters, moments and gradients, and the
rows too (ZeRO stage 3: Rajbhandari et al. 2020, arXiv 1910.02054). `tensor` splits heads, MLP and vocabulary inside
each layer (Shoeybi et al. 2019, arXiv 1909.08053). `sequence` splits each row along its length; keys and values are
gathered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cpt.config import BatchSpec, MeshSpec, RunSpec
from cpt.errors import ConfigError
from cpt.training.memory import GB, device_memory, estimate

COMFORT = 0.6
"""Share of a device's memory that the estimate may take before parameters are split: it is an estimate, and evaluation,
fragments and the compiler's scratch want their part."""

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Devices:
    """What is known of the devices in every process alike, so that all of them choose the same mesh.

    Attributes:
      count: of all processes together.
      kind: as the backend calls them, e.g. "NVIDIA H100 80GB HBM3", "TPU v5 lite".
      slices: groups with a fast network inside and a slower one between them (TPU slices, GPU nodes).
    """

    count: int
    kind: str = "cpu"
    slices: int = 1


@dataclass(frozen=True)
class Choice:
    """Sizes of the axes, and why those that were left open are what they are ("" where none was)."""

    sizes: Sizes
    why: str


def choose(spec: RunSpec, devices: Devices) -> Choice:
    """The mesh of a run.

    A 0 takes the devices that are left. Where both `data` and `fsdp` are 0 they share them: `fsdp` is the smallest
    number with which the estimate (`cpt.training.memory`) stays under `COMFORT` of a device's memory, and `data` is the
    rest. Nothing here depends on the process.

    Raises:
      ConfigError: sizes that do not multiply to the devices, or do not divide rows, length, heads or slices.
    """
    limit = device_memory(devices.kind)
    fits = lambda sizes: limit is not None and estimate(spec, sizes).total <= COMFORT * limit  # noqa: E731
    sizes = solve(spec.mesh, devices, fits)
    check(spec, sizes, devices)
    was_open = spec.mesh.data == spec.mesh.fsdp == 0 and sizes["data"] * sizes["fsdp"] > 1
    return Choice(sizes, _reason(sizes, limit, fits(sizes), devices.kind) if was_open else "")


def _reason(sizes: Sizes, limit: float | None, fits: bool, kind: str) -> str:
    if limit is None:
        return f"fsdp takes all, as the memory of '{kind}' is not known"
    share = f"{100 * COMFORT:.0f} % of the memory"
    if not fits:
        return f"fsdp takes all and is still over {share}; raise batch.accumulate or mesh.tensor, or model.remat='full'"
    return f"a whole copy stays under {share}" if sizes["fsdp"] == 1 else f"fewest parts that stay under {share}"


def solve(mesh: MeshSpec, devices: Devices, fits: Callable[[Sizes], bool] = lambda _: False) -> dict[str, int]:
    """`mesh` with its zeros filled in.

    Args:
      fits: whether sizes leave enough memory; without it `fsdp` takes all that it shares with `data`.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices, or it is not said which axis takes them.
    """
    sizes = {"data": mesh.data, "fsdp": mesh.fsdp, "sequence": mesh.sequence, "tensor": mesh.tensor}
    zeros = [axis for axis, n in sizes.items() if n == 0]
    left, rest = divmod(devices.count, math.prod(n for n in sizes.values() if n))
    if rest or left == 0 or (left > 1 and not zeros):
        filled = {axis: n or max(left, 1) for axis, n in sizes.items()}
        raise ConfigError(
            f"mesh: {shape_text(filled)} is not the number of devices, {devices.count}; mesh.data or mesh.fsdp may be "
            "0 and takes what is left"
        )
    if len(zeros) > 1 and zeros != ["data", "fsdp"]:
        raise ConfigError(
            f"mesh: {', '.join(zeros)} are 0, and only data and fsdp can share what is left; give the others a size"
        )
    if len(zeros) < 2:
        return {axis: n or left for axis, n in sizes.items()}
    shared = [{**sizes, "data": left // n, "fsdp": n} for n in range(1, left + 1) if left % n == 0]
    return next(filter(fits, shared), shared[-1])


def check(spec: RunSpec, sizes: Sizes, devices: Devices) -> None:
    """Raises ConfigError for a mesh that rows, length, heads or slices cannot be split over."""
    check_rows(spec.batch, sizes)
    heads, tensor, length = spec.model.heads, sizes["tensor"], spec.batch.length
    if heads % tensor:
        divisors = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        raise ConfigError(f"mesh.tensor: {tensor} does not divide model.heads={heads}; choose one of {divisors}")
    if length % sizes["sequence"]:
        raise ConfigError(
            f"mesh.sequence: {sizes['sequence']} does not divide batch.length={length}; each device takes an equal "
            "piece of a row"
        )
    across_slices(sizes, devices.slices)


def check_rows(batch: BatchSpec, sizes: Sizes) -> None:
    """Raises ConfigError where the rows of a micro-batch cannot be split evenly."""
    rows, parts = batch.sequences // batch.accumulate, sizes["data"] * sizes["fsdp"]
    if rows % parts:
        fitting = [a for a in range(1, batch.sequences + 1) if batch.sequences % (a * parts) == 0]
        advice = (
            f"choose batch.accumulate of {', '.join(map(str, fitting))}"
            if fitting
            else f"choose batch.sequences (and accumulate) so that {parts} divides it, or use fewer devices"
        )
        raise ConfigError(f"mesh: {rows} rows per micro-batch cannot be split over {shape_text(sizes)}; {advice}")


def across_slices(sizes: Sizes, slices: int) -> dict[str, int]:
    """How much of each axis goes over the slow network between slices: `data` as far as it can, then `fsdp`.

    Raises:
      ConfigError: slices would have to split `tensor` or `sequence`.
    """
    data = math.gcd(sizes["data"], slices)
    fsdp = math.gcd(sizes["fsdp"], slices // data)
    if data * fsdp != slices:
        raise ConfigError(
            f"mesh: {shape_text(sizes)} does not fit {slices} slices; data x fsdp must be a multiple of {slices}, so "
            "that tensor and sequence stay inside a slice"
        )
    return {**dict.fromkeys(sizes, 1), "data": data, "fsdp": fsdp}


def shape_text(sizes: Sizes) -> str:
    """`data 1 x fsdp 8 x tensor 1`; `sequence` where it is used."""
    axes = ["data", "fsdp", "tensor"] + ["sequence"] * (sizes["sequence"] != 1)
    return " x ".join(f"{axis} {sizes[axis]}" for axis in axes)


def mesh_line(spec: RunSpec, devices: Devices) -> str:
    """`mesh: data 1 x fsdp 8 x tensor 1 (chosen: ...) · per device: parameters 0.20 GB, ... of 80 GB`."""
    choice, limit = choose(spec, devices), device_memory(devices.kind)
    why = f" (chosen: {choice.why})" if choice.why else ""
    of = "" if limit is None else f" of {limit / GB:.0f} GB{' assumed' * (devices.kind == 'cpu')}"
    return f"mesh: {shape_text(choice.sizes)}{why} · per device: {estimate(spec, choice.sizes).text()}{of}"
