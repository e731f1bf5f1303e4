"""Sweep files: those that are shipped fit their recipe, and mistakes in one's own are told by line."""

import runpy
from pathlib import Path

import pytest

from cpt import sweeps as s
from cpt.errors import ConfigError
from cpt.sweep import check
from cpt.sweeps.definition import read_sweep
from cpt.sweeps.recipe import Recipe

ROOT = Path(__file__).parents[2]
SHIPPED = {"rewarm_peak": 9, "replay_share": 18, "warmup_length": 12, "schedules": 18, "seeds": 3}


@pytest.mark.parametrize("name", [*SHIPPED, "autolrs"])
def test_the_shipped_sweeps_fit_their_recipe(name, tmp_path):
    argument = ":runs/base,300" if name == "autolrs" else ""
    sweep = read_sweep(f"{ROOT / 'configs' / 'sweeps' / name}.py{argument}")
    candidates, middle = check(sweep, Recipe(str(ROOT / "configs" / "pile_to_slimpajama.py"), (), tmp_path))
    assert sweep.name == name and len(candidates) == SHIPPED.get(name, 0)
    assert len({c.directory for c in candidates}) == len(candidates)
    if name == "autolrs":
        assert middle.first_step == 300 and middle.tokens() == 30 * 2048
        assert middle.plan.lr(310) == pytest.approx(1e-3) and middle.plan.lr(299) > 0


def test_every_recipe_of_a_sweep_is_there():
    """Each file has a command in its docstring that names it and a recipe."""
    files = sorted((ROOT / "configs" / "sweeps").glob("*.py"))
    assert {f.stem for f in files} == {*SHIPPED, "autolrs"}
    for file in files:
        text = runpy.run_path(str(file))["__doc__"]
        assert f"--sweep=configs/sweeps/{file.name}" in text and "--config=configs/pile_to_slimpajama.py" in text


MISTAKES = {
    "line": (
        "def get_sweep():\n    return s.sweep('x', s.seeds(0), 'bwt', direction='up')\n",
        "sweep.py:4: sweep: direction='up'",
    ),
    "space": (
        "def get_sweep():\n    return s.sweep('x', s.values('a b', [1]), 'bwt')\n",
        "sweep.py:4: 'a b': not the path",
    ),
    "python": ("def get_sweep():\n    return s.sweep('x' s.seeds(0))\n", "sweep.py:4: invalid syntax"),
    "fails": ("def get_sweep():\n    return 1 / 0\n", "sweep.py:4: ZeroDivisionError: division by zero"),
    "unknown": (
        "def get_sweep():\n    return s.grid()\n",
        "sweep.py:4: AttributeError: module 'cpt.sweeps' has no attribute",
    ),
    "no function": ("def sweep():\n    pass\n", "has no function get_sweep()"),
    "returns": ("def get_sweep():\n    return s.seeds(0)\n", "get_sweep() returned Space"),
    "range": (
        "def get_sweep():\n    return s.sweep('x', s.uniform('a', 0, 1), 'bwt')\n",
        "a is a range; say how to search it",
    ),
    "search": (
        "def get_sweep():\n    return s.sweep('x', s.seeds(0), 'bwt', search=s.random(3))\n",
        "leave search out",
    ),
    "trials": ("def get_sweep():\n    return s.random(0)\n", "sweep.py:4: random: trials=0"),
    "name": ("def get_sweep():\n    return s.sweep('a/b', s.seeds(0), 'bwt')\n", "name='a/b' must name a folder"),
    "weight": ("def get_sweep():\n    return s.sweep('a', s.seeds(0), {'bwt': '1'})\n", "the weight of bwt is '1'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_sweep_file_is_told(name, tmp_path):
    text, says = MISTAKES[name]
    file = tmp_path / "sweep.py"
    file.write_text("from cpt import sweeps as s\n\n" + text)
    with pytest.raises(ConfigError) as e:
        read_sweep(str(file))
    assert says in str(e.value) and "\n" not in str(e.value)


def test_a_missing_file_is_told():
    with pytest.raises(ConfigError, match=r"--sweep=nowhere.py: no such file"):
        read_sweep("nowhere.py")


def fields(*, space=None, metric="bwt", overrides=(), **more):
    return space or s.seeds(0), metric, overrides, more


AGAINST_THE_RECIPE = {
    "field": (fields(space=s.values("phases.second.replay.shares", [0.1])), "no such field; did you mean 'share'?"),
    "phase": (fields(space=s.values("phases.secnd.replay.share", [0.1])), "did you mean 'second'?"),
    "value": (fields(space=s.values("phases.second.replay.share", [0.1, 1.5])), "phases.second.replay.share"),
    "end of a range": (
        fields(space=s.uniform("phases.second.replay.share", 0.1, 1.5), search=s.random(3)),
        "phases.second.replay.share",
    ),
    "metric": (fields(metric="sets.new.forgeting"), "metric: objective 'sets.new.forgeting': no 'forgeting'"),
    "set": (fields(metric={"sets.newer.final": 1.0}), "did you mean 'new'?"),
    "probe": (fields(metric="probes.rank.x.last"), "no such probe  (probes: none)"),
    "phase of asha": (fields(prune=s.asha(4, since="third")), "since='third' is no phase"),
    "override": (fields(overrides=("--config.seed=3",)), "--config.seed: the sweep 'x' sets it"),
    "forecast": (
        fields(metric=s.forecast(at=30, of="newer")),
        "forecast: of='newer': no such set; did you mean 'new'?",
    ),
    "short forecast": (fields(metric=s.forecast(at=5)), "look further ahead"),
}


@pytest.mark.parametrize("name", AGAINST_THE_RECIPE)
def test_what_the_recipe_does_not_have_is_told_before_anything_runs(name, recipe):
    (space, metric, overrides, more), says = AGAINST_THE_RECIPE[name]
    with pytest.raises(ConfigError) as e:
        check(s.sweep("x", space, metric, **more), Recipe(recipe.file, (*recipe.overrides, *overrides), recipe.out))
    assert says in str(e.value) and "\n" not in str(e.value) and not recipe.out.exists()


def test_points_of_one_plan_are_one_run(recipe):
    space = s.chain(s.seeds(0, 1), s.point({}), s.values("phases.second.replay.share", [0.1, 0.2]))
    candidates = recipe.points(s.sweep("x", space, "bwt"))
    assert [dict(c.values) for c in candidates] == [{"seed": 0}, {"seed": 1}, {"phases.second.replay.share": 0.2}]


def test_values_reach_the_plan_as_they_are(recipe):
    c = recipe.candidate(
        {
            "phases.second.replay.share": 0.25,
            "phases.second.lr.kind": "linear",
            "loggers": (),
            "batch.mask_documents": True,
            "checkpoints.grid.steps": None,
            "checkpoints.grid.fraction": 0.5,
            "seed": 7,
        }
    )
    spec = c.plan.spec
    assert spec.phases["second"].replay.share == 0.25 and spec.phases["second"].lr.kind == "linear"
    assert spec.loggers == () and spec.batch.mask_documents is True and spec.seed == 7
    assert "--config.seed=7" in c.flags and c.command[1:3] == ["-m", "cpt.main"]
