"""What the README says is so: its commands, its examples, its links."""

import re
import sys
import types
from pathlib import Path
from runpy import run_path

import jax.numpy as jnp
import pytest

from cpt import config as c
from cpt.config import load
from cpt.plan import resolve
from cpt.registry import find

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_two_commands_are_there_word_for_word():
    lines = [line for line in README.splitlines() if line.startswith("pip install -e")]
    assert lines == [
        "pip install -e . && python -m cpt.main --config=configs/pile_to_slimpajama.py",
        "pip install -e '.[test]' && pytest",
    ]


def test_every_local_link_leads_somewhere():
    links = [t for t in re.findall(r"\]\(([^)]+)\)", README) if not t.startswith("http")]
    assert links and all((ROOT / t).exists() for t in links)


def test_every_flag_of_a_command_is_known():
    sources = "".join(p.read_text() for p in (ROOT / "cpt").rglob("*.py"))
    for line in re.findall(r"^python -m .*", README, re.MULTILINE):
        for flag in re.findall(r"--(\w+)", line):
            assert f'"{flag}"' in sources, f"{line}: --{flag}"


@pytest.fixture
def examples(monkeypatch):
    """The README's methods, as a module of a user's own."""
    module = types.ModuleType("readme_methods")
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(block, module.__dict__)
    monkeypatch.setitem(sys.modules, "readme_methods", module)
    return module


def test_its_schedule_and_its_mixer_work_by_dotted_name(examples):
    config = run_path(str(ROOT / "configs" / "pile_to_slimpajama.py"))["get_config"]()
    phase = config.phases.slimpajama
    phase.lr.kind, phase.lr.options = "readme_methods:sawtooth", {"period": 100}
    phase.mixer.kind, phase.mixer.options = "readme_methods:annealed", {"end": 3.0}
    phase.mix = {"slimpajama": 0.8, "pile": 0.2}
    plan = resolve(load(config))
    first = plan.phases[1].first_step
    assert plan.lr(first) == plan.lr(first + 100) == plan.lr(first + 200) > plan.lr(first + 199)
    start, end = plan.phases[1].shares(0), plan.phases[1].shares(plan.phases[1].steps - 1)
    assert abs(start[0] / start[1] - 0.25) < 1e-9 and abs(end[0] / end[1] - 0.25 ** (1 / 3)) < 1e-9


def test_its_probe_works_by_dotted_name(examples):
    config = run_path(str(ROOT / "configs" / "pile_to_slimpajama.py"))["get_config"]()
    config.evaluation.probes = {"mine": c.probe(kind="readme_methods:norm", at="grid")}
    plan = resolve(load(config))
    assert plan.probes_at(0) == ("mine",) and plan.probes_at(1) == ()
    ask = find("cpt.evaluators.probes", plan.spec.evaluation.probes["mine"].kind, "x")(None)
    assert float(ask({"a": jnp.array([3.0]), "b": {"c": jnp.array([[4.0]])}}, 7)["norm"]) == 5.0
