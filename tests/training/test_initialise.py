"""Where a run starts: own checkpoint, another run, a Hugging Face directory, scratch; and what the optimizer becomes.

Every combination is trained, told in the log, and started a second time from where it stands.
"""

import io
import json
import re
import shutil
from pathlib import Path

import jax
import pytest
import toy
from rich.console import Console

from cpt.config import load
from cpt.data.preparing import open_sources
from cpt.errors import ConfigError, RunError
from cpt.models import base, convert
from cpt.optimizers import building as optimizers
from cpt.plan import resolve
from cpt.training import loop, workdir
from cpt.training.checkpoint import Checkpoints, restore
from cpt.training.feed import Data
from cpt.training.machine import abstract_state
from cpt.training.sharding import make_mesh


def config_of(root, steps=4):
    config = toy.get_config(str(root))
    config.order = ("first",)
    del config.phases["second"]
    config.phases.first.steps = steps
    config.phases.first.lr = toy.c.lr(kind="constant", value=1e-3)
    config.checkpoints.rolling.fraction, config.checkpoints.rolling.steps = None, 2
    config.checkpoints.grid = None
    return config


def train(config, into):
    """What the run said about its start."""
    plan, out = resolve(load(config)), io.StringIO()
    sources, tokenizer = open_sources(plan.spec.sources, plan.spec.tokenizer, Path(plan.spec.stores), lambda _: None)
    workdir.prepare_workdir(into)
    loop.train(plan, Data(sources, tokenizer), into, Console(file=out, width=400))
    (line,) = [text for text in out.getvalue().splitlines() if text.startswith("initialised")]
    return line


def state_of(config, run_dir, step):
    plan = resolve(load(config))
    model, tx = base.build(plan.spec.model), optimizers.build(plan)
    abstract = abstract_state(model, tx, make_mesh(plan.spec.mesh, 8))
    (saved,) = [s for s in Checkpoints(run_dir / "checkpoints").finished() if s.step == step][:1]
    return restore(saved, abstract)[0]


def count(state):
    """The bias-correction count."""
    return max(int(x) for x in jax.tree.leaves(state.opt_state) if x.ndim == 0)


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), a, b))


def first_loss(run_dir):
    return json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[0])["loss"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("initialise")


@pytest.fixture(scope="module")
def parent(root):
    """A run of 4 steps; its end as a Hugging Face directory beside it."""
    assert train(config_of(root), root / "parent") == "initialised from scratch; optimizer: fresh"
    config = config_of(root)
    params = jax.device_get(state_of(config, root / "parent", 4).params)
    convert.write(root / "hf", resolve(load(config)).spec.model, params)
    return root / "parent"


STARTS = {
    "params": ({"from_run": "parent"}, "fresh", "initialised params from .*, checkpoint anchor/4; optimizer: fresh", 4),
    "params of a step": ({"from_run": "parent", "step": 2}, "fresh", "checkpoint rolling/2; optimizer: fresh", 4),
    "keep": ({"from_run": "parent", "what": "params+opt"}, "keep", r"params\+opt from .*; optimizer: keep", 8),
    "reset": ({"from_run": "parent", "what": "params+opt"}, "reset", r"params\+opt from .*; optimizer: reset", 4),
    "reset_count": ({"from_run": "parent", "what": "params+opt"}, "reset_count", "optimizer: reset_count", 4),
    "reset_moments": ({"from_run": "parent", "what": "params+opt"}, "reset_moments", "optimizer: reset_moments", 8),
    "lr0_warm": ({"from_run": "parent", "what": "params+opt"}, "lr0_warm", "optimizer: lr0_warm", 8),
    "hugging face": ({"from_hf": "hf"}, "fresh", "params from the Hugging Face directory .*hf; optimizer:", 4),
}  # fmt: skip


@pytest.mark.parametrize("name", STARTS)
def test_a_start_is_told_trained_and_resumed(root, parent, tmp_path, name):
    init, policy, said, updates = STARTS[name]
    config = config_of(root)
    config.init.update({k: str(root / v) if k in ("from_run", "from_hf") else v for k, v in init.items()})
    if policy != "fresh":
        config.phases.first.optimizer.policy = policy
    if policy == "lr0_warm":
        config.phases.first.optimizer.steps = 2
    into = tmp_path / "run"
    line = train(config, into)
    assert line.startswith("initialised params")
    assert re.search(said, line), line
    # Trained weights, not fresh ones: the loss of the first batch tells.
    assert first_loss(into) < first_loss(parent) - 0.1
    ended = state_of(config, into, 4)
    assert count(ended) == updates
    if policy == "lr0_warm":
        rates = [json.loads(t)["lr"] for t in (into / "metrics.jsonl").read_text().splitlines()]
        assert rates[:2] == [0, 0] and rates[2] > 0
    # The second start is that of a preempted run: own checkpoints win, the parent need not even be there.
    whole = [t for t in (into / "eval.jsonl").read_text().splitlines()]
    shutil.rmtree(into / "checkpoints" / "anchor")
    for key in ("from_run", "from_hf"):
        if config.init[key]:
            Path(config.init[key]).rename(root / "elsewhere")
    try:
        assert train(config, into) == "initialised from own checkpoint rolling/2 (step 2)"
    finally:
        for key in ("from_run", "from_hf"):
            if config.init[key]:
                (root / "elsewhere").rename(config.init[key])
    assert same(ended, state_of(config, into, 4))
    assert [t for t in (into / "eval.jsonl").read_text().splitlines()] == whole


def test_a_hugging_face_directory_gives_the_very_parameters(root, parent, tmp_path):
    """The first update from the directory is the first update from the run."""
    for name, init in (("run", {"from_run": str(parent)}), ("hf", {"from_hf": str(root / "hf")})):
        config = config_of(root)
        config.init.update(init)
        train(config, tmp_path / name)
    a, b = (state_of(config_of(root), tmp_path / name, 4) for name in ("run", "hf"))
    assert same(a, b)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (dict(from_hf="hf", from_run="parent"), ConfigError, r"init: from_run=.* and from_hf=.*; give one of them"),
        (dict(from_hf="hf", what="params+opt"), ConfigError, r"init\.from_hf: such a directory holds parameters"),
        (dict(from_hf="hf", step=3), ConfigError, r"init\.from_hf: such a directory holds parameters"),
        (dict(what="params+opt"), ConfigError, r"init\.what: params\+opt, but of which run\? give init\.from_run"),
        (dict(step=3), ConfigError, r"init\.step: 3, but of which run\?"),
        (dict(from_hf="nowhere"), ConfigError, "nowhere: no such folder"),
        (dict(from_run="hf"), RunError, r"init\.from_run: .*hf has no checkpoint"),
    ],
)
def test_starts_that_cannot_be_are_named(root, parent, tmp_path, change, error, says):
    config = config_of(root)
    config.init.update({k: str(root / v) if k.startswith("from") else v for k, v in change.items()})
    with pytest.raises(error, match=says):
        train(config, tmp_path / "run")


def test_a_directory_of_another_model_is_named(root, parent, tmp_path):
    config = config_of(root)
    config.init.from_hf, config.model.width = str(root / "hf"), 64
    with pytest.raises(RunError, match=r"init\.from_hf: model\.width is 32 in .*hf, 64 here; set model\.width to 32"):
        train(config, tmp_path / "run")
