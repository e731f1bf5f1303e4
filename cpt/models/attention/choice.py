"""Which backend computes attention, and why: from what is asked for and what is computed where. Pure Python."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from cpt.errors import ConfigError


@dataclass(frozen=True)
class Work:
    """What is to be computed, and where.

    Attributes:
      platform, kind: of the devices, as JAX calls them: "cpu", "gpu" or "tpu"; e.g. "NVIDIA H200".
      dtype: of queries, keys and values.
      heads, kv_heads, head_dim, length: of a row.
      packed: whether a row may hold several documents that do not see each other.
      pieces: devices that each row is split over along its length.
      capability: of an NVIDIA GPU, e.g. "9.0"; None where the backend does not say.
    """

    platform: str
    kind: str
    dtype: str
    heads: int
    kv_heads: int
    head_dim: int
    length: int
    packed: bool = False
    pieces: int = 1
    capability: str | None = None


@dataclass(frozen=True)
class Choice:
    """A backend, and why it is the one."""

    name: str
    why: str

    def line(self) -> str:
        """What the launch says of it."""
        return f"attention: {self.name} ({self.why})"


Trial = Callable[[Work], str]
"""Tries cuDNN on the device: what is wrong with what it gives, "" where nothing is."""


def choose(asked: str, work: Work, trial: Trial = lambda _: "") -> Choice:
    """The backend for `work`: the one that is asked for by name, or the fastest one that can do it.

    Args:
      asked: `model.attention`.
      trial: is called only where everything else speaks for cuDNN.

    Raises:
      ConfigError: the backend that is asked for cannot do it; the line says why and what can.
    """
    if asked == "auto":
        return _automatic(work, trial)
    if why_not := _refusal(asked, work, trial):
        other = _automatic(work, trial).name
        raise ConfigError(f"model.attention: '{asked}' cannot be used: {why_not}; choose 'auto' (here: '{other}')")
    return Choice(asked, f"as asked, {_where(work)}")


def _automatic(work: Work, trial: Trial) -> Choice:
    fast = {"gpu": "cudnn", "cuda": "cudnn", "tpu": "splash"}.get(work.platform)
    refusal = _refusal(fast, work, trial) if fast else None
    if fast and not refusal:
        return Choice(fast, _where(work))
    if why_not := _refusal("blocked", work, trial):
        return Choice("reference", why_not)
    return Choice("blocked", f"not {fast}: {refusal}" if refusal else _where(work))


def _where(work: Work) -> str:
    place = "CPU" if work.platform == "cpu" else work.kind
    return f"{place}, rows of {work.length} tokens{', documents apart' if work.packed else ''}"


def _refusal(name: str, work: Work, trial: Trial) -> str | None:
    """Why the backend `name` cannot do `work`; None where it can."""
    if name == "reference":
        return None
    if work.pieces > 1:
        return f"each row is split over {work.pieces} devices (mesh.sequence)"
    if name == "cudnn":
        return _cudnn_refusal(work) or trial(work) or None
    if name == "splash" and work.platform != "tpu":
        return f"it is for TPUs, and this is {work.kind}"
    return None


def _cudnn_refusal(work: Work) -> str | None:
    version = re.fullmatch(r"(\d+)\.(\d+)", work.capability or "")  # an AMD GPU has a name here
    if work.platform not in ("gpu", "cuda") or version is None:
        return f"it is for NVIDIA GPUs, and this is {work.kind}"
    if work.dtype not in ("bfloat16", "float16"):
        return f"it computes in bfloat16, and model.compute_dtype is '{work.dtype}'"
    hopper = tuple(map(int, version.groups())) >= (9, 0)
    most = 256 if hopper else 128
    if work.head_dim % 8 or work.head_dim > most:
        return f"heads of {work.head_dim} channels, and it takes multiples of 8 up to {most} on {work.kind}"
    if work.packed and not hopper:
        return f"it keeps the documents of a row apart from Hopper (9.0) on, and {work.kind} is {work.capability}"
    return None
