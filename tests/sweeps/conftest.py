"""Sweeps over the toy recipe, in this process and as a command."""

import os
import sys
from pathlib import Path

import pytest

from cpt import sweeps as s
from cpt.sweep import check, open_queue
from cpt.sweeps.recipe import Recipe

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))
SHORT = ("--config.phases.first.steps=5", "--config.phases.second.steps=5")


@pytest.fixture
def recipe(toy_root, tmp_path) -> Recipe:
    """The toy recipe with 10 steps; runs go to `tmp_path / "out"`."""
    return Recipe(f"{TESTS / 'toy.py'}:{toy_root}", SHORT, tmp_path / "out")


@pytest.fixture
def grid() -> s.definition.Sweep:
    return s.sweep("grid", s.product(s.values("phases.second.lr.peak", [1e-3, 1e-2]), s.seeds(0, 1)), "bwt")


@pytest.fixture
def open_at(recipe):
    """`open_at(sweep, url)`: the queue of a sweep, as the command makes it."""

    def opened(sweep, url, grace_s=120.0):
        return open_queue(sweep, recipe, check(sweep, recipe)[0], url, grace_s)

    return opened


@pytest.fixture(params=["sqlite", "journal"])
def url(request, tmp_path) -> str:
    return f"sqlite:///{tmp_path}/books.db" if request.param == "sqlite" else f"journal:{tmp_path}/books.log"


@pytest.fixture
def environment() -> dict:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])}
