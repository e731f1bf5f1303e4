"""Machines one can name before one has them: how many devices, of what kind, and how they are laid out. Pure Python.

`v5p-64` and `v4-64` count TensorCores, two per chip, as Google Cloud names these machines; `v5e-64` (`v5litepod-64`)
and `v6e-64` count chips. `h100-8` is 8 GPUs, `cpu-8` a machine without accelerators that JAX shows as 8 devices, and
`2xv5e-256` two slices.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cpt.errors import ConfigError, nearest
from cpt.training.mesh import Devices


@dataclass(frozen=True)
class Family:
    """A kind of accelerator.

    Attributes:
      kind: what its backend calls a device.
      platform: "tpu", "gpu" or "cpu".
      cores: devices' worth of cores that its names count per device.
      dimensions: of its torus of chips.
      sizes: devices of the machines that exist, ascending; empty for any number.
      node: devices that share a fast network; 0 for all.
    """

    kind: str
    platform: str
    cores: int = 1
    dimensions: int = 2
    sizes: tuple[int, ...] = ()
    node: int = 0


_FLAT = (1, 4, 8, 16, 32, 64, 128, 256)
_TORUS = (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)

FAMILIES = {
    "v4": Family("TPU v4", "tpu", cores=2, dimensions=3, sizes=_TORUS),
    "v5p": Family("TPU v5", "tpu", cores=2, dimensions=3, sizes=(*_TORUS, 4096)),
    "v5e": Family("TPU v5 lite", "tpu", sizes=_FLAT),
    "v6e": Family("TPU v6 lite", "tpu", sizes=_FLAT),
    "a100": Family("NVIDIA A100-SXM4-80GB", "gpu", node=8),
    "h100": Family("NVIDIA H100 80GB HBM3", "gpu", node=8),
    "h200": Family("NVIDIA H200", "gpu", node=8),
    "cpu": Family("cpu", "cpu"),
}
ALIASES = {"v5litepod": "v5e"}
EXAMPLES = ("v4-32", "v5e-16", "v5litepod-16", "v5p-64", "v6e-256", "a100-8", "h100-8", "h200-8", "cpu-8", "2xv5e-256")


@dataclass(frozen=True)
class Topology:
    """A machine by name.

    Attributes:
      name: as it was given.
      family: of its devices.
      per_slice: devices of one slice.
      slices: slices (TPU) or nodes (GPU).
    """

    name: str
    family: Family
    per_slice: int
    slices: int = 1

    @property
    def devices(self) -> Devices:
        return Devices(self.per_slice * self.slices, self.family.kind, self.slices)

    @property
    def torus(self) -> tuple[int, ...]:
        """Chips along each side of a slice, the shortest side first."""
        return factors(self.per_slice, self.family.dimensions)


def topology(name: str) -> Topology:
    """The machine called `name`.

    Raises:
      ConfigError: there is none of that name; the line has the nearest one and the list.
    """
    found = re.fullmatch(r"(?:(\d+)x)?([a-z][a-z0-9]*)-(\d+)", name.strip().lower())
    family = FAMILIES.get(ALIASES.get(found.group(2), found.group(2))) if found else None
    if family is None:
        raise ConfigError(
            f"--dry_run={name}: no such topology{nearest(name, EXAMPLES)}  (there are: "
            f"{', '.join(f'{f}-N' for f in [*FAMILIES, *ALIASES])}; several slices: 2xv5e-256)"
        )
    slices, count = int(found.group(1) or 1), int(found.group(3))
    devices, rest = divmod(count, family.cores)
    sizes = [n * family.cores for n in family.sizes]
    if rest or slices < 1 or devices < 1 or (sizes and count not in sizes):
        raise ConfigError(
            f"--dry_run={name}: there is no machine of {count}; {found.group(2)}-N has N of "
            f"{', '.join(map(str, sizes)) or '1 and more'}"
        )
    if family.node and devices > family.node:
        nodes, rest = divmod(devices, family.node)
        if rest:
            raise ConfigError(f"--dry_run={name}: {devices} devices are no whole number of nodes of {family.node}")
        return Topology(name, family, family.node, slices * nodes)
    return Topology(name, family, devices, slices)


def factors(chips: int, dimensions: int) -> tuple[int, ...]:
    """Sides of the most cubic torus of `chips`, a power of two; a TPU's last side of three is 1 for up to 4 chips."""
    if chips <= 4 and dimensions == 3:
        return (2, 2, 1) if chips == 4 else (1, 1, 1)
    sides, i = [1] * dimensions, 0
    while chips > 1:
        sides[dimensions - 1 - i % dimensions] *= 2
        chips //= 2
        i += 1
    return tuple(sorted(sides))
