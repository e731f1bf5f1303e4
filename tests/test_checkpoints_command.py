"""`python -m cpt.checkpoints`: what it shows, that it finds damage, and that it never removes what a run needs."""

import json
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from absl import flags

from cpt import checkpoints as command
from cpt import cli
from cpt.training.checkpoint import Checkpoints
from cpt.training.preservation import Saved, superfluous
from cpt.training.state import State
from cpt.training.workdir import lock


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory) -> Path:
    """Anchor 4 and 8, rolling 7 and 9, grid 2, 4, 6, 8 of a plan of two phases; something half-written."""
    run = tmp_path_factory.mktemp("run")
    phases = [{"name": "old", "first_step": 0, "steps": 4}, {"name": "new", "first_step": 4, "steps": 8}]
    (run / "plan.json").write_text(json.dumps({"phases": phases}))
    params = {"kernel": jnp.arange(3000.0)}
    state = State(params, (jax.tree.map(jnp.square, params), jnp.int32(3)))
    checkpoints = Checkpoints(run / "checkpoints")
    full = [("anchor", 4), ("anchor", 8), ("rolling", 7), ("rolling", 9)]
    for kind, step in (*full, *(("grid", s) for s in (2, 4, 6, 8))):
        checkpoints.save(kind, step, state, {"tokens": 1000 * step, "plan_hash": "3f9c2a71ff"}, must=True)
    checkpoints.close()
    (run / "checkpoints" / "rolling" / "10.orbax-checkpoint-tmp").mkdir()
    return run


@pytest.fixture
def run(saved_run, tmp_path) -> Path:
    return Path(shutil.copytree(saved_run, tmp_path / "run"))


@pytest.fixture
def call(capsys, monkeypatch):
    """The command with flags of its own: (exit code, what it printed, its error line)."""
    values = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", values)
    monkeypatch.setattr(cli.flags, "FLAGS", values)
    for kind in ("string", "integer", "bool"):
        define = getattr(flags, f"DEFINE_{kind}")
        monkeypatch.setattr(flags, f"DEFINE_{kind}", lambda *a, _d=define, **k: _d(*a, flag_values=values, **k))
    command.define_flags()

    def run(*argv):
        values.unparse_flags()
        for name in values:
            values[name].unparse()
        code = cli.call(
            command.main, ["cpt.checkpoints", *map(str, argv)], sys.modules[command.__name__], command.VERBS
        )
        out = capsys.readouterr()
        return code, out.out, out.err.strip()

    return run


def test_ls_shows_each_checkpoint_and_what_is_none(run, call):
    code, out, _ = call("ls", f"--workdir={run}")
    rows = [line.split() for line in out.splitlines()]
    assert code == 0 and len(rows) == 1 + 8 + 1
    assert rows[1][:4] == ["rolling", "9", "9k", "new"] and rows[1][-2:] == ["finished", "3f9c2a71"]
    assert [r[3] for r in rows if r[0] == "grid"] == ["new", "new", "old", "old"]
    assert "unfinished" in rows[-1]


def test_verify_reads_everything_and_names_what_is_damaged(run, call):
    code, out, _ = call("verify", f"--workdir={run}")
    assert code == 0 and out.count("sound") == 9 and "8 checkpoints, all sound" in out
    data = max((run / "checkpoints/grid/4/params/ocdbt.process_0/d").iterdir(), key=lambda p: p.stat().st_size)
    data.write_bytes(data.read_bytes()[:-1])
    (run / "checkpoints/anchor/8/meta/metadata").unlink()
    code, out, err = call("verify", f"--workdir={run}")
    assert code == 2 and err.count("\n") == 0
    assert "2 of 8 checkpoints are damaged: anchor/8, grid/4" in err
    assert "grid/4: DAMAGED (params/ocdbt.process_0/d/" in out and "anchor/8: DAMAGED (meta" in out


def names(run: Path) -> set[str]:
    return {str(s) for s in Checkpoints(run / "checkpoints").finished(("anchor", "rolling", "grid"))}


def test_prune_says_what_would_go_and_then_lets_go_of_that(run, call):
    before = names(run)
    rules = ("prune", f"--workdir={run}", "--keep_rolling=1", "--keep_grid_every=4")
    code, out, _ = call(*rules, "--dry_run")
    assert code == 0 and names(run) == before
    assert [line.split()[2] for line in out.splitlines() if "would remove" in line] == ["grid/2", "grid/6", "rolling/7"]
    assert "3 would go" in out and "5 checkpoints stay" in out
    assert call(*rules)[0] == 0
    assert names(run) == before - {"grid/2", "grid/6", "rolling/7"}


def test_prune_never_takes_the_newest_full_checkpoint_that_is_sound(run, call):
    everything = ("prune", f"--workdir={run}", "--keep_rolling=0", "--drop_anchors")
    (run / "checkpoints/rolling/9/files.json").unlink()  # the newest is damaged
    code, out, _ = call(*everything)
    assert code == 0 and "anchor/8 is the newest full checkpoint that is sound; it stays" in out
    assert {"anchor/8"} <= names(run) and "anchor/4" not in names(run)
    (run / "checkpoints/anchor/8/files.json").unlink()
    code, _, err = call(*everything)
    assert code == 2 and "none of its full checkpoints is sound; nothing was removed" in err


def test_prune_is_refused_while_a_run_trains_there(run, call):
    before = names(run)
    with lock(run):
        code, _, err = call("prune", f"--workdir={run}", "--keep_rolling=0")
        assert code == 2 and "another process trains there" in err and names(run) == before
        code, out, _ = call("prune", f"--workdir={run}", "--keep_rolling=1", "--dry_run")
        assert code == 0 and "would be refused" in out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("prune",), "--workdir: required"),
        (("prune", "--workdir={run}"), "needs a rule: --keep_rolling"),
        (("verfy", "--workdir={run}"), "'verfy' is none of them; did you mean 'verify'?"),
        (("--workdir={run}",), "one of ls, verify, prune comes first; none was given"),
        (("ls", "--workdir={run}/nowhere"), "no checkpoints in it"),
        (("ls", "--workdir=foo://bucket/run"), "foo://bucket/run: such a URL cannot be opened here"),
        (("ls", "more", "--workdir={run}"), "more: not understood"),
        (("prune", "--workdir={run}", "--keep_rolling=-1"), "keep_rolling"),
    ],
)
def test_mistakes_are_one_line(run, call, argv, says):
    code, _, err = call(*[a.format(run=run) for a in argv])
    assert code == 2 and says in err and "\n" not in err


def test_rules_keep_the_newest_of_everything():
    found = [Saved(kind, step, None) for kind in ("anchor", "rolling", "grid") for step in (10, 15, 20)]
    assert superfluous(found) == []
    assert [str(s) for s in superfluous(found, keep_rolling=1)] == ["rolling/10", "rolling/15"]
    assert [str(s) for s in superfluous(found, keep_grid_every=10)] == ["grid/15"]
    assert [str(s) for s in superfluous(found, keep_grid_every=7)] == ["grid/10", "grid/15"]
    assert "anchor/20" not in map(str, superfluous(found, keep_rolling=0, anchors=True))
    # What was saved beside the plan, at 15 and 20, pushes nothing out that the plan would have kept.
    kept_of_plan = superfluous(found, keep_rolling=1, planned=lambda step: step % 10 == 0 and step < 20)
    assert [str(s) for s in kept_of_plan] == ["rolling/15"]
    assert len(superfluous(found, keep_rolling=0, anchors=True)) == 5
