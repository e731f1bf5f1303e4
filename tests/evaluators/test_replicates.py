import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from synthetic_run import write_run

from cpt.errors import ConfigError
from cpt.evaluators.naming import LONGEST, distinguishing_names, flatten
from cpt.evaluators.objective import objective
from cpt.evaluators.replicates import compare_groups, group_summary, group_values, replicates, run_difference
from cpt.evaluators.rows import read_run

STEPS = 40


def runs_of(tmp_path, shares=(0.05, 0.25), seeds=(0, 1, 2), lasting=None, **more):
    """A sweep as {name: run}; how much is forgotten depends on the share and, by 0.03, on the seed."""
    out = {}
    for share in shares:
        for seed in seeds:
            rise = 0.2 - 0.4 * share + 0.03 * seed if lasting is None else lasting
            path = write_run(tmp_path / f"r{share}-{seed}", replay=share, lasting=rise, seed=seed, steps=STEPS, **more)
            out[path.name] = read_run(path)
    return out


def with_config(run, **fields):
    return replace(run, config={**run.config, **fields})


def test_seeds_of_one_config_are_a_group_named_by_what_differs(tmp_path):
    runs = runs_of(tmp_path)
    mixed = {n: runs[n] for n in ("r0.25-1", "r0.05-0", "r0.25-0", "r0.05-2", "r0.05-1", "r0.25-2")}
    groups = replicates(mixed)
    assert [g.name for g in groups] == ["replay.share=0.25", "replay.share=0.05"]
    assert [list(g.members) for g in groups] == [[0, 1, 2]] * 2
    assert dict(groups[1].names) == {0: "r0.05-0", 1: "r0.05-1", 2: "r0.05-2"}
    assert all(run.summary["finished"] for g in groups for run in g.members.values())


def test_how_a_run_is_carried_out_and_called_does_not_matter(tmp_path):
    runs = runs_of(tmp_path, shares=(0.05,))
    runs = {
        n: with_config(r, name=n, stores=f"/{n}", notice=n, mesh={"data": i}, batch={"length": 8, "accumulate": i + 1})
        for i, (n, r) in enumerate(runs.items())
    }
    assert [(g.name, len(g.members)) for g in replicates(runs)] == [("all", 3)]
    other = {n: with_config(r, batch={"length": 8 * (1 + (n == "r0.05-1"))}) for n, r in runs.items()}
    assert [(g.name, len(g.members)) for g in replicates(other)] == [("batch.length=8", 2), ("batch.length=16", 1)]


def test_the_same_seed_again_is_no_new_evidence(tmp_path):
    runs = runs_of(tmp_path, shares=(0.05,), seeds=(0, 1))
    half = write_run(tmp_path / "half", seed=1, steps=STEPS, until=50)
    (group,) = replicates({"half": read_run(half), **runs, "copy": runs["r0.05-0"]})
    assert group.names == {0: "r0.05-0", 1: "r0.05-1"} and group.again == ("half", "copy")


def test_runs_without_a_config_are_not_taken_for_one(tmp_path):
    runs = {n: with_config(r) for n, r in runs_of(tmp_path, shares=(0.05,), seeds=(0, 1)).items()}
    bare = {n: replace(r, config={}) for n, r in runs.items()}
    assert [g.name for g in replicates(bare)] == ["run=r0.05-0", "run=r0.05-1"]
    planned = {n: replace(r, config={}, plan={**r.plan, "spec": {"seed": i}}) for i, (n, r) in enumerate(runs.items())}
    assert [list(g.members) for g in replicates(planned)] == [[0, 1]]


def test_children_belong_together_where_their_parents_do(tmp_path):
    parents = runs_of(tmp_path, shares=(0.0, 0.5), seeds=(0, 1))
    children = {}
    for name, run in parents.items():
        config = {"seed": run.config["seed"], "init": {"from_run": str(run.path)}}
        children[f"child of {name}"] = replace(run, config=config)
    groups = replicates(children)
    assert [(g.name, list(g.members)) for g in groups] == [
        ("init.from_run=r0.0-0", ["0>0", "1>1"]), ("init.from_run=r0.5-0", ["0>0", "1>1"]),
    ]  # fmt: skip
    for run in parents.values():
        (run.path / "config.json").unlink()
    assert len(replicates(children)) == 4


def test_children_are_as_random_as_their_parents_and_no_more_alike(tmp_path):
    parents = runs_of(tmp_path, shares=(0.0, 0.5), seeds=(0, 1, 2))
    child = lambda run, path: replace(run, config={"seed": 0, "init": {"from_run": str(path)}})  # noqa: E731
    (group,) = replicates({n: child(r, r.path) for n, r in list(parents.items())[:3]})
    assert list(group.members) == ["0>0", "1>0", "2>0"] and not group.again
    # Two configs in folders of one name are two configs.
    moved = {}
    for name in ("r0.0-0", "r0.5-0"):
        place = tmp_path / f"moved-{name}" / "base"
        place.parent.mkdir()
        parents[name].path.rename(place)
        moved[name] = child(parents[name], place)
    groups = replicates(moved)
    assert len(groups) == 2 and not any(g.again for g in groups)
    assert [g.name for g in groups] == ["init.from_run=base", "init.from_run=base #2"]


def test_names_stay_short_and_say_enough():
    def named(*configs):
        return distinguishing_names([flatten(c) for c in configs])

    long = {f"f{i}": {"x": {"y": 1}} for i in range(9)}
    a = {"phases": {"one": {"lr": {"peak": 1, "kind": "cosine"}}, "two": {"lr": {"peak": 1}}}, "order": "ab"}
    b = {"phases": {"one": {"lr": {"peak": 2, "kind": "cosine"}}, "two": {"lr": {"peak": 3}}}, "order": "ab"}
    assert named(a, b) == ["one.lr.peak=1, two.lr.peak=1", "one.lr.peak=2, two.lr.peak=3"]
    # Nine fields follow from one switch: it alone is the name.
    switched = {**a, "order": "ba", **long}
    assert named(a, switched) == ["order=ab", "order=ba"]
    # What only some configs have follows from what all have, though its path be shorter.
    assert named({"m": {"kind": {"x": 1}}}, {"extra": 1, "more": "m" * 60, "m": {"kind": {"x": 2}}})[0] == "kind.x=1"
    grid = [
        {"m": {"x": x, "y": y}, **{f"follows{i}": {"x": (x, y, i)} for i in range(9)}} for x in (1, 2) for y in (3, 4)
    ]
    names = named(*grid)
    assert len(set(names)) == 4 and max(map(len, names)) <= LONGEST
    wide = [{"x": "a" * 80, "y": i} for i in range(3)] + [{"x": "b" * 80, "y": 0}]
    names = named(*wide)
    assert len(set(names)) == 4 and max(map(len, names)) <= LONGEST
    assert named({"a": 1}, {"a": 1, "b": {}}) == ["b=–", "b={}"]
    assert named(a, a) == ["all", "all"] and len(named(wide[0], wide[3], wide[0])) == 3


def test_values_over_seeds_are_those_of_the_summaries(tmp_path):
    (group,) = replicates(runs_of(tmp_path, shares=(0.05,)))
    for path in ("sets.pile.forgetting", "sets.pile.final", "sets.pile.gap.depth", "sets.pile.gap.area"):
        values = group_values(group, path)
        assert list(values) == [0, 1, 2] and len(set(values.values())) == 3
    assert group_values(group, "sets.pile.forgetting") == {
        s: r.summary["sets"]["pile"]["forgetting"] for s, r in group.members.items()
    }
    row = next(r for r in group_summary(group) if (r["set"], r["quantity"]) == ("pile", "forgetting"))
    values = [*group_values(group, "sets.pile.forgetting").values()]
    assert row["mean"] == pytest.approx(np.mean(values)) and row["std"] == pytest.approx(np.std(values, ddof=1))
    assert row["ci95"] == pytest.approx(
        list(stats.t.interval(0.95, 2, np.mean(values), np.std(values, ddof=1) / math.sqrt(3)))
    )
    assert (row["n"], row["seeds"]) == (3, [0, 1, 2])
    json.dumps(group_summary(group), allow_nan=False)


def test_runs_that_are_still_training_are_not_compared(tmp_path):
    runs = runs_of(tmp_path, shares=(0.05,), seeds=(0, 1))
    runs["half"] = read_run(write_run(tmp_path / "half", seed=2, steps=STEPS, until=50))
    (group,) = replicates(runs)
    assert list(group.members) == [0, 1, 2] and list(group_values(group, "sets.pile.final")) == [0, 1]
    (young,) = replicates({"half": runs["half"]})
    assert group_summary(young) == [] and compare_groups([group, young]) == []


def test_groups_are_compared_seed_by_seed(tmp_path):
    groups = replicates(runs_of(tmp_path))
    rows = {(r["set"], r["quantity"]): r for r in compare_groups(groups)}
    assert len(rows) == 2 * 4
    row = rows["pile", "forgetting"]
    assert (row["group"], row["baseline"]) == ("replay.share=0.25", "replay.share=0.05")
    assert row["paired"] and row["over"] == "seeds" and row["n"] == [3, 3]
    a, b = ([*group_values(g, "sets.pile.forgetting").values()] for g in (groups[1], groups[0]))
    ci = stats.ttest_rel(a, b).confidence_interval()
    assert row["ci95"] == pytest.approx([ci.low, ci.high], abs=1e-6)
    assert row["difference"] == pytest.approx(np.mean(a) - np.mean(b)) and row["within_noise"] is False
    json.dumps([*rows.values()], allow_nan=False)


def test_other_seeds_are_compared_unpaired_and_the_spread_hides_the_difference(tmp_path):
    runs = runs_of(tmp_path)
    del runs["r0.25-1"]
    row = next(r for r in compare_groups(replicates(runs)) if r["quantity"] == "forgetting" and r["set"] == "pile")
    a, b = [0.1 + 0.03 * s for s in (0, 2)], [0.18 + 0.03 * s for s in range(3)]
    ci = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    assert not row["paired"] and row["n"] == [2, 3] and row["within_noise"] is True
    assert row["ci95"] == pytest.approx([ci.low, ci.high], abs=0.02)
    del runs["r0.05-0"]  # two each, one of them common
    row = compare_groups(replicates(runs))[0]
    assert not row["paired"] and row["n"] == [2, 2]


def test_single_runs_are_compared_on_their_documents(tmp_path):
    runs = runs_of(tmp_path, seeds=(0,))
    rows = {(r["set"], r["quantity"]): r for r in compare_groups(replicates(runs))}
    row = rows["pile", "forgetting"]
    assert (row["over"], row["paired"], row["n"]) == ("documents", True, [1, 1])
    assert row["within_noise"] is False and row["difference"] == pytest.approx(-0.08, abs=0.002)
    assert rows["pile", "depth"]["ci95"] is None and rows["pile", "depth"]["within_noise"] is None
    mixed = replicates(runs | runs_of(tmp_path, shares=(0.05,), seeds=(0, 1)))
    assert {r["within_noise"] for r in compare_groups(mixed)} == {None}


def test_documents_that_are_not_the_same_are_not_paired(tmp_path):
    a, b = runs_of(tmp_path, seeds=(0,)).values()
    assert run_difference(a, b, "pile")["final"].over == "documents"
    elsewhere = replace(b, eval_sets={"pile": {"rows": [1], "documents": [1]}})
    assert run_difference(a, elsewhere, "pile") is None
    assert run_difference(a, b, "none") is None
    (b.path / "eval_sequences.jsonl").unlink()
    assert run_difference(a, read_run(b.path), "pile") is None


SUMMARY = {
    "bwt": -0.2, "fwt": None, "finished": True, "matrix": {"loss": [[1.0, 2.0], [3.0, None]]},
    "sets": {"pile": {"final": 3.0, "gap": None, "ci": [0.1, 0.3]}, "pile.cc": {"final": 5.0, "gap": {"depth": 1.0}}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("bwt", -0.2),
        ("sets.pile.final", 3.0),
        ("sets.pile.cc.final", 5.0),
        ("sets.*.final", 4.0),
        ("sets.pile.ci.1", 0.3),
        ("matrix.loss.0.*", 1.5),
        ("fwt", math.nan),
        ("sets.pile.gap.depth", math.nan),
        ("sets.*.gap.depth", math.nan),
    ],
)
def test_an_objective_is_read_by_its_path(path, value):
    assert objective(SUMMARY, path) == pytest.approx(value, nan_ok=True)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("sets.pille.final", r"no 'pille' in sets; did you mean 'pile'\?  \(there are: pile, pile\.cc; "),
        ("bwd", r"no 'bwd' in the summary; did you mean 'bwt'\?"),
        ("sets.pile", r"'sets\.pile' is no number, it has the fields final, gap, ci"),
        ("finished", r"'finished' is no number, it is True"),
        ("bwt.x", r"'bwt' is no number, it is -0\.2"),
        ("sets.pile.ci.7", r"no '7' in sets\.pile\.ci  \(there are: 0, 1; "),
    ],
)
def test_a_wrong_objective_lists_what_there_is(path, says):
    with pytest.raises(ConfigError, match=says):
        objective(SUMMARY, path)
