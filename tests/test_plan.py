"""The plan: numbers of the papers' recipe, units that mean the same, edges, identity, and what follows from them."""

import copy
import dataclasses
import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt import config as c
from cpt import registry
from cpt.config import RunSpec, load
from cpt.data.mix import MixPlan, row_counts
from cpt.errors import ConfigError
from cpt.plan import RunPlan, resolve
from cpt.sections import parse

ROOT = Path(__file__).resolve().parents[1]


def module_of(file: str):
    spec = importlib.util.spec_from_file_location("recipe", ROOT / "configs" / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recipe(file: str, *arguments: str):
    return module_of(file).get_config(*arguments)


@pytest.fixture(scope="module")
def papers() -> RunPlan:
    return resolve(load(recipe("pile_to_slimpajama.py", "410m")))


@pytest.fixture(scope="module")
def planned(toy_root):
    """`planned("phases.second.steps", 30, ...)`: the plan of the toy recipe with these fields changed."""
    import toy

    recipe = toy.get_config(str(toy_root))

    def change(*pairs) -> RunPlan:
        config = copy.deepcopy(recipe)
        for path, value in zip(pairs[::2], pairs[1::2], strict=True):
            *parents, last = path.split(".")
            node = config
            for name in parents:
                node = node[name]
            node[last] = value
        return resolve(load(config))

    change.config = recipe
    return change


@pytest.mark.parametrize(
    ("file", "argument"),
    [
        ("pile_to_slimpajama.py", "tiny"),
        ("pile_to_slimpajama.py", "410m"),
        ("rewarm_same_data.py", None),
        ("infinite_schedule.py", "infinite"),
        ("infinite_schedule.py", "cosine"),
        ("data_mixing.py", None),
        ("continue_pythia.py", None),
        ("continue_llama.py", None),
        ("story.py", "pretrain"),
        *(("stability_gap.py", s) for s in ("full", "subset", "quality", "mixture_fixed", "mixture_dynamic")),
    ],
)
def test_every_recipe_is_a_plan_and_says_what_to_expect(file, argument):
    plan = resolve(load(recipe(file, *([argument] if argument else []))))
    assert plan.total_steps > 0
    text = (ROOT / "configs" / file).read_text()
    assert f"python -m cpt.main --config=configs/{file}" in text and "To expect" in text


def test_no_recipe_is_forgotten():
    assert {p.name for p in (ROOT / "configs").glob("*.py")} == {
        "pile_to_slimpajama.py",
        "rewarm_same_data.py",
        "infinite_schedule.py",
        "data_mixing.py",
        "stability_gap.py",
        "continue_pythia.py",
        "continue_llama.py",
        "story.py",
    }


def test_every_method_of_mixing_is_a_plan_that_reads_what_it_says():
    """All variants of `configs/data_mixing.py`, and none of the mixers and replay schedules left out of it."""
    methods = module_of("data_mixing.py").METHODS
    assert set(registry.available("cpt.data.mixers")) - {"decided"} <= set(methods)  # which needs a log
    assert {f"replay_{k}" for k in registry.available("cpt.data.replay_shares")} <= set(methods)
    for method in methods:
        plan = resolve(load(recipe("data_mixing.py", method)))
        rows = {"prose": 30_000, "code": 90_000, "seen_elsewhere": 1500}
        mix = MixPlan(plan, rows)
        phase = plan.phases[-1]
        realised = mix.counts(phase, phase.steps) / (phase.steps * phase.sequences)
        assert realised == pytest.approx(np.mean([phase.shares(s) for s in range(phase.steps)], axis=0), abs=2e-3)
        assert mix.batch_at(plan.total_steps - 1)


@pytest.mark.slow
def test_methods_of_mixing_train(tmp_path):
    """A mixer that moves and three phases with replay, a few steps each: the ledger is what the plan says."""
    for method, columns in (
        ("curriculum", ["prose", "code", "prose"]),
        ("power_law_rehearsal", ["prose", "code", "code", "prose", "replay(first)", "replay(second)"]),
    ):
        config = recipe("data_mixing.py", method)
        fields = {f"phases.{name}.steps": 8 for name in config.order} | {"stores": tmp_path / "stores"}
        command = [sys.executable, "-m", "cpt.main", f"--config={ROOT}/configs/data_mixing.py:{method}"]
        command += [f"--workdir={tmp_path / method}", *(f"--config.{k}={v}" for k, v in fields.items())]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        ledger = json.loads((tmp_path / method / "ledger.json").read_text())
        assert ledger["exact"] and ledger["step"] == 8 * len(config.order)
        assert [row["source"] for row in ledger["phases"]] == columns
        assert all(row["tokens_consumed"] == row["tokens_planned"] > 0 for row in ledger["phases"])


# ---- the papers' recipe (2308.04014, 2403.08763): 300B tokens of each, 1104 x 2048 per step, 5 % replay ----
def test_steps_and_tokens_of_the_papers(papers):
    pile, slimpajama = papers.phases
    assert pile.tokens_per_step == 1104 * 2048 == 2_260_992
    assert pile.steps == slimpajama.steps == 300_000_000_000 // 2_260_992 == 132_685
    assert (slimpajama.first_step, slimpajama.end, papers.total_steps) == (132_685, 265_370, 265_370)
    assert slimpajama.first_token == pile.tokens == 132_685 * 2_260_992
    assert papers.total_tokens == 2 * 132_685 * 2_260_992
    assert 300e9 - pile.tokens < 2_260_992


def test_replay_of_the_papers_is_285_and_15_billion(papers):
    slimpajama = papers.phases[1]
    assert [c.name for c in slimpajama.columns] == ["slimpajama", "replay(pile)"]
    assert slimpajama.shares(0) == pytest.approx((0.95, 0.05), rel=1e-15)
    new, old = (int(n) * 2048 for n in row_counts(slimpajama).counts_before(slimpajama.steps))
    assert (new, old) == (round(0.95 * slimpajama.tokens), round(0.05 * slimpajama.tokens))
    assert abs(new - 285e9) < 3e6 and abs(old - 15e9) < 1e6


def test_learning_rate_of_the_papers(papers):
    """Linear warm-up over 1 %, cosine to a tenth of the peak, both again from 0 in the second phase."""
    warmup = round(0.01 * 132_685)
    for first in (0, 132_685):
        assert papers.lr(first) == 0.0
        assert papers.lr(first + 1) == pytest.approx(3e-4 / warmup, rel=1e-12)
        assert papers.lr(first + warmup) == pytest.approx(3e-4, rel=1e-12)
        halfway = first + warmup + (132_685 - warmup) // 2
        assert papers.lr(halfway) == pytest.approx(1.65e-4, rel=1e-3)
        assert papers.lr(first + 132_684) == pytest.approx(3e-5, rel=1e-6)


# ---- units ----
@settings(max_examples=60, deadline=None)
@given(steps=st.integers(2, 5000), rest=st.integers(0, 255))
def test_tokens_and_steps_mean_the_same(planned, steps, rest):
    by_steps = planned("phases.second.steps", steps)
    by_tokens = planned("phases.second.steps", None, "phases.second.tokens", steps * 256 + rest)
    a, b = by_steps.phases[1], by_tokens.phases[1]
    assert (a.steps, a.tokens, a.eval_steps, a.rolling, a.grid) == (b.steps, b.tokens, b.eval_steps, b.rolling, b.grid)
    assert [by_tokens.lr(s) for s in range(40)] == [by_steps.lr(s) for s in range(40)]
    assert b.tokens <= steps * 256 + rest < b.tokens + 256


@pytest.mark.parametrize("duration", [{"steps": 5}, {"tokens": 5 * 256}, {"fraction": 0.25}])
def test_durations_in_three_units(planned, duration):
    given = {"tokens": None, "steps": None, "fraction": None, **duration}
    plan = planned(*(x for unit, v in given.items() for x in (f"phases.second.lr.warmup.{unit}", v)))
    assert plan.lr(25) == pytest.approx(1e-2) and plan.lr(24) == pytest.approx(8e-3)
    plan = planned(*(x for unit, v in given.items() for x in (f"checkpoints.rolling.{unit}", v)))
    assert [p.rolling for p in plan.phases] == [5, 5]


# ---- the clock ----
@settings(deadline=None)
@given(step=st.integers(0, 40))
def test_clock(planned, step):
    plan = planned()
    clock = plan.clock(step)
    assert clock.tokens == step * 256
    assert clock.phase == ("first" if step < 20 else "second")
    assert clock.step_in_phase == (step if step < 20 else step - 20)
    assert plan.phase_at(step).name == clock.phase


def test_phases_lie_end_to_end(planned):
    spec = planned("phases.first.steps", 7).spec
    phases = {**spec.phases, "third": dataclasses.replace(spec.phases["first"], steps=None, tokens=2600)}
    plan = resolve(dataclasses.replace(spec, phases=phases, order=("first", "second", "third")))
    assert [(p.first_step, p.end, p.first_token, p.tokens) for p in plan.phases] == [
        (0, 7, 0, 1792),
        (7, 27, 1792, 5120),
        (27, 37, 6912, 2560),
    ]
    assert (plan.total_steps, plan.total_tokens, plan.clock(30).tokens) == (37, 9472, 30 * 256)


# ---- learning rate at the edges ----
def test_learning_rate_at_the_edges(planned):
    plan = planned()
    assert (plan.lr(0), plan.lr(20)) == (0.0, 0.0)
    assert (plan.lr(2), plan.lr(22)) == (1e-2, 1e-2)
    assert plan.lr(19) == pytest.approx(1e-3 + 9e-3 / 2 * (1 + math.cos(math.pi * 17 / 18)))
    assert plan.lr(40) == pytest.approx(1e-3)


def test_constant_keeps_where_the_phase_before_ended(planned):
    plan = planned("phases.second.lr.kind", "constant")
    assert [plan.lr(s) for s in (20, 30, 39)] == [pytest.approx(1e-3)] * 3


def test_warmup_from_the_current_rate(planned):
    plan = planned("phases.second.lr.warmup_from", "current")
    assert plan.lr(20) == pytest.approx(1e-3) and plan.lr(21) == pytest.approx(5.5e-3)


def test_lr0_warm_holds_zero_and_then_follows_the_schedule(planned):
    plan = planned("phases.second.optimizer.policy", "lr0_warm", "phases.second.optimizer.steps", 5)
    usual = planned()
    assert [plan.lr(s) for s in range(20, 25)] == [0.0] * 5
    assert [plan.lr(s) for s in range(25, 40)] == [usual.lr(s) for s in range(25, 40)]
    assert [plan.lr(s) for s in range(20)] == [usual.lr(s) for s in range(20)]


def test_an_open_ended_phase_can_grow_without_changing_its_past(planned):
    wsd = ("phases.second.lr.kind", "wsd", "phases.second.open_ended", True)
    steps = [x for name in ("warmup", "decay") for x in (f"phases.second.lr.{name}.fraction", None)]
    steps += ["phases.second.lr.warmup.steps", 2, "phases.second.lr.decay.steps", 4]
    steps += ["phases.second.evaluate.every.fraction", None, "phases.second.evaluate.every.steps", 5]
    short, long = planned(*wsd, *steps), planned(*wsd, *steps, "phases.second.steps", 60)
    assert [short.lr(s) for s in range(36)] == [long.lr(s) for s in range(36)]
    with pytest.raises(ConfigError, match=r"phases\.second\.lr\.decay\.fraction: the phase is open-ended"):
        planned(*wsd)
    with pytest.raises(ConfigError, match=r"phases\.second\.lr\.kind: cosine .* open-ended"):
        planned("phases.second.open_ended", True)


# ---- evaluations and checkpoints ----
@settings(max_examples=80, deadline=None)
@given(
    steps=st.integers(1, 300),
    dense=st.integers(0, 40),
    geometric=st.integers(0, 300),
    every=st.integers(0, 60),
)
def test_evaluation_grid(planned, steps, dense, geometric, every):
    fields = {"evaluate.dense": dense, "evaluate.geometric": geometric, "evaluate.every.steps": every}
    fields |= {"steps": steps, "lr.warmup.steps": 0}
    plan = planned(*(x for name, value in fields.items() for x in (f"phases.second.{name}", value)))
    expected = {0, steps} | set(range(dense + 1)) | {2**i for i in range(9) if 2**i <= geometric}
    expected |= set(range(0, steps, every)) if every else set()
    expected = {s for s in expected if s <= steps}
    assert plan.phases[1].eval_steps == tuple(sorted(expected))
    assert [s for s in range(20, plan.total_steps + 1) if plan.evaluates_at(s)] == [20 + s for s in sorted(expected)]


def test_first_and_last_step_of_a_run_are_evaluated(planned):
    plan = planned()
    assert plan.evaluates_at(0) and plan.evaluates_at(20) and plan.evaluates_at(40)
    assert not plan.evaluates_at(29) and plan.evaluates_at(28)  # 8 = 2^3 steps after the switch


def test_checkpoints(planned):
    plan = planned()  # rolling every 5, grid every 10, both counted from the phase's first step
    kinds = {s: plan.checkpoints_at(s) for s in range(41)}
    assert {s: k for s, k in kinds.items() if k} == {
        **{s: ("rolling",) for s in (5, 15, 25, 35)},
        **{s: ("grid", "rolling") for s in (10, 30)},
        **{s: ("anchor",) for s in (20, 40)},
    }
    off = planned("checkpoints.rolling.steps", 0, "checkpoints.grid.steps", None)
    assert [s for s in range(41) if off.checkpoints_at(s)] == [20, 40]


def test_grids_start_anew_in_each_phase(planned):
    plan = planned("phases.first.steps", 7, "checkpoints.rolling.steps", 3)
    assert [s for s in range(28) if "rolling" in plan.checkpoints_at(s)] == [3, 6, 10, 13, 16, 19, 22, 25]


# ---- identity ----
CHANGES = {
    "seed": 1,
    "name": "other",
    "model.width": 64,
    "batch.mask_documents": True,
    "tokenizer.max_bytes": 5,
    "optimizer.eps": 1e-7,
    "guard.max_skipped": 4,
    "sources.old.validation": 0.2,
    "phases.first.steps": 21,
    "phases.second.replay.share": 0.2,
    "phases.second.replay.order": "shuffled",
    "phases.second.lr.floor": 2e-3,
    "phases.second.optimizer.policy": "keep",
    "phases.second.evaluate.dense": 5,
    "evaluation.sets.old.sequences": 13,
    "checkpoints.keep_rolling": 3,
    "init.from_run": "elsewhere",
}


@pytest.mark.parametrize("path", CHANGES)
def test_every_field_that_changes_a_run_changes_its_hash(planned, path):
    assert planned(path, CHANGES[path]).hash != planned().hash


@pytest.mark.parametrize(
    ("path", "value"), [("stores", "/x"), ("notice", "hello"), ("mesh.tensor", 2), ("mesh.data", 0)]
)
def test_how_a_run_is_executed_is_not_its_identity(planned, path, value):
    assert planned(path, value).hash == planned().hash


def test_the_hash_does_not_depend_on_the_order_of_keys(planned):
    plan = planned()

    def backwards(x):
        return {k: backwards(x[k]) for k in reversed(x)} if isinstance(x, dict) else x

    raw = plan.to_json()["spec"]
    assert list(backwards(raw)) != list(raw)
    assert resolve(parse(RunSpec, backwards(raw))).hash == plan.hash


def test_the_hash_is_the_same_in_another_process(planned, toy_root):
    code = (
        "import sys; sys.path.insert(0, 'tests'); import toy; from cpt.config import load; from cpt.plan import resolve"
    )
    code += f"; print(resolve(load(toy.get_config({str(toy_root)!r}))).hash)"
    env = {"PYTHONHASHSEED": "7", "PATH": "/usr/bin"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == planned().hash


@pytest.mark.parametrize(
    "make",
    [
        lambda: recipe("pile_to_slimpajama.py"),
        lambda: recipe("pile_to_slimpajama.py", "410m"),
        lambda: recipe("rewarm_same_data.py"),
    ],
    ids=["tiny", "410m", "rewarm"],
)
def test_a_plan_comes_back_from_its_json(make):
    plan = resolve(load(make()))
    raw = json.loads(json.dumps(plan.to_json()))
    back = resolve(parse(RunSpec, raw["spec"]))
    assert back.spec == plan.spec and back.hash == plan.hash == raw["hash"]
    steps = range(0, plan.total_steps + 1, max(1, plan.total_steps // 500))
    assert [back.lr(s) for s in steps] == [plan.lr(s) for s in steps]
    assert raw["total_tokens"] == plan.total_tokens
    assert [p["tokens"] for p in raw["phases"]] == [p.tokens for p in plan.phases]


def test_what_plan_json_says_of_a_phase(planned):
    first, second = planned().to_json()["phases"]
    assert (first["optimizer"], second["optimizer"]) == ("fresh", "reset")
    assert first["replay"] is None and second["replay"]["of"] == "first"
    assert second["mix"] == {"new": 0.9, "replay(first)": 0.1}
    assert second["lr"] == "re-warm 2 > cosine 0.01..1e-3"


# ---- where a source is learned, what weighs how much ----
def test_learned_in(planned):
    plan = planned()
    assert (plan.learned_in("old"), plan.learned_in("new"), plan.learned_in("else")) == ("first", "second", None)
    sets = plan.to_json()["sets"]
    assert {n: s["learned_in"] for n, s in sets.items()} == {"old": "first", "new": "second"}
    assert sets["old"]["tags"] == ["upstream"]


def test_replay_of_unseen_data_is_not_where_a_source_is_learned(planned):
    plan = planned("phases.second.replay.range", "unseen")
    assert plan.phases[1].columns[1].source == "old" and plan.learned_in("old") == "first"


def test_a_later_phase_that_reads_it_again_is_not_where_it_is_learned(planned):
    plan = planned("phases.second.mix", {"new": 0.5, "old": 0.5})
    assert plan.learned_in("old") == "first"


def test_a_share_of_zero_is_not_learning_but_a_share_that_grows_is(planned):
    mix = ("phases.first.mix", {"old": 1.0, "new": 0.0})
    assert planned(*mix).learned_in("new") == "second"
    grows = ("phases.first.mixer.kind", "linear", "phases.first.mixer.options", {"end": {"old": 0.5, "new": 0.5}})
    assert planned(*mix, *grows).learned_in("new") == "first"


def test_a_source_that_is_only_read_in_the_middle_of_a_phase_is_learned_there(planned):
    config = copy.deepcopy(planned.config)
    config.sources.middle = copy.deepcopy(config.sources.new)
    mixer = c.mixer(kind="curriculum", options=dict(order=("old", "middle", "new")))
    config.phases.first.update(mix=dict(old=0.4, middle=0.2, new=0.4), mixer=mixer)
    plan = resolve(load(config))
    first = plan.phases[0]
    assert first.shares(0) == (0.0, 0.0, 1.0) and first.shares(19) == (0.0, 1.0, 0.0)  # middle, new, old
    assert [plan.learned_in(s) for s in ("old", "middle", "new")] == ["first"] * 3


def test_multipliers_are_exactly_one_by_default(planned):
    for phase in planned("phases.second.replay.share", 1 / 3).phases:
        assert all(m == 1.0 and type(m) is float for step in range(20) for m in phase.multipliers(step))


@settings(deadline=None)
@given(share=st.floats(0.01, 0.9), weight=st.floats(0.0, 3.0))
def test_multiplier_is_weight_over_share(planned, share, weight):
    plan = planned("phases.second.replay.share", share, "phases.second.weights", {"replay(first)": weight})
    new, replay = plan.phases[1].multipliers(3)
    total = 1 - share + weight
    assert new == pytest.approx(1 / total, rel=1e-12) and replay == pytest.approx(weight / share / total, rel=1e-12)
    assert (1 - share) * new + share * replay == pytest.approx(1.0, rel=1e-12)  # a mean multiplier of 1


def test_a_weight_of_a_source_with_share_zero_changes_nothing(planned):
    phase = planned("phases.second.mix", {"new": 1.0, "old": 0.0}, "phases.second.weights", {"old": 2.0}).phases[1]
    assert [c.name for c in phase.columns] == ["new", "old", "replay(first)"]
    assert phase.multipliers(0) == pytest.approx((1.0, 1.0, 1.0), abs=1e-15)


@pytest.mark.parametrize(
    ("path", "kind", "says"),
    [
        ("optimizer.kind", "adamv", r"optimizer\.kind: no 'adamv' in cpt\.optimizers; did you mean 'adamw'"),
        ("model.family", "gpt-neox", r"model\.family: no 'gpt-neox' in cpt\.models; did you mean 'gpt_neox'"),
        ("model.family", "base", r"model\.family: no 'base' in cpt\.models"),
        ("tokenizer.kind", "bytes", r"tokenizer\.kind: no 'bytes'.*did you mean 'byte'"),
        ("sources.old.corpus", "jsonlines", r"sources\.old\.corpus: no 'jsonlines'.*did you mean 'jsonl'"),
        ("optimizer.kind", "no_such_package:lion", r"cannot import 'no_such_package:lion'"),
    ],
)
def test_methods_are_looked_up_before_anything_runs(planned, path, kind, says):
    with pytest.raises(ConfigError, match=says):
        planned(path, kind)


# ---- several phases replayed ----
def three(planned, of, **replay):
    config = copy.deepcopy(planned.config)
    config.order = ("first", "second", "third")
    config.phases.third = copy.deepcopy(config.phases.second)
    config.phases.third.replay = c.replay(of=of, share=0.3, **replay)
    return resolve(load(config))


def test_a_phase_may_replay_several_earlier_ones(planned):
    phase = three(planned, {"first": 1, "second": 3}).phases[2]
    assert [(col.name, col.part) for col in phase.columns[1:]] == [("replay(first)", 0.25), ("replay(second)", 0.75)]
    assert phase.shares(0) == pytest.approx((0.7, 0.075, 0.225))


@pytest.mark.parametrize(
    ("of", "says"),
    [
        ({"first": 1, "secnd": 1}, r"'secnd' is not an earlier phase; did you mean 'second'"),
        ({"first": 0, "second": 0}, r"parts must be at least 0 and not all 0"),
        ({"first": 2, "second": -1}, r"parts must be at least 0 and not all 0"),
    ],
)
def test_what_cannot_be_replayed(planned, of, says):
    with pytest.raises(ConfigError, match=says):
        three(planned, of)


def test_how_a_run_is_carried_out_is_no_part_of_its_identity(planned):
    plain = planned()
    assert planned("batch.accumulate", 2).hash == planned("mesh.fsdp", 2).hash == plain.hash
    for field, value in (("remat", "full"), ("scan_layers", True), ("attention", "reference")):
        assert planned(f"model.{field}", value).hash == plain.hash, field
    assert planned("model.attention", "toy:window").hash != plain.hash  # may be another function
    assert planned("batch.length", 16).hash != plain.hash


# ---- shares ----
def test_shares_are_normalised(planned):
    """Thirds written with seven digits are meant as thirds; the data would not be allocated exactly otherwise."""
    phase = planned("phases.first.mix", {"old": 0.3333333, "new": 0.6666666}).phases[0]
    assert sum(phase.shares(0)) == pytest.approx(1.0, abs=1e-15)
    assert row_counts(phase).counts_before(20).sum() == 160


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (("phases.first.mix", {}), r"phases\.first\.mix: empty; name at least one source"),
        (("phases.first.mix", {"old": 1.5, "new": -0.5}), r"phases\.first\.mix: the share of 'new' is -0\.5 at step 0"),
        (("phases.second.weights", {"new": -1.0}), r"phases\.second\.weights\.new: -1\.0 is negative"),
        (("phases.second.replay.share", 1.0), r"phases\.second\.replay\.share: 1\.0 is not in \[0, 1\)"),
        (("phases.first.replay.of", "first", "phases.first.replay.share", 0.1), r"not an earlier phase.*earlier: none"),
        (
            ("phases.second.replay.range", "unseen", "phases.second.mix", {"new": 0.5, "old": 0.5}),
            r"phases\.second\.replay\.range: 'unseen' would read \['old'\] twice",
        ),
    ],
)
def test_plans_that_contradict_themselves(planned, fields, says):
    with pytest.raises(ConfigError, match=says):
        planned(*fields)
