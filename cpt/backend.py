"""What JAX is told before it starts: where compiled programs are kept, and how much of its libraries' logs to show.

Both are environment variables that whoever set them before keeps. A run that starts again, a sweep's next trial or an
evaluation finds its programs compiled. Code for a CPU is kept apart by kind of CPU: elsewhere it may not run.
"""

from __future__ import annotations

import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path


def prepare_backend() -> None:
    """Set what is not set. To be called before JAX is imported; starts nothing."""
    if (folder := cache_folder()) is not None:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
    # The many small programs of a start would each be below the second from which on JAX keeps them by itself.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    # Its libraries log what is said in one line here, and pages of what is none of the user's business.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


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
