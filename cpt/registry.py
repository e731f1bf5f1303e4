"""Find a method by name: `kind="cosine"` is `cosine.py` of its room; `kind="mypkg.mixers:Curriculum"` is yours.

There is nothing to register. A room is a package whose files each hold one method; the method is the public function or
class that has the same name as its file. So adding one is adding a file, and what a room offers is what its folder
holds.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from cpt.errors import ConfigError, nearest


def available(room: str) -> dict[str, str]:
    """Method names of the package `room` (dotted), each with the first line of its file's docstring."""
    modules = {n: importlib.import_module(f"{room}.{n}") for n in _files(room)}
    # A file without a method of its own name is a helper of its room (the phase policies among the optimizers).
    return {n: (m.__doc__ or "").strip().split("\n")[0] for n, m in modules.items() if hasattr(m, n)}


def find(room: str, kind: str, where: str) -> Callable[..., Any]:
    """The method `kind` of `room`, or the attribute that the dotted name `package.module:attribute` points at.

    Args:
      room: dotted package name, e.g. `"cpt.schedules.library"`.
      kind: a file name of that package, or `package.module:attribute`.
      where: the config field that named it, for the error.

    Raises:
      ConfigError: there is no such method; the line names the nearest one and lists the others.
    """
    if ":" in kind:
        return _dotted(kind, where)
    names = _files(room)
    found = getattr(importlib.import_module(f"{room}.{kind}"), kind, None) if kind in names else None
    if found is None:
        offered = list(available(room))
        raise ConfigError(
            f"{where}: no '{kind}' in {room}{nearest(kind, offered)}  "
            f"(there are: {', '.join(offered)}; or package.module:name)"
        )
    return found


def _dotted(kind: str, where: str) -> Callable[..., Any]:
    module_name, attribute = kind.split(":", 1)
    if not all(part.isidentifier() for part in [*module_name.split("."), attribute]):
        raise ConfigError(f"{where}: '{kind}' is not of the form package.module:name")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as e:
        raise ConfigError(f"{where}: cannot import '{kind}' ({e})") from e


def _files(room: str) -> list[str]:
    """Names of the public modules of the package `room`, sorted."""
    package = importlib.import_module(room)
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))
