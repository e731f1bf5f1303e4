"""Find a method by name: `kind="cosine"` is `cosine.py` of its room; `kind="mypkg.mixers:Curriculum"` is yours.

There is nothing to register. A room is a package whose files each hold one method; the method is the public function or
class that has the same name as its file. So adding one is adding a file, and what a room offers is what its folder
holds.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cpt.errors import ConfigError, nearest


def available(room: str) -> dict[str, str]:
    """Method names of the package `room` (dotted), each with the first line of its file's docstring."""
    # A file without a method of its own name is a helper of its room (the phase policies among the optimizers).
    trees = {n: _tree(room, n) for n in _files(room) if _defines(room, n)}
    return {n: (ast.get_docstring(tree) or "").split("\n")[0] for n, tree in trees.items()}


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
    check(room, kind, where)
    return getattr(importlib.import_module(f"{room}.{kind}"), kind)


def check(room: str, kind: str, where: str) -> None:
    """That `find` will find something, without importing it: a method may need an accelerator, a plan must not.

    Raises:
      ConfigError: as `find`.
    """
    if ":" in kind:
        module, _ = _split(kind, where)
        try:
            found = module in sys.modules or importlib.util.find_spec(module) is not None
        except (ImportError, ValueError) as e:
            raise ConfigError(f"{where}: cannot import '{kind}' ({e})") from e
        if not found:
            raise ConfigError(f"{where}: cannot import '{kind}' (No module named '{module}')")
    elif kind not in _files(room) or not _defines(room, kind):
        offered = [n for n in _files(room) if _defines(room, n)]
        raise ConfigError(
            f"{where}: no '{kind}' in {room}{nearest(kind, offered)}  "
            f"(there are: {', '.join(offered)}; or package.module:name)"
        )


def _tree(room: str, name: str) -> ast.Module:
    """A file of a room, read but not run."""
    origin = importlib.util.find_spec(f"{room}.{name}").origin
    return ast.parse(Path(origin).read_text(encoding="utf-8"))


def _defines(room: str, name: str) -> bool:
    """Whether the file `name` of a room holds the method of that name."""
    body = _tree(room, name).body
    bound = [n.name for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    bound += [t.id for n in body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)]
    return name in bound


def _split(kind: str, where: str) -> tuple[str, str]:
    module_name, attribute = kind.split(":", 1)
    if not all(part.isidentifier() for part in [*module_name.split("."), attribute]):
        raise ConfigError(f"{where}: '{kind}' is not of the form package.module:name")
    return module_name, attribute


def _dotted(kind: str, where: str) -> Callable[..., Any]:
    module_name, attribute = _split(kind, where)
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as e:
        raise ConfigError(f"{where}: cannot import '{kind}' ({e})") from e


def _files(room: str) -> list[str]:
    """Names of the public modules of the package `room`, sorted."""
    package = importlib.import_module(room)
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))
