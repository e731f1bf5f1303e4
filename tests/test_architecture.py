"""Who may import whom, and how long files and functions may be; read from the source with `ast`, and tried once."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("flax", "jax", "jaxlib", "optax", "orbax", "grain")
# What is asked of a plan, a schedule, a mix or a report must not start an accelerator.
PURE = (
    "cpt.cli",
    "cpt.config",
    "cpt.plan",
    "cpt.sections",
    "cpt.schedules",
    "cpt.data.allocation",
    "cpt.data.ledger",
    "cpt.data.mix",
    "cpt.data.mixers",
    "cpt.data.permutation",
    "cpt.evaluators.domains",
    "cpt.evaluators.loss_to_loss",
    "cpt.evaluators.noise",
    "cpt.evaluators.replicates",
    "cpt.evaluators.summary",
    "cpt.models.spec",
    "cpt.reports",
    "cpt.report",
    "cpt.sweep",
    "cpt.sweeps",
    "cpt.training.memory",
    "cpt.training.mesh",
    "cpt.training.topologies",
    "cpt.training.workdir",
    "cpt.main",
)
ONLY = {
    "flax": ("cpt.models", "cpt.bench.peers.plain_flax"),  # the latter is somebody else's trainer, so to say
    "grain": ("cpt.data.loader",),
    "orbax": ("cpt.training.storage",),
}
SHARED_BASES = (
    "cpt.data.mixers._base",
    "cpt.data.scorers._base",
    "cpt.data.tokenizers._base",
    "cpt.data.corpora._base",
    "cpt.data.corpora._files",
    "cpt.evaluators.probes._base",
    "cpt.models.initialisers._base",
)
LONGEST_FILE, LONGEST_FUNCTION = 400, 80
# The loop is meant to be read from top to bottom in one piece.
LONGER = {"cpt.training.loop.train": 115}


@dataclass(frozen=True)
class Module:
    """A parsed file of the package."""

    name: str
    path: Path
    is_package: bool

    @cached_property
    def text(self) -> str:
        return self.path.read_text()

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def room(self) -> str:
        """The package that the file lies in."""
        return self.name if self.is_package else self.name.rpartition(".")[0]


class Package:
    """The files under `root/cpt` and their imports."""

    def __init__(self, root: Path):
        self.modules: dict[str, Module] = {}
        for path in sorted((root / "cpt").rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            self.modules[name] = Module(name, path, is_package)

    def under(self, prefixes: tuple[str, ...]) -> list[Module]:
        return [m for m in self.modules.values() if within(m.name, prefixes)]

    def imports(self, module: Module, nested: bool) -> set[str]:
        """Dotted names that `module` imports: at import time, with `nested` also inside its functions."""
        found = {module.room} - {""}
        for node in statements(module.tree, nested):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = self._base(module, node)
                found |= {n if (n := f"{base}.{alias.name}") in self.modules else base for alias in node.names}
        # Importing a.b.c runs a and a.b first.
        return {".".join(n.split(".")[: i + 1]) for n in found for i in range(n.count(".") + 1)}

    def chain_to(self, start: Module, packages: tuple[str, ...]) -> list[str] | None:
        """A chain of imports at import time from `start` to one of `packages`, None if there is none."""
        chains, seen = [[start.name]], {start.name}
        while chains:
            chain = chains.pop(0)
            for name in sorted(self.imports(self.modules[chain[-1]], nested=False)):
                if within(name, packages):
                    return [*chain, name]
                if name in self.modules and name not in seen:
                    seen.add(name)
                    chains.append([*chain, name])
        return None

    def _base(self, module: Module, node: ast.ImportFrom) -> str:
        above = module.room.split(".")[: len(module.room.split(".")) - max(node.level - 1, 0)]
        return ".".join([*above, node.module or ""]).strip(".") if node.level else node.module


def within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == p or name.startswith(f"{p}.") for p in prefixes)


def statements(tree: ast.AST, nested: bool) -> Iterator[ast.AST]:
    """All nodes of a module; without `nested` only those that run when it is imported."""
    for node in ast.iter_child_nodes(tree):
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if nested or not (is_function or for_types):
            yield node
            yield from statements(node, nested)


def impure(package: Package) -> list[str]:
    """Pure modules from which an import leads to an array library."""
    chains = (package.chain_to(m, HEAVY) for m in package.under(PURE))
    return [" > ".join(chain) for chain in chains if chain]


def misplaced(package: Package) -> list[str]:
    """Imports, nested ones too, of a library that only one room may use, and of the train loop by an evaluator."""
    out = []
    for module in package.modules.values():
        names = package.imports(module, nested=True)
        out += [
            f"{module.name}: {lib}" for lib, homes in ONLY.items() if lib in names and not within(module.name, homes)
        ]
        if within(module.name, ("cpt.evaluators",)):
            out += [f"{module.name}: {n}" for n in sorted(names) if within(n, ("cpt.training",))]
    return out


def private(package: Package) -> list[str]:
    """Uses of a name with an underscore in front outside the file (a file so named: outside the room) it belongs to."""
    out = []
    for module in package.modules.values():
        bound: dict[str, str] = {}
        for node in statements(module.tree, nested=True):
            if isinstance(node, ast.Import):
                bound |= {a.asname or a.name: a.name for a in node.names if within(a.name, ("cpt",))}
            if not isinstance(node, ast.ImportFrom) or not within(base := package._base(module, node), ("cpt",)):
                continue
            for alias in node.names:
                name = f"{base}.{alias.name}"
                file = name if name in package.modules else base
                if name in package.modules:
                    bound[alias.asname or alias.name] = name
                elif re.match(r"_[^_]", alias.name):
                    out.append(f"{module.name}: {name}")
                hidden = file.rpartition(".")[2].startswith("_") and file not in SHARED_BASES
                if hidden and module.room != package.modules[file].room:
                    out.append(f"{module.name}: {file}")
        for node in statements(module.tree, nested=True):
            if isinstance(node, ast.Attribute) and re.match(r"_[^_]", node.attr) and ast.unparse(node.value) in bound:
                out.append(f"{module.name}: {bound[ast.unparse(node.value)]}.{node.attr}")
    return out


def oversized(package: Package) -> list[str]:
    """Files and functions that do not fit, and files that do not say what they are."""
    out = []
    for module in package.modules.values():
        lines = module.text.count("\n")
        out += [f"{module.name}: {lines} lines"] if lines > LONGEST_FILE else []
        out += [f"{module.name}: no docstring"] if not ast.get_docstring(module.tree) else []
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1
                name = f"{module.name}.{node.name}"
                out += [f"{name}: {length} lines"] if length > LONGER.get(name, LONGEST_FUNCTION) else []
    return out


def homes(root: Path) -> list[str]:
    """Files that name a place on somebody's machine."""
    pattern = re.compile(r"(?<![\w.])/(?:home|root|Users)/")
    kinds = {".py", ".toml", ".md", ".sh", ".sbatch", ".yaml", ".yml", ".js", ".css", ".html", ".cfg", ".txt"}
    skipped = {"runs", "stores", "build"}
    out = []
    for path in sorted(p for p in root.rglob("*") if p.suffix in kinds and p.is_file()):
        folders = path.relative_to(root).parts[:-1]
        if not any(f in skipped or f.endswith(".egg-info") or (f.startswith(".") and f != ".ci") for f in folders):
            text = path.read_text(errors="replace").splitlines()
            out += [f"{path.relative_to(root)}:{i}" for i, line in enumerate(text, 1) if pattern.search(line)]
    return out


@pytest.fixture(scope="module")
def cpt() -> Package:
    return Package(ROOT)


@pytest.mark.parametrize("rule", [impure, misplaced, private, oversized])
def test_the_package_keeps(rule, cpt):
    assert len(cpt.modules) > 50
    assert rule(cpt) == []


def test_no_file_names_a_place_on_somebodys_machine():
    assert homes(ROOT) == []


def test_the_pure_modules_really_start_no_backend(cpt):
    """What the source promises, tried: importing all of them leaves JAX and everything built on it unloaded."""
    names = [m.name for m in cpt.under(PURE)]
    assert {"cpt.plan", "cpt.schedules.composer", "cpt.data.mixers.linear", "cpt.reports.page"} <= set(names)
    code = (
        f"import importlib, json, sys\nfor n in {names}: importlib.import_module(n)\nprint(json.dumps([*sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert "cpt" in loaded and loaded.isdisjoint(HEAVY)


VIOLATIONS = {
    "direct": (impure, "plan.py", "import jax", "cpt.plan > jax"),
    "through another file": (impure, "plan.py", "from cpt import heavy", "cpt.plan > cpt.heavy > jax"),
    "through a parent": (impure, "data/mix.py", "", "cpt.data.mix > cpt.data"),
    "in a class at import time": (impure, "plan.py", "class A:\n    import jax.numpy as jnp", "cpt.plan > jax"),
    "relative": (impure, "plan.py", "from . import heavy", "cpt.plan > cpt.heavy > jax"),
    "nested flax": (misplaced, "plan.py", "def f():\n    from flax import nnx", "cpt.plan: flax"),
    "second loader": (misplaced, "data/mix.py", "import grain", "cpt.data.mix: grain"),
    "evaluator that trains": (
        misplaced,
        "evaluators/a.py",
        "def f():\n    from cpt.training.loop import train",
        "cpt.evaluators.a: cpt.training",
    ),
    "private name": (private, "plan.py", "from cpt.heavy import _inner", "cpt.plan: cpt.heavy._inner"),
    "private attribute": (private, "plan.py", "from cpt import heavy\nheavy._inner()", "cpt.plan: cpt.heavy._inner"),
    "private file": (private, "plan.py", "from cpt.data._own import f", "cpt.plan: cpt.data._own"),
    "long file": (oversized, "plan.py", "x = 1\n" * 400, "cpt.plan: 401 lines"),
    "long function": (oversized, "plan.py", "def f():\n" + "    x = 1\n" * 80, "cpt.plan.f: 81 lines"),
    "no docstring": (oversized, "bare.py", None, "cpt.bare: no docstring"),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_the_checker_catches(name, tmp_path):
    rule, file, code, expected = VIOLATIONS[name]
    clean = {"plan.py": "", "heavy.py": "import jax\n_inner = len", "data/mix.py": "", "bare.py": "x = 1"}
    clean |= {"data/_own.py": "f = 1", "training/loop.py": "", "evaluators/a.py": "", "__init__.py": ""}
    clean["data/__init__.py"] = "import jax" if name == "through a parent" else ""
    for place, text in clean.items():
        path = tmp_path / "cpt" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        text = code if place == file and code is not None else text
        path.write_text(text if place == file and code is None else f'"""A file."""\n{text}')
    found = rule(Package(tmp_path))
    assert any(v.startswith(expected) for v in found), found
    if file != "bare.py" and name != "through a parent":
        (tmp_path / "cpt" / file).write_text('"""A file."""\n')
        assert not any(v.startswith(expected) for v in rule(Package(tmp_path)))


def test_allowed_imports_are_not_reported(tmp_path):
    """Imports for types only, inside functions of pure modules, and of private files within their room."""
    (tmp_path / "cpt").mkdir()
    (tmp_path / "cpt" / "_own.py").write_text('"""A file."""\n')
    lines = ["from typing import TYPE_CHECKING", "from cpt._own import f", "if TYPE_CHECKING:", "    import jax"]
    (tmp_path / "cpt" / "plan.py").write_text("\n".join(['"""A file."""', *lines, "def g():", "    import jax"]))
    assert [rule(Package(tmp_path)) for rule in (impure, misplaced, private, oversized)] == [[]] * 4


def test_the_checker_catches_a_home_folder(tmp_path):
    (tmp_path / "runs").mkdir()
    for name, text in {"a.py": "x = '/{}/me/data'", "b.md": "see https://a.org/{}/me", "runs/c.md": "/{}/me"}.items():
        (tmp_path / name).write_text("\n" + text.format("home"))
    assert homes(tmp_path) == ["a.py:2"]
