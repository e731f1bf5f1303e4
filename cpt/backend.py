"""What is settled before JAX starts: where compiled programs are kept, what its libraries log, and who keeps memory.

What is an environment variable stays as somebody set it before. A run that starts again, a sweep's next trial or an
evaluation finds its programs compiled. Code for a CPU is kept apart by kind of CPU: elsewhere it may not run.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path

# Parameters of glibc's `mallopt`.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
COMPILER = "compiler"  # name of a thread that compiles while others work
ACCELERATORS = ("nvidia[0-9]*", "kfd", "accel*", "vfio/[0-9]*")  # under /dev: NVIDIA, AMD, TPUs


def prepare_backend() -> None:
    """Set what is not set. To be called before JAX is imported; starts nothing."""
    if (folder := cache_folder()) is not None:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
    # The many small programs of a start would each be below the second from which on JAX keeps them by itself.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    # Its libraries log what is said in one line here, and pages of what is none of the user's business.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    keep_memory()


def keep_memory() -> bool:
    """Let the C library keep the memory that programs give back, where they run on the CPU. Returns whether it does.

    On CPU a program asks for its scratch space at every call, hundreds of megabytes. glibc returns such pieces to the
    system at once, and every page of the next call is cleared and mapped anew: a fifth to a third of an update's time
    (`BENCHMARKS.md`). The price is that a process stays as large as it once was. Threads that exist already keep their
    ways, so it has to happen before JAX starts. Only glibc can, and nothing is done where its variables are set.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ) or not on_cpu():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # No piece of its own mapping, none trimmed, and one heap: the others cannot grow without mappings.
    return all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, -1), mallopt(M_ARENA_MAX, 1)])


def on_cpu(devices: Path = Path("/dev")) -> bool:
    """Whether programs will run on the CPU, as far as can be seen before JAX starts."""
    if named := os.environ.get("JAX_PLATFORMS"):
        return named.split(",")[0] == "cpu"
    return not any(True for pattern in ACCELERATORS for _ in devices.glob(pattern))


def cache_folder() -> Path | None:
    """`~/.cache/cpt/<versions and kind of CPU>`; None for a user without a home, as in containers."""
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    try:
        flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        flags = platform.processor()
    cpu = hashlib.sha256(flags.encode()).hexdigest()[:8]
    return root / "cpt" / f"jax-{version('jax')}-{platform.machine()}-{cpu}"
