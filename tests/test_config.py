"""Recipes and the command line: every field can be overridden by name, in every form a person would write."""

import copy
import re
import subprocess
import sys
from pathlib import Path

import pytest
import toy
from absl import flags
from ml_collections import config_flags

from cpt import cli
from cpt import config as c
from cpt.config import RunSpec, load
from cpt.errors import ConfigError
from cpt.plan import resolve

ROOT = Path(__file__).resolve().parents[1]
SECOND = "--config.phases.second"


@pytest.fixture
def given(toy_root, monkeypatch):
    """`given("--config.seed=1", ...)`: the spec of the toy recipe with these flags, read as the command reads them."""

    def read(*overrides: str) -> RunSpec:
        toy.write_corpora(toy_root)
        argv = ["cpt.main", f"--config={toy.__file__}:{toy_root}", *overrides]
        values = flags.FlagValues()
        config_flags.DEFINE_config_file(
            "config", None, flag_values=values, lock_config=False, accept_new_attributes=True, sys_argv=argv
        )
        monkeypatch.setattr(flags, "FLAGS", values)
        assert cli.parse_flags(argv) == ["cpt.main"]
        return load(values["config"].value, config_flags.get_override_values(values["config"]))

    return read


# ---- overrides ----
@pytest.mark.parametrize(
    ("flags_given", "path", "value"),
    [
        ([f"{SECOND}.replay.share=0"], "phases.second.replay.share", 0.0),
        ([f"{SECOND}.lr.peak=1"], "phases.second.lr.peak", 1.0),
        ([f"{SECOND}.lr.peak", "3e-4"], "phases.second.lr.peak", 3e-4),
        ([f"{SECOND}.lr.kind=constant"], "phases.second.lr.kind", "constant"),
        ([f"{SECOND}.lr.value=2e-4"], "phases.second.lr.value", 2e-4),
        ([f"{SECOND}.lr.floor=None"], "phases.second.lr.floor", None),
        ([f"{SECOND}.replay.of=None", f"{SECOND}.replay.share=0"], "phases.second.replay.of", None),
        (["--config.optimizer.clip=None"], "optimizer.clip", None),
        (["--config.sources.old.max_chars=500"], "sources.old.max_chars", 500),
        ([f"{SECOND}.open_ended"], "phases.second.open_ended", True),
        ([f"{SECOND}.open_ended=true"], "phases.second.open_ended", True),
        ([f"{SECOND}.replay.max_repeats=2"], "phases.second.replay.max_repeats", 2.0),
        ([f"{SECOND}.optimizer.policy=lr0_warm"], "phases.second.optimizer.policy", "lr0_warm"),
        (["--config.evaluation.sets.old.tags=('a', 'b')"], "evaluation.sets.old.tags", ("a", "b")),
        (["--config.mesh.tensor=2"], "mesh.tensor", 2),
        (["--config.checkpoints.grid.steps=3"], "checkpoints.grid", c.Duration(steps=3)),
        (["--config.checkpoints.grid.steps=None"], "checkpoints.grid", None),
        (["--config.seed=1", "--config.seed=2"], "seed", 2),
    ],
)
def test_an_override_of_a_field(given, flags_given, path, value):
    got = given(*flags_given)
    for name in path.split("."):
        got = got[name] if isinstance(got, dict) else getattr(got, name)
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize("text", ["5120", "5_120", "5.12e3", "5120.0"])
def test_tokens_in_every_notation(given, text):
    phase = given(f"{SECOND}.tokens={text}").phases["second"]
    assert (phase.tokens, phase.steps) == (5120, None)


def test_a_unit_that_is_overridden_drops_the_others(given):
    by_fraction = given(f"{SECOND}.lr.warmup.fraction=0.5").phases["second"].lr.warmup
    assert by_fraction == c.Duration(fraction=0.5)  # the recipe said steps=2
    assert given("--config.checkpoints.rolling.tokens=2560").checkpoints.rolling == c.Duration(tokens=2560)
    assert given(f"{SECOND}.tokens=2560").phases["second"].steps is None
    assert given(f"{SECOND}.lr.decay.steps=4").phases["second"].lr.decay == c.Duration(steps=4)
    assert given(f"{SECOND}.lr.warmup.fraction=None").phases["second"].lr.warmup == c.Duration(steps=2)


def test_two_units_on_the_command_line_contradict_each_other(given):
    warmup = given(f"{SECOND}.lr.warmup.steps=5", f"{SECOND}.lr.warmup.fraction=0.1").phases["second"].lr.warmup
    with pytest.raises(ConfigError, match="give exactly one of tokens, steps, fraction"):
        warmup.resolve(20, 256, "x")


def test_an_override_changes_nothing_else(given):
    """The toy recipe uses one schedule object in both phases; overriding it in one must leave the other."""
    usual, changed = given(), given(f"{SECOND}.lr.peak=5e-3", f"{SECOND}.lr.warmup.steps=7")
    assert changed.phases["second"].lr.peak == 5e-3 and changed.phases["second"].lr.warmup == c.Duration(steps=7)
    assert changed.phases["first"] == usual.phases["first"]


def test_named_entries_that_were_not_there(given):
    spec = given(f"{SECOND}.weights.new=0.5", f"{SECOND}.weights['replay(first)']=2", f"{SECOND}.mix.old=0")
    assert spec.phases["second"].weights == {"new": 0.5, "replay(first)": 2.0}
    assert spec.phases["second"].mix == {"new": 1.0, "old": 0.0}
    assert resolve(spec).phases[1].multipliers(0)[0] == pytest.approx(0.5 / 0.9 / 2.5)


def test_a_whole_mix_at_once(given):
    spec = given(f"{SECOND}.mix={{'new': 0.75, 'old': 0.25}}", f"{SECOND}.mixer.kind=linear")
    assert spec.phases["second"].mix == {"new": 0.75, "old": 0.25}
    spec = given(
        f"{SECOND}.mixer.options.end={{'new': 0, 'old': 1}}", f"{SECOND}.mixer.kind=linear", f"{SECOND}.mix.old=0"
    )
    assert resolve(spec).phases[1].shares(19) == pytest.approx((0, 0.9, 0.1))


def test_the_command_shows_what_was_overridden(toy_root):
    toy.write_corpora(toy_root)
    command = [sys.executable, "-m", "cpt.main", f"--config={toy.__file__}:{toy_root}", "--dry_run"]
    command += [f"{SECOND}.replay.share=0.25", f"{SECOND}.lr.kind=constant", f"{SECOND}.steps=40"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    table = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert re.search(r"10\.2k +40 +new 75 %, replay\(first\) 25 % +hold 40 at 1e-3 +reset", table["second"])
    assert re.search(r"5\.12k +20 +old 100 % +ramp 2 > cosine 0\.01\.\.1e-3 +fresh", table["first"])
    assert "second: 7.68k new + 2.56k replayed tokens (25 % replay(first), compute-equivalent" in done.stdout


def test_a_dry_run_leaves_nothing_behind(toy_root, tmp_path):
    toy.write_corpora(toy_root)
    command = [sys.executable, "-m", "cpt.main", f"--config={toy.__file__}:{toy_root}", "--dry_run"]
    command += [f"--workdir={tmp_path / 'run'}", f"--config.stores={tmp_path / 'stores'}"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_has_seen_enough_is_no_error():
    command = f"{sys.executable} -m cpt.schedules --list | head -1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.count("\n") == 1 and not done.stderr


def test_help_shows_an_example_and_the_flags():
    done = subprocess.run([sys.executable, "-m", "cpt.main", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert "python -m cpt.main --config=configs/pile_to_slimpajama.py" in done.stdout and "--workdir" in done.stdout


# ---- recipes ----
@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_every_recipe_of_the_repository_gives_a_plan(file):
    done = subprocess.run(
        [sys.executable, "-m", "cpt.main", f"--config={file}", "--dry_run"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "total" in done.stdout and "FLOP" in done.stdout
    assert f"--config=configs/{file.name}" in file.read_text().split('"""')[1]


def test_what_a_recipe_does_not_say_is_the_default_of_the_schema(toy_config):
    spec = load(toy_config)
    assert (spec.optimizer, spec.guard, spec.mesh) == (c.OptimizerSpec(), c.GuardSpec(), c.MeshSpec())
    assert spec.phases["first"].mixer == c.MixerSpec() and not spec.phases["first"].replay.active
    assert spec.init == c.InitSpec() and spec.phases["first"].optimizer == c.PolicySpec()


# ---- contradictions ----
@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("order", ("first",), r"phases\.second: no such phase in `order`"),
        ("order", (), r"phases\.first: no such phase in `order`"),
        ("order", ("first", "second", "first"), r"order: each phase once"),
        ("order", ("first", "third"), r"order: no phase 'third'.*\(phases: first, second\)"),
        ("batch.sequences", 0, r"batch\.sequences: 0 is not at least 1"),
        ("batch.accumulate", 3, r"batch\.accumulate: 3 does not divide batch\.sequences=8"),
        ("batch.length", 33, r"batch\.length: 33 exceeds model\.context=32"),
        ("checkpoints.keep_rolling", 0, r"checkpoints\.keep_rolling: 0 is not at least 1"),
        ("guard.max_skipped", 0, r"guard\.max_skipped: 0 is not at least 1"),
        ("mesh.data", -1, r"mesh\.data: -1 is not at least 0"),
        ("evaluation.rows_per_pass", 0, r"evaluation\.rows_per_pass: 0 is not at least 1"),
        ("evaluation.sets.old.sequences", 0, r"evaluation\.sets\.old\.sequences: 0 is not at least 1"),
        ("evaluation.sets.old.source", "odl", r"evaluation\.sets\.old\.source: no source 'odl'; did you mean 'old'"),
        ("phases.first.evaluate.dense", -1, r"phases\.first\.evaluate\.dense: -1 is not at least 0"),
        ("phases.second.optimizer.steps", -1, r"phases\.second\.optimizer\.steps: -1 is not at least 0"),
        ("phases.second.replay.reservoir", 0, r"phases\.second\.replay\.reservoir: 0 is not at least 1"),
        (
            "phases.second.replay.range",
            "sen",
            r"phases\.second\.replay\.range: 'sen' is not allowed; did you mean 'seen'",
        ),
    ],
)
def test_contradictions_are_named(toy_config, path, value, says):
    config = copy.deepcopy(toy_config)
    *parents, last = path.split(".")
    node = config
    for name in parents:
        node = node[name]
    node[last] = value
    with pytest.raises(ConfigError, match=says):
        load(config)


def test_one_value_and_named_entries_are_told_apart(given):
    with pytest.raises(
        ConfigError, match=r"replay\.of\.old: --config\.phases\.second\.replay\.of is one value in this"
    ):
        given(f"{SECOND}.replay.of.old=0.5")
    with pytest.raises(ConfigError, match=r"phases\.second\.mix: 'old' is one value, named entries are needed there"):
        given(f"{SECOND}.mix=old")
