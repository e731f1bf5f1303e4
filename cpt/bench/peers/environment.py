"""The Python of a peer that is not ours: one that is given, or an environment made for it once and kept."""

from __future__ import annotations

import platform
import subprocess
import sys
import venv
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import jax

from cpt.backend import cache_folder
from cpt.errors import ConfigError

TORCH = "torch==2.13.0"
REQUIREMENTS = (TORCH, "transformers>=5,<6", "safetensors", "numpy")
JLA = ("jax-linear-attention", "0.11.2")  # its release, and the only JAX that it runs on
MINUTES = 30


class NoPeer(Exception):
    """A peer cannot be had here; the message is the reason."""


def peer_python(given: str | None, home: Path | None, say: Callable[[str], None]) -> str:
    """An interpreter that imports torch and transformers.

    Args:
      given: by the user; taken as it is.
      home: folder for the environment that is made otherwise; None takes the user's cache.

    Raises:
      ConfigError: the given one does not import them.
      NoPeer: none could be made.
    """
    if given is not None:
        if (why := _lacks(given)) is not None:
            raise ConfigError(f"--peer_python={given}: cannot be used ({why}); give a Python with torch, transformers")
        return given
    root = cache_folder() if home is None else home
    if root is None:
        raise NoPeer("there is no folder for its environment; give one with --out or a Python with --peer_python")
    folder = root / f"peer-{TORCH.replace('==', '-')}"
    python = folder / "bin" / "python"
    if _lacks(str(python)) is None:
        return str(python)
    say(f"making {folder} with {', '.join(REQUIREMENTS)}; once, and it takes minutes")
    try:
        venv.create(folder, with_pip=True, clear=True)
        command = [str(python), "-m", "pip", "install", "-q", *REQUIREMENTS]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60 * MINUTES)
    except (OSError, subprocess.SubprocessError) as e:
        raise NoPeer(f"its environment {folder} could not be made ({e})") from e
    if done.returncode:
        raise NoPeer(f"its packages could not be installed ({_last_line(done.stderr)})")
    if (why := _lacks(str(python))) is not None:
        raise NoPeer(f"its environment {folder} does not work ({why})")
    return str(python)


def why_no_jla() -> str:
    """Why jax-linear-attention, the fastest JAX trainer published for one Hopper GPU, is not among the peers."""
    name, needed = JLA
    lacks = []
    if sys.version_info < (3, 12):
        lacks.append(f"Python 3.12 (here {platform.python_version()})")
    if version("jax") != needed:
        lacks.append(f"jax {needed} (here {version('jax')})")
    if "H100" not in (kind := jax.devices()[0].device_kind) and "H200" not in kind:
        lacks.append(f"a Hopper GPU (here {kind})")
    if lacks:
        return f"{name} needs {', '.join(lacks)}"
    return f"{name} would run here, but this suite does not drive its trainer"


def _lacks(python: str) -> str | None:
    """Why an interpreter cannot be a peer's; None if it can."""
    try:
        done = subprocess.run(
            [python, "-c", "import torch, transformers"], capture_output=True, text=True, timeout=300, env={}
        )
    except (OSError, subprocess.SubprocessError) as e:
        return str(e)
    return None if done.returncode == 0 else _last_line(done.stderr)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
