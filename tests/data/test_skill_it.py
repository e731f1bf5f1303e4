"""Skill-it (2307.14430): its formula, and a run with feedback that can be stopped anywhere and played again."""

import io
import json
import shutil

import numpy as np
import pytest
import toy
from rich.console import Console
from test_mix import phase, plan_of

from cpt.config import EvaluationSpec, MixerSpec, SetSpec, load
from cpt.data.decisions import LOG, Decision, Decisions, Rounds, read_decisions
from cpt.data.mix import MixPlan, row_counts
from cpt.data.preparing import open_sources
from cpt.errors import ConfigError, RunError
from cpt.plan import resolve
from cpt.training import loop
from cpt.training.feed import Data
from cpt.training.workdir import prepare_workdir

SETS = {"sa": SetSpec("a"), "sb": SetSpec("b"), "sc": SetSpec("c")}


def made(mix=("a", "b", "c"), sets=SETS, steps=40, **options):
    spec = phase(steps, dict.fromkeys(mix, 1 / len(mix)), mixer=MixerSpec("skill_it", {"every": 10, **options}))
    return plan_of(spec, evaluation=EvaluationSpec(sets)).phases[0]


def softmax(x):
    x = np.exp(np.array(x) - np.max(x))
    return x / x.sum()


# ---- the formula ----
def test_with_the_identity_it_samples_by_the_softmax_of_the_losses():
    p = made(eta=0.7)
    assert p.shares(0) == pytest.approx([1 / 3] * 3)
    found = p.decide({"sa": 3.0, "sb": 2.0, "sc": 5.0})
    assert [found[k] for k in "abc"] == pytest.approx(softmax([0.7 * 3, 0.7 * 2, 0.7 * 5]))


def test_the_window_sums_the_last_rounds_and_nothing_compounds():
    p = made(eta=0.5, window=3)
    rows = [{"sa": 1.0 + i, "sb": 2.0, "sc": 0.5 * i} for i in range(5)]
    for i, row in enumerate(rows[:-1]):
        p.decisions.made.append(Decision(10 * i, p.name, 10 * i, row, p.decide(row)))
    found = p.decide(rows[-1])
    sums = [sum(r[k] for r in rows[2:]) for k in ("sa", "sb", "sc")]
    assert [found[k] for k in "abc"] == pytest.approx(softmax([0.5 * s for s in sums]))


def test_a_graph_lets_prerequisites_count_and_targets_choose_what_counts():
    """Learning `a` helps `sb` by half; only `sb` is wanted, by the mean of the window."""
    graph = {"a": {"sa": 1.0, "sb": 0.5}, "b": {"sb": 1.0}}
    p = made(mix=("a", "b"), eta=1.0, graph=graph)
    assert p.shares(0) == pytest.approx(softmax([1.5, 1.0]))
    losses = {"sa": 2.0, "sb": 4.0, "sc": 9.0}
    found = p.decide(losses)
    assert [found[k] for k in "ab"] == pytest.approx(softmax([2.0 + 0.5 * 4.0, 4.0]))
    wanted = made(mix=("a", "b"), eta=1.0, graph=graph, targets=("sb",), window=2)
    wanted.decisions.made.append(Decision(10, wanted.name, 10, {"sb": 2.0}, {}))
    found = wanted.decide({"sb": 4.0})
    assert [found[k] for k in "ab"] == pytest.approx(softmax([0.5 * 3.0, 3.0]))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(every=0), "options.every: 0 is not a number of at least 1"),
        (dict(eta=-1.0), "options.eta: -1.0 is not a number of at least 0"),
        (dict(targets=("sx",)), "no evaluation set 'sx'"),
        (dict(graph={"z": {"sa": 1.0}}), r"options.graph: \['z'\] are no sources of `mix`"),
        (dict(sets={}), "no evaluation set tells of any source of `mix`"),
    ],
)
def test_mistakes(options, says):
    with pytest.raises(ConfigError, match=says):
        made(**options).shares(0)


def test_branches_of_a_run_with_feedback_are_refused():
    from dataclasses import replace

    from cpt.schedules.trunk import AnnealSpec

    spec = phase(40, mixer=MixerSpec("skill_it", {"every": 10}))
    plan = plan_of(spec, evaluation=EvaluationSpec(SETS))
    with pytest.raises(
        ConfigError, match=r"phases\.p0\.mixer\.kind: 'skill_it' decides from evaluations; such a run has"
    ):
        resolve(replace(plan.spec, anneal=AnnealSpec(phase_ends=True)))


# ---- rows in rounds ----
def test_rounds_are_exact_and_a_decision_leaves_the_rounds_before_it():
    p = made(steps=45)
    before = [counts_of(p, s) for s in range(46)]
    p.decisions.made.append(Decision(20, p.name, 20, {}, {"a": 0.9, "b": 0.1, "c": 0.0}))
    after = [counts_of(p, s) for s in range(46)]
    assert all((a == b).all() for a, b in zip(before[:21], after[:21], strict=True))
    assert (after[45] - after[20]).tolist() == [90, 10, 0] and after[45].sum() == 45 * 4
    with pytest.raises(IndexError):
        Rounds([0], [np.array([1.0])], 4, 10, "x").counts_before(11)


def counts_of(p, step):
    return row_counts(p).counts_before(step)


def test_the_log_survives_a_cut_line_and_nothing_else(tmp_path):
    log = Decisions()
    for step in (10, 20):
        log.add(Decision(step, "p", step, {"s": 1.0}, {"a": 1.0}), tmp_path)
    text = (tmp_path / LOG).read_text()
    (tmp_path / LOG).write_text(text[:-7])
    assert [d.step for d in read_decisions(tmp_path / LOG)] == [10]
    (tmp_path / LOG).write_text("[]\n" + text)
    with pytest.raises(RunError, match=r"decisions\.jsonl:1: not a decision"):
        read_decisions(tmp_path / LOG)
    (tmp_path / LOG).write_text(text)
    log.load(tmp_path, 15)
    assert [d.step for d in log.made] == [10] == [d.step for d in read_decisions(tmp_path / LOG)]


# ---- a run ----
@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("skill_it")


def config_of(root, **mixer):
    """Two short phases; the second mixes both sources by feedback, every four of its fourteen steps."""
    config = toy.get_config(str(root))
    config.phases.first.steps, config.phases.second.steps = 4, 14
    config.phases.second.mix = {"old": 0.5, "new": 0.5}
    config.phases.second.replay.share = 0.25
    config.phases.second.replay.max_repeats = 4.0
    config.phases.second.mixer.kind = mixer.pop("kind", "skill_it")
    config.phases.second.mixer.options = mixer or dict(every=4, eta=3.0, window=2)
    config.checkpoints.rolling.fraction, config.checkpoints.rolling.steps = None, 1
    config.checkpoints.keep_rolling = 20
    return config


def train(config, into):
    plan = resolve(load(config))
    sources, tokenizer = open_sources(plan.spec.sources, plan.spec.tokenizer, into.parent / "stores", lambda _: None)
    prepare_workdir(into)
    loop.train(plan, Data(sources, tokenizer), into, Console(file=io.StringIO()))
    return plan


def rows(folder, name, drop=("tokens_per_second", "data_wait_s", "step_s")):
    lines = (folder / name).read_text().splitlines()
    return [{k: v for k, v in json.loads(t).items() if k not in drop} for t in lines]


@pytest.fixture(scope="module")
def whole(root):
    train(config_of(root), root / "whole")
    return root / "whole"


def test_a_run_decides_from_its_own_evaluations(whole):
    made, evals = read_decisions(whole / LOG), rows(whole, "eval.jsonl")
    assert [d.step for d in made] == [8, 12, 16]
    for d in made:
        assert d.losses == {r["set"]: r["loss"] for r in evals if r["step"] == d.step}
        assert sum(d.shares.values()) == pytest.approx(1.0) and d.shares != {"old": 0.5, "new": 0.5}
    read = [[r.get(f"source/{k}/tokens", 0) for k in ("old", "new")] for r in rows(whole, "metrics.jsonl")]
    for d, last in zip(made, (12, 16, 18), strict=True):
        old, new = np.sum(read[d.step : last], axis=0)
        assert old / (old + new) == pytest.approx(d.shares["old"], abs=1.01 * 32 / (old + new))
    assert json.loads((whole / "ledger.json").read_text())["exact"]


@pytest.mark.parametrize("step", [7, 8, 9, 12, 13, 17])
def test_stopped_at_any_step_it_goes_on_to_the_same_digits(root, whole, tmp_path, step):
    """From the checkpoint of the step, whether the log reaches beyond it or lacks the decision of that very step."""
    for cut in (False, True):
        run = tmp_path / f"run{cut}"
        shutil.copytree(whole, run)
        for kind in ("anchor", "rolling"):
            for saved in (run / "checkpoints" / kind).glob("*"):
                if saved.name.isdigit() and int(saved.name) > step:
                    shutil.rmtree(saved)
        if cut:
            kept = [t for t in (run / LOG).read_text().splitlines() if json.loads(t)["step"] < step]
            (run / LOG).write_text("".join(t + "\n" for t in kept))
        shutil.copytree(root / "stores", tmp_path / "stores", dirs_exist_ok=True)
        train(config_of(root), run)
        for name in (LOG, "metrics.jsonl", "eval.jsonl", "eval_sequences.jsonl"):
            assert rows(run, name) == rows(whole, name), name


def test_the_log_replays_the_run_without_feedback(root, whole, tmp_path):
    """`decided`: the same rows in every batch, so the same losses, with an allocation that knows all rounds at once."""
    plan = resolve(load(config_of(root, kind="decided", log=str(whole / LOG))))
    own = resolve(load(config_of(root)))
    own.phases[0].decisions.load(whole, 10**9)
    sizes = dict.fromkeys(plan.spec.sources, 5000)
    shares = [[p.phases[1].shares(s) for s in range(14)] for p in (plan, own)]
    assert shares[0] == shares[1]
    for step in range(plan.total_steps):
        a, b = (MixPlan(p, sizes).counts(p.phases[-1], max(0, step - 4)) for p in (plan, own))
        assert np.abs(a - b).max() <= 2  # in rounds of their own remainders are settled at each decision
    with pytest.raises(ConfigError, match=r"options\.log: 'none' is no file"):
        resolve(load(config_of(root, kind="decided", log="none")))
    with pytest.raises(ConfigError, match="has no decisions about 'x'"):
        resolve(load(config_of(root, kind="decided", log=str(whole / LOG), phase="x")))
