"""What a figure is read with: machine, versions, commit, memory, and the rate of the matrix units."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

PACKAGES = ("cpt", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
PEAKS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L4": 121e12,
    "TPU v3": 123e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}
"""Dense bfloat16 FLOP/s of one device as its maker states it, by what its name begins with or holds."""


def facts() -> dict[str, Any]:
    """`machine`, `devices`, `versions`, `commit` and `time`, for the JSON of every suite."""
    return {
        "machine": f"{os.cpu_count()} cores of {processor()}{vectors()}, Python {platform.python_version()}",
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": versions(),
        "commit": commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def processor() -> str:
    """The model name of the processor, or its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def vectors() -> str:
    """` (AVX-512)` or ` (AVX2)`, which decides a CPU's products more than its name does; empty for others."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next(line.split() for line in lines if line.startswith("flags"))
    except (OSError, StopIteration):
        return ""
    return next((f" ({name})" for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags), "")


def versions() -> dict[str, str]:
    """Of the packages that decide speed, those that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of this checkout, with a + where files of it are changed; None where there is none."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=10)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head.stdout.strip()}{'+' if changed.stdout.strip() else ''}" if head.returncode == 0 else None


def peak_memory() -> int:
    """Bytes: the most that the first device held, or, where it does not count, this process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats.get("peak_bytes_in_use") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def stated_peak(kind: str) -> float | None:
    """FLOP/s of a device of this kind as its maker states it; None for one that is not in `PEAKS`."""
    found = [name for name in PEAKS if name.lower() in kind.lower()]
    return PEAKS[max(found, key=len)] if found else None


def matmul_rate(dtype: str, size: int | None = None, repeats: int = 12) -> float:
    """Best FLOP/s of a square matrix product on one device, in `dtype`."""
    size = size or (1024 if jax.default_backend() == "cpu" else 8192)
    return product_rate((size, size, size), dtype, repeats)


def product_rate(shape: tuple[int, int, int], dtype: str, repeats: int = 12) -> float:
    """Best FLOP/s of [m, k] times [k, n] random numbers, `shape` = (m, k, n)."""
    m, k, n = shape
    a = jax.random.normal(jax.random.key(0), (m, k), jnp.dtype(dtype))
    b = jax.random.normal(jax.random.key(1), (k, n), jnp.dtype(dtype))
    product = jax.jit(lambda a, b: a @ b)
    product(a, b).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        product(a, b).block_until_ready()
        best = min(best, time.perf_counter() - started)
    return 2 * m * k * n / best
