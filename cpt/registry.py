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
    package = importlib.import_module(room)
    names = [m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")]
    return {n: (importlib.import_module(f"{room}.{n}").__doc__ or "").strip().split("\n")[0] for n in sorted(names)}


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
        module_name, attribute = kind.split(":", 1)
        try:
            return getattr(importlib.import_module(module_name), attribute)
        except (ImportError, AttributeError) as e:
            raise ConfigError(f"{where}: cannot import '{kind}' ({e})") from e
    package = importlib.import_module(room)
    names = [m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")]
    if kind not in names:
        offered = ", ".join(sorted(names))
        raise ConfigError(
            f"{where}: no '{kind}' in {room}{nearest(kind, names)}  (there are: {offered}; or package.module:name)"
        )
    return getattr(importlib.import_module(f"{room}.{kind}"), kind)
