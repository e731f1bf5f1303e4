"""Reads the running interpreter's standard library once, for its prose (docstrings) and for its code."""

from __future__ import annotations

import ast
import inspect
import sysconfig
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from cpt.data.corpora._files import well_formed
from cpt.errors import DataError

# Tests are left out by some distributions, and the rest is not part of the library or differs from machine to machine.
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data"}
SKIPPED_FILES = ("_sysconfigdata", "sitecustomize", "usercustomize")
_HOLDERS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class SourceFile(NamedTuple):
    """One source file, taken apart: `prose` is its docstrings, `code` what is left without them and the comments."""

    name: str
    prose: str
    code: str


@lru_cache(maxsize=1)
def source_files() -> tuple[SourceFile, ...]:
    """Every source file of the standard library, sorted by relative path.

    One pass serves both corpora: parsing is most of its time (about 6 s in all), and the result is 9 MB of text.

    Raises:
      DataError: this Python has no source files (it is frozen or zipped).
    """
    root = Path(sysconfig.get_path("stdlib"))
    relative = sorted(p.relative_to(root) for p in root.rglob("*.py"))
    taken_apart = (_take_apart(root, path) for path in relative if _wanted(path))
    files = tuple(f for f in taken_apart if f is not None)
    if not files:
        raise DataError(f"{root}: this Python has no standard library source files; use a text or jsonl corpus")
    return files


def _wanted(path: Path) -> bool:
    # `config-3.x-...` holds build scripts of the machine.
    in_skipped = any(part in SKIPPED_FOLDERS or part.startswith("config-") for part in path.parts[:-1])
    return not in_skipped and not path.name.startswith(SKIPPED_FILES)


def _take_apart(root: Path, path: Path) -> SourceFile | None:
    """`None` for what this Python cannot read or parse: templates, dangling links."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old modules are not the reader's business
            tree = ast.parse((root / path).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
    prose = "\n\n".join(_pop_docstrings(tree))
    return SourceFile(path.as_posix(), well_formed(prose), well_formed(ast.unparse(tree)))


def _pop_docstrings(tree: ast.Module) -> list[str]:
    """Take the docstrings out of `tree`, in source order; a body that only had one gets `pass`."""
    found = []
    for node in _in_source_order(tree):
        if isinstance(node, _HOLDERS) and (text := ast.get_docstring(node, clean=False)) is not None:
            node.body = node.body[1:] or ([] if isinstance(node, ast.Module) else [ast.Pass()])
            if text := inspect.cleandoc(text).strip():
                found.append(text)
    return found


def _in_source_order(node: ast.AST) -> Iterator[ast.AST]:
    """Depth first, as one reads; `ast.walk` is breadth first and would tear methods from their class."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from _in_source_order(child)
