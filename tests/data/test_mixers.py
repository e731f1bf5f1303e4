"""Every mixer and every weighting by the identity that defines it, and its shares as rows."""

import dataclasses
import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_mix import CONSTANT, LENGTH, phase, plan_of, plenty

from cpt.config import CheckpointSpec, GridSpec, MixerSpec, ReplaySpec
from cpt.data.decisions import Decision
from cpt.data.mix import MixPlan, row_counts
from cpt.data.mixers._base import over_steps
from cpt.data.preparing import SourceSpec
from cpt.data.spec import ReplayShareSpec
from cpt.errors import ConfigError
from cpt.phase import Phase
from cpt.schedules.spec import LRSpec
from cpt.units import Duration

MC4 = {"a": 2733.0, "b": 162.0, "c": 39.0, "d": 1.0}  # 2410.04579: EN, IT, ZH, SW of mC4, billions of tokens


def made(kind: str, mix=("a", "b", "c"), steps=20, batch=4, sources=None, lr=None, **options) -> Phase:
    """The one phase of a plan with this mixer."""
    mix = mix if isinstance(mix, dict) else dict.fromkeys(mix, 1 / len(mix))
    sources = sources or dict.fromkeys(mix)
    spec = dataclasses.replace(phase(steps, mix, mixer=MixerSpec(kind, options)), lr=lr or CONSTANT)
    return plan_of(spec, batch=batch, sources=sources).phases[0]


def shares(p: Phase, step: int = 0) -> dict[str, float]:
    return {c.name: q for c, q in zip(p.columns, p.shares(step), strict=True)}


def p_of(sizes: dict[str, float], tau: float) -> dict[str, float]:
    powers = {name: size ** (1 / tau) for name, size in sizes.items()}
    return {name: power / sum(powers.values()) for name, power in powers.items()}


# ---- sizes ----
def test_proportional_is_proportional():
    assert shares(made("proportional", sizes={"a": 6, "b": 3, "c": 1})) == pytest.approx({"a": 0.6, "b": 0.3, "c": 0.1})


def test_sizes_come_from_the_manifest_of_a_store(tmp_path):
    domains = {"Github": {"tokens": 100}, "ArXiv": {"tokens": 300}}
    splits = {"train": {"tokens": 400, "domains": domains}, "replay_holdout": {"tokens": 50, "domains": {}}}
    (tmp_path / "manifest.json").write_text(json.dumps({"splits": splits}))
    store = str(tmp_path)
    sources = {
        "a": SourceSpec(store=store),
        "b": SourceSpec(store=store, domain="ArXiv", skip_tokens=100),
        "c": SourceSpec(store=store, split="replay_holdout", take_tokens=20),
    }
    assert shares(made("proportional", sources=sources)) == pytest.approx(
        {"a": 400 / 620, "b": 200 / 620, "c": 20 / 620}
    )


def test_a_size_that_nobody_knows_is_asked_for():
    with pytest.raises(ConfigError, match=r"phases\.p0\.mixer\.options\.sizes: how many tokens 'b' has is not known"):
        shares(made("temperature", sizes={"a": 6, "c": 1}))


# ---- temperature (2410.04579) ----
def test_published_values_of_temperature_sampling():
    found = shares(made("temperature", tuple(MC4), tau=5.0, sizes=MC4))
    assert [round(found[k], 3) for k in MC4] == [0.454, 0.258, 0.194, 0.093]


@given(st.floats(0.2, 50))
def test_temperature_is_the_formula(tau):
    assert shares(made("temperature", tuple(MC4), tau=tau, sizes=MC4)) == pytest.approx(p_of(MC4, tau), rel=1e-9)


def test_the_ends_of_temperature():
    proportional = shares(made("proportional", tuple(MC4), sizes=MC4))
    assert shares(made("temperature", tuple(MC4), tau=1, sizes=MC4)) == pytest.approx(proportional)
    assert shares(made("temperature", tuple(MC4), tau=1e9, sizes=MC4)) == pytest.approx(dict.fromkeys(MC4, 0.25))
    with pytest.raises(ConfigError, match=r"options\.tau: 0 is not a temperature above 0"):
        made("temperature", tau=0, sizes=dict.fromkeys("abc", 1))


@pytest.mark.parametrize(
    ("at", "switch"),
    [
        (dict(), 10),
        (dict(at=0.25), 5),
        (dict(at_steps=7), 7),
        (dict(at_tokens=13 * 4 * LENGTH), 13),
        (dict(at=1.0), 20),
    ],
)
def test_cooldown_switches_once(at, switch):
    p = made("cooldown", tuple(MC4), sizes=MC4, **at)
    for step in range(20):
        assert shares(p, step) == pytest.approx(p_of(MC4, 5.0 if step < switch else 1.0))


def F(tau: float) -> float:
    """Variance factor of weighting against sampling: sum_i p(i; tau)^2 / p(i; 1)."""
    p, base = p_of(MC4, tau), p_of(MC4, 1.0)
    return sum(p[k] ** 2 / base[k] for k in MC4)


def sampled_and_weighted(tau: float) -> tuple[Phase, Phase]:
    weights, mixer = p_of(MC4, tau), MixerSpec("proportional", {"sizes": MC4})
    weighted = phase(20, dict.fromkeys(MC4, 0.25), weights=weights, mixer=mixer)
    sampled = made("temperature", tuple(MC4), tau=tau, sizes=MC4)
    return sampled, plan_of(weighted, sources=dict.fromkeys(MC4)).phases[0]


@pytest.mark.parametrize(("tau", "published"), [(2.0, 2.25), (3.33, 11.0), (5.0, 29.8)])
def test_the_published_variance_measured_on_samples(tau, published):
    """Gradients of +1 and -1, 200,000 batches of 64: the variance of their means, weighted over sampled.

    So many, because most of the variance comes from a source of 0.03 %: the ratio has a standard error of 1.2 % for
    tau = 5, and 4.5 % with a tenth of the batches.
    """
    rng, variances = np.random.default_rng(0), []
    for p in sampled_and_weighted(tau):
        rows_NxK = rng.multinomial(64, p.shares(0), size=200_000)
        gradient_NxK = 2 * rng.binomial(rows_NxK, 0.5) - rows_NxK
        variances.append((gradient_NxK @ np.array(p.multipliers(0)) / 64).var())
    assert variances[1] / variances[0] == pytest.approx(published, rel=0.05)


def test_sampling_and_weighting_have_the_same_gradient_and_the_published_variance():
    """Temperature sampling against proportional sampling with `weights` w_i = p(tau): the plan's own multipliers.

    The gradients of one domain are taken to be of one norm, as the paper does; then the variance of the weighted
    estimate is F(tau) times that of the sampled one. Both are computed in full over a finite set of gradients.
    """
    rng = np.random.default_rng(0)
    gradients = {k: rng.choice([-1.0, 1.0], (64, 8)) for k in MC4}  # of zero mean and unit norm in each coordinate
    gradients = {k: np.concatenate([g, -g]) for k, g in gradients.items()}
    offset = {k: rng.normal(size=8) for k in MC4}
    for tau, published in ((2.0, 2.25), (3.33, 11.0), (5.0, 29.8), (100.0, 174.5)):
        first, second = [], []
        for p in sampled_and_weighted(tau):
            q, w = np.array(p.shares(0)), np.array(p.multipliers(0))
            first.append(sum(q[i] * w[i] * (gradients[k] + offset[k]).mean(0) for i, k in enumerate(MC4)))
            second.append(sum(q[i] * w[i] ** 2 * (gradients[k] ** 2).mean() for i, k in enumerate(MC4)))
        assert first[0] == pytest.approx(first[1], rel=1e-12)
        assert second[1] / second[0] == pytest.approx(F(tau), rel=1e-9) == pytest.approx(published, rel=0.01)


# ---- UniMax (2304.09151) ----
def test_unimax_shares_evenly_under_the_cap():
    budget = 20 * 4 * LENGTH  # 320 tokens
    even = shares(made("unimax", sizes={"a": 1000, "b": 1000, "c": 1000}))
    assert even == pytest.approx(dict.fromkeys("abc", 1 / 3))
    capped = shares(made("unimax", sizes={"a": 1000, "b": 40, "c": 1000}, epochs=2.0))
    assert capped == pytest.approx({"a": 120 / budget, "b": 80 / budget, "c": 120 / budget})


@given(st.lists(st.integers(1, 400), min_size=1, max_size=3), st.floats(0.5, 4))
def test_unimax_is_even_among_those_that_are_not_full(sizes, epochs):
    n = dict(zip("abc", sizes, strict=False))
    try:
        p = made("unimax", tuple(n), sizes=n, epochs=epochs)
    except ConfigError as e:
        assert "the phase needs 320; allow more passes" in str(e) and epochs * sum(sizes) < 320
        return
    tokens = {k: q * p.new_tokens for k, q in shares(p).items()}
    assert sum(tokens.values()) == pytest.approx(320)
    free = [t for k, t in tokens.items() if t < epochs * n[k] * (1 - 1e-9)]
    assert all(t <= epochs * n[k] * (1 + 1e-9) for k, t in tokens.items())
    # Nobody has more than one that still has room.
    assert not free or max(tokens.values()) <= min(free) * (1 + 1e-9)


# ---- over the phase ----
def test_curves_go_through_their_points_in_lines_or_steps():
    points = dict(at=(0.0, 0.5, 1.0), weights={"a": (1.0, 0.0, 0.0), "b": (0.0, 2.0, 1.0)})
    lines = made("curve", ("a", "b"), steps=21, **points)
    steps = made("curve", ("a", "b"), steps=21, shape="steps", **points)
    assert [shares(lines, s)["a"] for s in (0, 5, 10, 20)] == pytest.approx([1.0, 0.5 / 1.5, 0.0, 0.0])
    assert [shares(steps, s)["a"] for s in (0, 9, 10, 20)] == [1.0, 1.0, 0.0, 0.0]
    for wrong, says in (
        (dict(at=(0.1, 1.0)), r"options\.at: needs increasing fractions"),
        (dict(weights={"a": (1, 1, 1)}), r"options\.weights: name the sources of `mix`"),
        (dict(weights={"a": (1, 1), "b": (1, 1, 1)}), r"options\.weights\.a: needs 3 weights"),
        (dict(weights={"a": (1, -1, 1), "b": (1, 1, 1)}), r"options\.weights\.a: -1 is not a number of at least 0"),
        (dict(shape="spline"), r"options\.shape: 'spline'"),
    ):
        with pytest.raises(ConfigError, match=says):
            made("curve", ("a", "b"), **{**points, **wrong})
    with pytest.raises(ConfigError, match="they are all 0 at step 0 of the phase"):
        made("curve", ("a", "b"), at=(0.0,), weights={"a": (0.0,), "b": (0.0,)})


@given(st.integers(3, 60), st.floats(0, 1), st.lists(st.integers(1, 5), min_size=3, max_size=3), st.integers(1, 5))
def test_a_curriculum_reads_each_source_in_turn_and_as_much_as_its_share(steps, overlap, parts, batch):
    mix = dict(zip("abc", (n / sum(parts) for n in parts), strict=True))
    p = made("curriculum", mix, steps=steps, batch=batch, order=("c", "a", "b"), overlap=overlap * min(mix.values()))
    table = np.array([[shares(p, s)[k] for k in ("c", "a", "b")] for s in range(steps)])
    assert (table >= 0).all() and table.sum(axis=1) == pytest.approx(np.ones(steps))
    assert table.mean(axis=0) == pytest.approx([mix[k] for k in ("c", "a", "b")])
    if overlap == 0:
        first = [int(np.argmax(table[:, i] > 1e-9)) for i in range(3)]
        last = [steps - 1 - int(np.argmax(table[::-1, i] > 1e-9)) for i in range(3)]
        assert first[0] == 0 and last[2] == steps - 1 and all(last[i] <= first[i + 1] for i in range(2))
    else:
        at = np.arange(steps)
        means = (at[:, None] * table).sum(0) / table.sum(0)
        assert means[0] <= means[1] + 1e-9 <= means[2] + 2e-9


def test_a_curriculum_says_what_is_wrong():
    with pytest.raises(ConfigError, match=r"options\.order: name each source of `mix` once, \['a', 'b', 'c'\]"):
        made("curriculum", order=("a", "b"))
    with pytest.raises(ConfigError, match=r"options\.overlap: 0.5 is not between 0 and the smallest share"):
        made("curriculum", order=("a", "b", "c"), overlap=0.5)


def test_the_blend_switches_where_the_rate_has_fallen():
    """Parmar et al. (2407.07263): at a fifth of the peak; on the way up through the threshold nothing happens."""
    lr = LRSpec(kind="cosine", peak=1e-3, floor=1e-5)
    then = {"a": 0.2, "b": 0.8}
    p = made("blend_at_lr", {"a": 0.9, "b": 0.1}, steps=100, lr=lr, then=then)
    rates = p.learning_rates()
    switch = next(s for s in range(100) if (rates[s:] <= 0.2e-3).all())
    assert 0 < switch < 99 and rates[0] <= 0.2e-3
    assert shares(p, switch - 1)["a"] == 0.9 and shares(p, switch)["a"] == 0.2 and shares(p, 0)["a"] == 0.9
    given_rate = made("blend_at_lr", {"a": 0.9, "b": 0.1}, steps=100, lr=lr, then=then, threshold=0.2e-3)
    assert [shares(given_rate, s) for s in range(100)] == [shares(p, s) for s in range(100)]
    with pytest.raises(ConfigError, match=r"the learning rate ends at 1e-05 and never falls to 1e-06"):
        made("blend_at_lr", {"a": 0.9, "b": 0.1}, lr=lr, then=then, threshold=1e-6)
    with pytest.raises(ConfigError, match=r"options\.then: name the sources of `mix`"):
        made("blend_at_lr", {"a": 0.9, "b": 0.1}, lr=lr, then={"a": 1.0})


# ---- long phases ----
@pytest.mark.parametrize(("steps", "overlap"), [(100_000, 0.0), (100_000, 0.3), (1_000_000, 1e-5)])
def test_a_long_curriculum_is_no_rounding_error(steps, overlap):
    p = made("curriculum", steps=steps, order=("b", "a", "c"), overlap=overlap)
    table = p.share_table()
    assert (table >= 0).all() and np.abs(table.sum(axis=1) - 1).max() < 1e-12
    assert table.mean(axis=0) == pytest.approx([1 / 3] * 3, abs=1e-11)
    # Both sources in a batch within the overlap, or where a border falls into it; nowhere else.
    assert abs(((table > 0) & (table < 1)).any(axis=1).sum() - 2 * overlap * steps) <= 4


LONG = 150_000
SIZES = dict(sizes={"a": 5e12, "b": 3e12, "c": 1e12})
POINTS = dict(at=(0.0, 0.3, 0.7), weights={"a": (1, 0, 1), "b": (0, 999, 1), "c": (0, 1, 0.001)})


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("cooldown", SIZES),
        ("curve", dict(**POINTS, shape="steps")),
        ("curve", POINTS),
        ("curriculum", dict(order=("b", "a", "c"))),
        ("blend_at_lr", dict(then={"a": 0.001, "b": 0.999, "c": 0.0})),
        ("linear", dict(end={"a": 0.0, "b": 0.3, "c": 0.7})),
    ],
)
def test_long_phases_are_asked_as_a_whole_and_exact(kind, options, monkeypatch):
    p = made(kind, steps=LONG, batch=7, lr=LRSpec(kind="cosine", peak=1e-3, floor=1e-5), **options)
    some = np.unique(np.linspace(0, LONG - 1, 97).astype(int))
    expected = np.array([p.shares(int(s)) for s in some])
    asked, mixer = [], p._mixer
    counting = over_steps(lambda *question: asked.append(1) or mixer(*question))
    monkeypatch.setitem(vars(p), "_mixer", counting)
    table = p.share_table()
    assert table[some] == pytest.approx(expected, abs=1e-15)
    rows = row_counts(p)
    counts = np.array([rows.counts_before(s) for s in range(0, LONG + 1, 50)])
    due = np.concatenate([np.zeros((1, 3)), np.cumsum(table.astype(np.longdouble) * 7, axis=0)])[::50]
    assert len(asked) == 2 and (np.abs(counts - due) < 1 + 1e-6).all()


def test_a_mixer_of_ones_own_needs_to_know_nothing_of_arrays():
    p = made(f"{__name__}:alternating", ("a", "b"), steps=9)
    assert p.share_table().tolist() == [[1.0, 0.0] if s % 2 else [0.0, 1.0] for s in range(9)]
    with pytest.raises(ConfigError, match=r"phases\.p0\.mix: shares sum to 0.5 at step 7, not 1"):
        made(f"{__name__}:short_of_it", ("a", "b"), steps=9).share_table()
    with pytest.raises(ConfigError, match=r"phases\.p0\.mix: shares sum to 0.5 at step 7, not 1"):
        made(f"{__name__}:short_of_it", ("a", "b"), steps=8)  # its last step is looked at before anything runs


def alternating(phase, sources, step):
    assert type(step) is int
    return {"a": 1.0} if step % 2 else {"b": 1.0}


def short_of_it(phase, sources, step):
    return {"a": 0.5, "b": 0.0 if step == 7 else 0.5}


def test_a_log_of_decisions_is_read_for_all_steps_at_once(tmp_path):
    log = tmp_path / "decisions.jsonl"
    shares_at = {4: {"a": 0.25, "b": 0.75}, 9: {"b": 1.0}}
    made_then = [Decision(s, "p0", s, {}, q) for s, q in shares_at.items()] + [Decision(30, "p1", 1, {}, {"a": 1.0})]
    log.write_text("".join(json.dumps(dataclasses.asdict(d)) + "\n" for d in made_then))
    p = made("decided", {"a": 0.5, "b": 0.5}, steps=12, log=str(log))
    expected = [[0.5, 0.5]] * 4 + [[0.25, 0.75]] * 5 + [[0.0, 1.0]] * 3
    assert p.share_table().tolist() == [list(p.shares(s)) for s in range(12)] == expected


# ---- rows ----
@st.composite
def stages(draw):
    """Hard switches between random mixes: up to 64 sources, many of them at 0, and one of 0.1 %."""
    sources, steps = draw(st.sampled_from([2, 5, 64])), draw(st.integers(2, 90))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    at = np.unique([0.0, *rng.random(draw(st.integers(0, 3)))])
    weights = rng.dirichlet([draw(st.sampled_from([0.05, 1.0]))] * sources, len(at))
    weights[weights < 0.5 / sources] = 0.0
    weights[:, 0] = 0.001 * weights[:, 1:].sum(axis=1) / 0.999
    weights[weights.sum(axis=1) == 0] = 1.0
    return steps, draw(st.integers(1, 40)), at, weights / weights.sum(axis=1, keepdims=True)


@settings(max_examples=60)
@given(stages())
def test_after_every_batch_every_source_is_within_a_row_of_its_share(plan):
    steps, batch, at, share_AxK = plan
    names = [f"s{k:02}" for k in range(share_AxK.shape[1])]
    weights = {n: tuple(share_AxK[:, k].tolist()) for k, n in enumerate(names)}
    sources = {n: SourceSpec(store=n) for n in names}
    mixer = MixerSpec("curve", dict(at=tuple(at.tolist()), weights=weights, shape="steps"))
    plan = plan_of(phase(steps, dict.fromkeys(names, 1.0 / len(names)), mixer=mixer), batch=batch, sources=sources)
    mix, due, had = MixPlan(plan, dict.fromkeys(names, steps * batch)), np.zeros(len(names)), Counter()
    read = {n: set() for n in names}
    for step in range(steps):
        now = share_AxK[sum(step / (steps - 1) >= a - 1e-12 for a in at) - 1]
        _, names_B, row_B = mix.batch_at(step)
        had.update(names_B)
        for name, row in zip(names_B, row_B.tolist(), strict=True):
            assert row not in read[name] and now[names.index(name)] > 0
            read[name].add(row)
        due += now * batch
        count = np.array([had[n] for n in names])
        assert count.sum() == (step + 1) * batch
        assert (count >= np.floor(due + 2e-6) - 1e-6).all() and (count <= np.ceil(due - 2e-6) + 1e-6).all()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("fixed", {}),
        ("curve", dict(at=(0.0, 0.5), weights={"a": (1, 0), "b": (0, 3), "c": (1, 1)}, shape="steps")),
        ("blend_at_lr", dict(then={"a": 0.0, "b": 0.5, "c": 0.5}, threshold=1.0)),
        ("temperature", dict(sizes={"a": 5, "b": 3, "c": 1})),
        ("unimax", dict(sizes={"a": 500, "b": 300, "c": 20})),
        ("cooldown", dict(sizes={"a": 5, "b": 3, "c": 1})),
        ("curriculum", dict(order=("b", "a", "c"), overlap=0.1)),
        ("linear", dict(end={"a": 0.0, "b": 0.5, "c": 0.5})),
    ],
)
@pytest.mark.parametrize("replay", ["constant", "linear", "burst", "decay"])
def test_the_table_of_shares_is_the_shares_and_the_rows_follow_it(kind, options, replay):
    spec = ReplaySpec(of="p0", share=0.4, schedule=ReplayShareSpec(replay, end=0.1), max_repeats=1e9)
    mix = dict.fromkeys("abc", 1 / 3)
    plan = plan_of(phase(5), phase(40, mix, mixer=MixerSpec(kind, options), replay=spec), batch=5)
    p = plan.phases[1]
    table = np.atleast_2d(p.share_table())
    assert np.broadcast_to(table, (40, 4)) == pytest.approx(np.array([p.shares(s) for s in range(40)]), abs=1e-12)
    counts = np.array([row_counts(p).counts_before(s) for s in range(41)])
    due = np.concatenate([np.zeros((1, 4)), np.cumsum(np.broadcast_to(table, (40, 4)) * 5, axis=0)])
    assert (np.abs(counts - due) < 1 + 1e-6).all() and (counts.sum(axis=1) == 5 * np.arange(41)).all()
    assert MixPlan(plan, plenty(plan)).batch_at(plan.total_steps - 1)


# ---- mistakes ----
FULL = {"a": 5, "b": 3, "c": 1}
THEN = {"a": 0.2, "b": 0.3, "c": 0.5}
MISTAKES = [
    ("temperature", dict(taus=3, sizes=FULL), r"taus: no such option of 'temperature'; did you mean 'tau'\?"),
    ("temperature", dict(tau="x", sizes=FULL), r"tau: x is not a temperature above 0"),
    ("proportional", dict(sizes={"a": "x"}), r"sizes\.a: 'x' is not a number of at least 0"),
    ("proportional", dict(sizes=3), r"sizes: 3 is no mapping"),
    ("proportional", dict(sizes={**FULL, "aa": 3}), r"sizes\.aa: no such source; did you mean 'a'"),
    ("cooldown", dict(at="half", sizes=FULL), r"at: 'half' is not a number of at least 0"),
    ("cooldown", dict(at=1.5, sizes=FULL), r"at\.fraction: 1\.5 is out of range"),
    ("cooldown", dict(at_steps=2.5, sizes=FULL), r"at_steps: 2\.5 is not a whole number"),
    ("cooldown", dict(at_steps=21, sizes=FULL), r"at_steps: the switch, at step 21, lies beyond the phase of 20 steps"),
    ("cooldown", dict(at=0.5, at_tokens=64, sizes=FULL), r"at: give one of at, at_steps, at_tokens"),
    ("cooldown", dict(end_tau=0, sizes=FULL), r"end_tau: 0 is not a temperature above 0"),
    ("unimax", dict(epochs=math.nan, sizes=FULL), r"epochs: nan is not a number of at least 0"),
    ("curve", dict(at="x", weights=FULL), r"at: 'x' is not a number"),
    ("curve", dict(at=(0.0,), weights=3), r"weights: name the sources of `mix`, \['a', 'b', 'c'\] \(got 3\)"),
    ("curve", dict(at=(0.0,), weights={**FULL, "b": math.inf}), r"weights\.b: inf is not a number"),
    ("curriculum", dict(order="abc"), r"order: name each source of `mix` once"),
    ("curriculum", dict(order=3), r"order: name each source of `mix` once"),
    ("curriculum", dict(order=("a", "b", "c"), overlap="x"), r"overlap: 'x' is not a number"),
    ("linear", dict(end=3), r"end: name the sources of `mix`"),
    ("linear", dict(end={**THEN, "a": 0.1}), r"end: shares sum to 0\.9, not 1"),
    ("linear", dict(end={**THEN, "a": -0.2}), r"end\.a: -0\.2 is not a number of at least 0"),
    ("blend_at_lr", dict(then={**THEN, "a": "x"}), r"then\.a: 'x' is not a number"),
    ("blend_at_lr", dict(then=THEN, of_peak=0.1, threshold=1.0), r"options: give one of threshold and of_peak"),
    ("blend_at_lr", dict(then=THEN, of_peak="x"), r"of_peak: 'x' is not a number"),
]


@pytest.mark.parametrize(("kind", "options", "says"), MISTAKES)
def test_a_mistake_in_the_options_is_one_line(kind, options, says):
    with pytest.raises(ConfigError, match=r"phases\.p0\.mixer\.options\.?" + says.removeprefix("options")):
        made(kind, **options)


def test_an_open_ended_phase_may_switch_beyond_what_is_planned_of_it():
    mixer, five = MixerSpec("cooldown", dict(at_steps=30, sizes=FULL)), Duration(steps=5)
    spec = phase(20, dict.fromkeys("abc", 1 / 3), mixer=mixer, open_ended=True, evaluate=GridSpec(every=five))
    p = plan_of(spec, checkpoints=CheckpointSpec(rolling=five)).phases[0]
    assert shares(p, 19) == pytest.approx(p_of(FULL, 5.0)) and shares(p, 30) == pytest.approx(p_of(FULL, 1.0))


def test_a_mixer_may_not_name_other_sources():
    with pytest.raises(ConfigError, match=r"mixer: gives a share to \['z'\], which `mix` does not name"):
        made(f"{__name__}:stray")


def stray(phase, sources, step):
    return {"a": 0.5, "z": 0.5}


# ---- weights ----
def test_weights_move_in_a_line_to_their_end():
    p = plan_of(phase(11, {"a": 0.5, "b": 0.5}, weights={"b": 1.0}, weights_end={"b": 3.0})).phases[0]
    for step in range(11):
        w = 1.0 + 2.0 * step / 10
        assert p.multipliers(step) == pytest.approx((1 / (0.5 + w), w / 0.5 / (0.5 + w)))
    for wrong, says in (
        (dict(weights_end={"b": 1.0}), r"weights_end\.b: give the weight it begins with as phases\.p0\.weights\.b"),
        (dict(weights={"a": 1.0}, weights_end={"a": -1.0}), r"weights_end\.a: -1.0 is negative"),
        (dict(weights={"a": 1.0}, weights_end={"x": 1.0}), r"weights_end\.x: nothing of that name is read"),
    ):
        with pytest.raises(ConfigError, match=says):
            plan_of(phase(11, {"a": 0.5, "b": 0.5}, **wrong))


@given(
    st.lists(st.floats(0.01, 1), min_size=3, max_size=3), st.lists(st.floats(0, 3), min_size=3, max_size=3).filter(any)
)
def test_a_weighted_mix_minimises_the_weighted_loss(q, w):
    """Share times multiplier is the weight, up to the sum of the weights, whatever the shares are."""
    q = np.array(q) / sum(q)
    mix, weights = dict(zip("abc", q.tolist(), strict=True)), dict(zip("abc", w, strict=True))
    p = plan_of(phase(3, mix, weights=weights)).phases[0]
    assert np.array(p.shares(0)) * p.multipliers(0) == pytest.approx(np.array(w) / sum(w), abs=1e-12)
