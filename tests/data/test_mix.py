"""The laws of the data plan, checked on all rows that random plans read: exactness, continuity, replay, determinism."""

import dataclasses
import hashlib
import itertools
import sys
from collections import Counter
from fractions import Fraction
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from cpt.config import BatchSpec, MixerSpec, PhaseSpec, ReplaySpec, RunSpec
from cpt.data.mix import MixPlan
from cpt.data.preparing import SourceSpec
from cpt.errors import ConfigError, DataError
from cpt.models.spec import ModelSpec
from cpt.plan import RunPlan, resolve
from cpt.schedules.spec import LRSpec

LENGTH = 4
SOURCES = ("a", "b", "c")
MODEL = ModelSpec(layers=1, width=8, heads=1, vocab_size=16, context=LENGTH, rotary_fraction=0.0)
CONSTANT = LRSpec(kind="constant", value=1e-3)
few = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


def phase(steps: int | None = None, mix: dict | None = None, **fields) -> PhaseSpec:
    return PhaseSpec(steps=steps, mix=mix or {"a": 1.0}, lr=CONSTANT, **fields)


def plan_of(*phases: PhaseSpec, batch: int = 4, seed: int = 0, sources: dict | None = None, **more) -> RunPlan:
    names = tuple(f"p{i}" for i in range(len(phases)))
    sources = dict.fromkeys(SOURCES) if sources is None else sources
    sources = {name: s or SourceSpec(corpus="text", path=name) for name, s in sources.items()}
    spec = RunSpec(
        "mix", MODEL, BatchSpec(batch, LENGTH), sources, names, dict(zip(names, phases, strict=True)), seed=seed, **more
    )
    return resolve(spec)


def plenty(plan: RunPlan) -> dict[str, int]:
    """Stores of 10 rows more than the whole run reads."""
    return dict.fromkeys(SOURCES, plan.total_steps * plan.spec.batch.sequences + 10)


def read(mix: MixPlan, steps=None) -> list[list[tuple[int, str, int]]]:
    """`[step][b] = (column, source, row)` of the whole run."""
    steps = range(mix.plan.total_steps) if steps is None else steps
    return [list(zip(*(list(x) for x in mix.batch_at(s)), strict=True)) for s in steps]


def column(plan: RunPlan, batches: list, index: int, role: str) -> list[list[tuple[str, int]]]:
    """Per step of phase `index`, the (source, row) pairs of its columns with that role, in batch order."""
    p = plan.phases[index]
    mine = {k for k, c in enumerate(p.columns) if c.role == role}
    return [[(name, row) for k, name, row in b if k in mine] for b in batches[p.first_step : p.end]]


def flat(batches: list) -> list:
    return list(itertools.chain.from_iterable(batches))


# ---- random plans ----
@st.composite
def mixes(draw, allowed=SOURCES) -> dict[str, float]:
    names = draw(st.lists(st.sampled_from(allowed), min_size=1, max_size=3, unique=True))
    weights = draw(st.lists(st.integers(0, 4), min_size=len(names), max_size=len(names)).filter(any))
    return {n: w / sum(weights) for n, w in zip(names, weights, strict=True)}


@st.composite
def replays(draw, earlier: list[PhaseSpec], mix: dict, several: bool) -> ReplaySpec:
    chosen = st.integers(0, len(earlier) - 1)
    of = draw(st.lists(chosen, min_size=1, max_size=3, unique=True)) if several else [draw(chosen)]
    old = [n for i in of for n in earlier[i].mix]
    once = len(set(old)) == len(old) and not set(old) & set(mix)
    kinds = ["seen", "reservoir"] + (["unseen"] if once else [])
    return ReplaySpec(
        of={f"p{i}": draw(st.integers(1, 3)) for i in of} if several else f"p{of[0]}",
        share=draw(st.sampled_from([0.05, 0.25, 1 / 3, 0.9])),
        range=draw(st.sampled_from(kinds)),
        order=draw(st.sampled_from(["original", "shuffled"])),
        accounting=draw(st.sampled_from(["fixed_total", "fixed_new"])),
        max_repeats=1e9,
        reservoir=draw(st.integers(1, 12)) * LENGTH,
    )


@st.composite
def phases(draw, earlier: list[PhaseSpec], several: bool = False) -> PhaseSpec:
    mix = draw(mixes())
    mixer = MixerSpec()
    if draw(st.booleans()):
        ends = draw(st.lists(st.integers(0, 4), min_size=len(mix), max_size=len(mix)).filter(any))
        mixer = MixerSpec("linear", {"end": {n: w / sum(ends) for n, w in zip(mix, ends, strict=True)}})
    replay = draw(replays(earlier, mix, several)) if earlier and draw(st.booleans()) else ReplaySpec()
    return phase(draw(st.integers(1, 14)), mix, mixer=mixer, replay=replay)


@st.composite
def plans(draw, least: int = 2, several: bool = False) -> RunPlan:
    """Plans of `least` to 4 phases; `several` lets a phase replay more than one of those before it."""
    specs: list[PhaseSpec] = []
    for _ in range(draw(st.integers(least, 4))):
        specs.append(draw(phases(specs, several)))
    plan = plan_of(*specs, batch=draw(st.integers(1, 9)), seed=draw(st.integers(0, 3)))
    assume(not replays_nothing(plan))
    return plan


def replays_nothing(plan: RunPlan) -> bool:
    """Whether a phase replays one so short that all of its few rows were replay themselves; that is an error."""
    try:
        MixPlan(plan, plenty(plan))
    except ConfigError as e:
        assert "read no new data" in str(e)
        return True
    return False


def target_shares(p, step: int) -> dict[tuple[str, str], float]:
    """Shares by (role, source) as the config says them, computed here anew."""
    mix, end = dict(p.spec.mix), p.spec.mixer.options.get("end")
    if end is not None and p.steps > 1:
        mix = {n: q + (end[n] - q) * step / (p.steps - 1) for n, q in mix.items()}
    replay = p.spec.replay.share if p.spec.replay.of else 0.0
    return {("new", n): (1 - replay) * q for n, q in mix.items()} | {("replay", ""): replay}


# ---- shares ----
@few
@given(plans())
def test_every_prefix_of_every_column_is_within_one_row_of_its_share(plan):
    batches = read(MixPlan(plan, plenty(plan)))
    for p in plan.phases:
        had, due = Counter(), Counter()
        for inside, batch in enumerate(batches[p.first_step : p.end]):
            assert len(batch) == plan.spec.batch.sequences
            keys = [(c.role, c.source if c.role == "new" else "") for c in p.columns]
            had.update(keys[k] for k, _, _ in batch)
            for key, share in target_shares(p, inside).items():
                due[key] += share * plan.spec.batch.sequences
                several = sum(k == key for k in keys)  # a replayed mixture has a column, and a row of slack, for each
                assert abs(had[key] - due[key]) < max(several, 1) + 1e-6
            assert sum(had.values()) == (inside + 1) * plan.spec.batch.sequences


def test_half_a_percent_is_exact_in_the_long_run():
    plan = plan_of(phase(1000, {"a": 0.995, "b": 0.005}), batch=6)
    mix = MixPlan(plan, plenty(plan))
    counts = Counter(name for _, name, _ in flat(read(mix)))
    assert counts == {"a": 5970, "b": 30}
    assert [int(mix.counts(plan.phases[0], s)[1]) for s in (100, 200, 500)] == [3, 6, 15]


def test_a_source_of_share_zero_is_not_read_and_changes_nothing():
    alone = read(MixPlan(p := plan_of(phase(9, {"b": 1.0})), plenty(p)))
    beside = read(MixPlan(p := plan_of(phase(9, {"a": 0.0, "b": 1.0})), plenty(p) | {"a": 0}))
    assert [[x[1:] for x in b] for b in alone] == [[x[1:] for x in b] for b in beside]


def test_rows_of_a_batch_lie_in_it_in_a_shuffled_order():
    plan = plan_of(phase(1), phase(400, {"b": 1.0}, replay=ReplaySpec(of="p0", share=0.25, max_repeats=1e9)), batch=8)
    batches = read(MixPlan(plan, plenty(plan)))[1:]
    at = Counter(b for batch in batches for b, (k, _, _) in enumerate(batch) if k == 1)
    assert sum(at.values()) == 800 and all(60 < at[b] < 140 for b in range(8))  # 100 each, within about 4.5 sigma


# ---- rows of a source ----
@few
@given(plans(), st.sampled_from([1, 2, 3.5]))
def test_no_row_is_read_again_before_all_others_were(plan, epochs):
    """Over all phases together, at every step: each row of a source was read n or n + 1 times."""
    need = MixPlan(plan, plenty(plan)).consumed
    rows = {name: max(1, int(-(-n // epochs))) for name, n in need.items()}
    mix = MixPlan(plan, rows, dict.fromkeys(SOURCES, epochs + 1))
    read_so_far = {name: np.zeros(n, int) for name, n in rows.items()}
    for step, batch in enumerate(read(mix)):
        columns = plan.phase_at(step).columns
        for k, name, row in batch:
            if columns[k].source is not None:
                assert name == columns[k].source
                read_so_far[name][row] += 1
        assert all(n.max() - n.min() <= 1 for n in read_so_far.values())
    assert {name: int(n.sum()) for name, n in read_so_far.items()} == mix.consumed


@pytest.mark.parametrize("cut", [1, 5, 11])
def test_a_source_goes_on_where_the_phase_before_stopped(cut):
    whole = read(MixPlan(p := plan_of(phase(12)), plenty(p)))
    parts = read(MixPlan(p := plan_of(phase(cut), phase(12 - cut)), plenty(p)))
    assert parts == whole
    around = plan_of(phase(cut), phase(3, {"b": 1.0}), phase(12 - cut))
    rows = [[x[1:] for x in b] for b in read(MixPlan(around, plenty(p)))]
    assert sorted(x for x in flat(rows) if x[0] == "a") == sorted(x[1:] for x in flat(whole))


def test_the_epochs_of_a_source_have_orders_of_their_own():
    plan = plan_of(phase(15, {"a": 1.0}), batch=4)
    rows = np.array([row for _, _, row in flat(read(MixPlan(plan, dict.fromkeys(SOURCES, 20), {"a": 3.0})))])
    first, second, third = rows.reshape(3, 20)
    assert sorted(first) == sorted(second) == sorted(third) == list(range(20))
    assert len({tuple(first), tuple(second), tuple(third), tuple(range(20))}) == 4


def test_seed_and_name_decide_the_order_of_a_source():
    def rows(name: str, seed: int) -> list[int]:
        plan = plan_of(phase(10, {name: 1.0}), seed=seed)
        return [row for _, _, row in flat(read(MixPlan(plan, dict.fromkeys(SOURCES, 50))))]

    assert rows("a", 0) != rows("a", 1) and rows("a", 0) != rows("b", 0)
    assert rows("a", 0) == rows("a", 0)


# ---- a pure function of plan and step ----
@few
@given(plans(), st.randoms(use_true_random=False))
def test_batches_do_not_depend_on_what_was_asked_before(plan, rng):
    rows = plenty(plan)
    expected = read(MixPlan(plan, rows))
    order = rng.choices(range(plan.total_steps), k=min(plan.total_steps, 25))
    again = MixPlan(plan, rows)
    assert read(again, order) == [expected[s] for s in order]
    last = plan.total_steps - 1
    assert read(MixPlan(plan, rows), [last]) == [expected[last]]


@few
@given(plans(several=True), st.randoms(use_true_random=False), st.sampled_from([1, 5, 2**18]))
def test_batches_asked_for_together_are_those_asked_for_alone(plan, rng, old_rows):
    """In any order, over phases, twice the same; however many old batches are looked at together for a replay."""
    mix = MixPlan(plan, plenty(plan))
    steps = rng.choices(range(plan.total_steps), k=min(plan.total_steps, 25))
    some = np.array(sorted(rng.sample(range(mix.batch), min(3, mix.batch))))
    with mock.patch("cpt.data.mix.OLD_ROWS", old_rows):
        for rows in (None, some):
            together = mix.batches_at(np.array(steps), rows)
            for step, column_B, source_B, row_B in zip(steps, *together, strict=True):
                expected = mix.batch_at(step, rows)
                assert column_B.tolist() == expected[0].tolist() and row_B.tolist() == expected[2].tolist()
                assert [mix.sources[i] for i in source_B] == expected[1]


@few
@given(plans(), st.data())
def test_editing_a_later_phase_leaves_the_batches_before_it(plan, data):
    edited = data.draw(st.integers(1, len(plan.phases) - 1))
    specs = [plan.spec.phases[name] for name in plan.spec.order[:edited]]
    for _ in range(data.draw(st.integers(0, 2))):
        specs.append(data.draw(phases(specs)))
    other = plan_of(*specs, batch=plan.spec.batch.sequences, seed=plan.spec.seed)
    assume(not replays_nothing(other))
    rows = {name: max(plenty(plan)[name], plenty(other)[name]) for name in SOURCES}
    before = range(plan.phases[edited].first_step)
    assert read(MixPlan(plan, rows), before) == read(MixPlan(other, rows), before)


def test_the_rows_of_a_plan_never_change():
    """A run that goes on with a later version reads on where the earlier one stopped: what it was is written here."""
    first = phase(23, {"a": 0.7, "b": 0.3}, mixer=MixerSpec("linear", {"end": {"a": 0.1, "b": 0.9}}))
    kinds = itertools.product(("seen", "reservoir", "unseen"), ("original", "shuffled"), (7, 64))
    found = hashlib.sha256()
    for seed, (kind, order, batch) in enumerate(kinds):
        replay = ReplaySpec(of="p0", share=0.37, range=kind, order=order, max_repeats=50.0, reservoir=57 * LENGTH)
        again = ReplaySpec(of={"p0": 1, "p1": 2}, share=0.1, order=order, max_repeats=50.0)
        plan = plan_of(first, phase(31, {"c": 1.0}, replay=replay), phase(17, replay=again), batch=batch, seed=seed)
        for step, rows in enumerate(read(MixPlan(plan, {"a": 9000, "b": 4000, "c": 997}, dict.fromkeys(SOURCES, 1e9)))):
            found.update(f"{step} {[(int(k), name, int(row)) for k, name, row in rows]}".encode())
    assert found.hexdigest() == "2e6adc72479079417e733160ef4cc30f83a73cfefb49b712f36345ce5190714e"


# ---- replay ----
@few
@given(plans())
def test_replay_in_the_original_order_is_the_old_stream_again(plan):
    batches = read(MixPlan(plan, plenty(plan)))
    places = Counter()  # how far each phase was replayed; a later phase goes on from there
    for p in plan.phases:
        replay = p.spec.replay
        if not replay.active or (replay.range, replay.order) != ("seen", "original"):
            continue
        old = flat(column(plan, batches, int(replay.of[1:]), "new"))
        for batch in column(plan, batches, p.index, "replay"):
            place = places[replay.of]
            assert Counter(batch) == Counter(old[n % len(old)] for n in range(place, place + len(batch)))
            places[replay.of] += len(batch)


def test_replay_of_a_phase_that_replays_reads_its_new_data():
    half = ReplaySpec(of="p0", share=0.5)
    plan = plan_of(
        phase(6), phase(6, {"b": 1.0}, replay=half), phase(6, {"c": 1.0}, replay=dataclasses.replace(half, of="p1"))
    )
    batches = read(MixPlan(plan, plenty(plan)))
    new = flat(column(plan, batches, 1, "new"))
    assert {name for name, _ in new} == {"b"} and len(new) == 12
    replayed = column(plan, batches, 2, "replay")
    assert [sorted(b) for b in replayed] == [sorted(new[i : i + 2]) for i in range(0, 12, 2)]


@few
@given(plans())
def test_shuffled_replay_reads_every_seen_row_once_per_pass(plan):
    batches, by_phase = read(MixPlan(plan, plenty(plan))), {}
    for p in plan.phases:
        replay = p.spec.replay
        if not replay.active or (replay.range, replay.order) != ("seen", "shuffled"):
            continue
        fresh = dict.fromkeys(flat(column(plan, batches, int(replay.of[1:]), "new")), 0)
        counts = by_phase.setdefault(replay.of, fresh)  # phases that replay the same one share its passes
        for batch in column(plan, batches, p.index, "replay"):
            for x in batch:
                counts[x] += 1  # a KeyError would be a row that was never seen
            assert not batch or max(counts.values()) - min(counts.values()) <= 1


def test_shuffled_is_not_original_and_each_pass_has_its_own_order():
    def replayed(order: str) -> list:
        replay = ReplaySpec(of="p0", share=0.5, order=order, max_repeats=2)
        plan = plan_of(phase(8), phase(32, {"b": 1.0}, replay=replay))
        batches = read(MixPlan(plan, plenty(plan)))
        return [sorted(b) for b in column(plan, batches, 1, "replay")]

    original, shuffled = replayed("original"), replayed("shuffled")
    assert [len(b) for b in original] == [2] * 32
    assert original[:16] == original[16:] and shuffled[:16] != shuffled[16:]
    assert original[:16] != shuffled[:16] and sorted(flat(original)) == sorted(flat(shuffled))


@few
@given(plans())
def test_reservoir_reads_a_fixed_sample_of_what_was_seen(plan):
    batches, by_stream = read(MixPlan(plan, plenty(plan))), {}
    for p in plan.phases:
        replay = p.spec.replay
        if not replay.active or replay.range != "reservoir":
            continue
        seen = set(flat(column(plan, batches, int(replay.of[1:]), "new")))
        size = min(len(seen), replay.reservoir // LENGTH)
        counts = by_stream.setdefault((replay.of, replay.reservoir), Counter())
        for batch in column(plan, batches, p.index, "replay"):
            counts.update(batch)
            assert set(counts) <= seen and len(counts) == min(size, counts.total())
            assert not counts or len(counts) < size or max(counts.values()) - min(counts.values()) <= 1


def test_a_reservoir_is_a_uniform_sample_of_the_whole_phase():
    """Over 200 seeds, the rows of each quarter of the old phase are drawn equally often."""
    replay = ReplaySpec(of="p0", share=0.5, range="reservoir", reservoir=8 * LENGTH, max_repeats=9)
    quarters = Counter()
    for seed in range(200):
        plan = plan_of(phase(16), phase(4, {"b": 1.0}, replay=replay), seed=seed)
        batches = read(MixPlan(plan, plenty(plan)))
        place = {x: n for n, x in enumerate(flat(column(plan, batches, 0, "new")))}
        quarters.update(place[x] // 16 for x in flat(column(plan, batches, 1, "replay")))
    assert sum(quarters.values()) == 1600 and all(330 < quarters[q] < 470 for q in range(4))  # 400 each, 4 sigma


@few
@given(plans())
def test_unseen_replay_never_reads_what_was_read(plan):
    batches, seen = read(MixPlan(plan, plenty(plan))), set()
    for p in plan.phases:
        if p.spec.replay.active and p.spec.replay.range == "unseen":
            old = plan.phases[int(p.spec.replay.of[1:])]
            replayed = flat(column(plan, batches, p.index, "replay"))
            assert seen.isdisjoint(replayed) and len(set(replayed)) == len(replayed)
            # What the phase reads at some step: a share that begins at 0 may move.
            assert {name for name, _ in replayed} <= {
                c.source for c, r in zip(old.columns, old.reads, strict=True) if r
            }
        seen |= set(flat([[x[1:] for x in b] for b in batches[p.first_step : p.end]]))


def test_unseen_replay_of_a_mixture_keeps_its_proportions():
    old = phase(20, {"a": 0.75, "b": 0.25})
    plan = plan_of(old, phase(40, {"c": 1.0}, replay=ReplaySpec(of="p0", share=0.5, range="unseen")), batch=8)
    assert [c.name for c in plan.phases[1].columns] == ["c", "replay(p0)/a", "replay(p0)/b"]
    counts = MixPlan(plan, plenty(plan)).counts(plan.phases[1], 40)
    assert counts.tolist() == [160, 120, 40]


def test_accounting_displaces_or_adds():
    replay = ReplaySpec(of="p0", share=0.2, max_repeats=9)
    budget = 80 * 4 * LENGTH
    for accounting, steps, new in (("fixed_total", 80, 256), ("fixed_new", 100, 320)):
        spec = phase(None, {"b": 1.0}, tokens=budget, replay=dataclasses.replace(replay, accounting=accounting))
        plan = plan_of(phase(20), spec)
        assert plan.phases[1].steps == steps
        assert MixPlan(plan, plenty(plan)).counts(plan.phases[1], steps).tolist() == [new, steps * 4 - new]


# ---- not enough ----
def test_running_out_of_rows_names_source_and_numbers():
    plan = plan_of(phase(10), phase(5, {"a": 0.5, "b": 0.5}))
    MixPlan(plan, {"a": 50, "b": 10, "c": 0})
    with pytest.raises(DataError, match=r"sources\.a: runs out.* 200 tokens .* 196 \(1\.02 epochs.*epochs allows 1\)"):
        MixPlan(plan, {"a": 49, "b": 10, "c": 0})
    with pytest.raises(
        DataError, match=r"sources\.b: runs out.* 40 tokens .* store has 0 \(inf epochs.* give it more data"
    ):
        MixPlan(plan, {"a": 50, "b": 0, "c": 0}, {"b": float("inf")})


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 60))
def test_the_epochs_that_an_error_suggests_are_enough(steps, rows):
    plan = plan_of(phase(steps))
    stores = dict.fromkeys(SOURCES, rows)
    try:
        MixPlan(plan, stores)
    except DataError as e:
        suggested = float(str(e).rsplit("epochs=", 1)[1])
        assert Fraction(steps * 4, rows) <= Fraction(suggested) + Fraction(1, 10**9)
        MixPlan(plan, stores, {"a": suggested})
    else:
        assert steps * 4 <= rows


@pytest.mark.parametrize("kind", [dict(range="seen"), dict(range="reservoir", reservoir=20 * LENGTH)])
def test_repeating_a_replay_too_often_names_field_and_numbers(kind):
    def mix(max_repeats: float) -> MixPlan:
        replay = ReplaySpec(of="p0", share=0.5, max_repeats=max_repeats, **kind)
        plan = plan_of(phase(5), phase(20, {"b": 1.0}, replay=replay))
        return MixPlan(plan, plenty(plan))

    mix(2.0)
    with pytest.raises(ConfigError, match=r"phases\.p1\.replay\.max_repeats: .* 2 times; 1\.9 allowed"):
        mix(1.9)


def test_the_default_is_not_to_repeat_a_replay():
    assert ReplaySpec().max_repeats == 1.0
    with pytest.raises(ConfigError, match="max_repeats"):
        MixPlan(p := plan_of(phase(4), phase(17, {"b": 1.0}, replay=ReplaySpec(of="p0", share=0.25))), plenty(p))


def test_replay_of_a_phase_without_new_data():
    most = ReplaySpec(of="p0", share=0.9)
    again = phase(1, {"c": 1.0}, replay=dataclasses.replace(most, of="p1"))
    plan = plan_of(phase(1), phase(1, {"b": 1.0}, replay=most), again, batch=1)
    with pytest.raises(ConfigError, match=r"phases\.p2\.replay\.of: 'p1' read no new data"):
        MixPlan(plan, plenty(plan))


def test_a_reservoir_needs_a_size():
    replay = ReplaySpec(of="p0", share=0.5, range="reservoir")
    with pytest.raises(ConfigError, match=r"phases\.p1\.replay\.reservoir: give its size"):
        MixPlan(p := plan_of(phase(4), phase(4, {"b": 1.0}, replay=replay)), plenty(p))


# ---- replay over several phases ----
@few
@given(plan=st.booleans().flatmap(lambda several: plans(least=3, several=several)))
def test_what_is_read_for_the_first_time_by_counting(plan):
    """Per phase and column: rows that neither it nor an earlier phase had read there, against the formula."""
    mix = MixPlan(plan, plenty(plan))
    batches, seen = read(mix), {}
    for p in plan.phases:
        for k, c in enumerate(p.columns):
            mine = [(name, row) for b in batches[p.first_step : p.end] for col, name, row in b if col == k]
            replay = p.spec.replay
            # The same range in another order, or another range, is another stream.
            key = c.source or (c.of, replay.range, replay.reservoir if replay.range == "reservoir" else replay.order)
            before = seen.setdefault(key, set())
            assert mix.first_reads(p, c, len(mine)) == len(set(mine) - before)
            before |= set(mine)


@few
@given(plan=plans(), sizes=st.tuples(*[st.integers(1, 40)] * 3))
def test_first_reads_of_sources_that_cross_epochs_by_counting(plan, sizes):
    """Stores so small that phases begin and end anywhere in an epoch."""
    mix = MixPlan(plan, dict(zip(SOURCES, sizes, strict=True)), dict.fromkeys(SOURCES, 1e9))
    batches, seen = read(mix), {name: set() for name in SOURCES}
    for p in plan.phases:
        for k, c in enumerate(p.columns):
            if c.source is None:
                continue
            mine = [row for b in batches[p.first_step : p.end] for col, _, row in b if col == k]
            assert mix.first_reads(p, c, len(mine)) == len(set(mine) - seen[c.source])
            seen[c.source] |= set(mine)


@pytest.mark.parametrize("order", ["original", "shuffled"])
def test_what_is_replayed_beyond_the_range_is_not_unique(order):
    """40 rows, of which two phases replay 24 each: the second finds 16 new ones, all of them in its first 16."""
    replay = ReplaySpec(of="p0", share=0.5, order=order, max_repeats=2)
    plan = plan_of(phase(10), phase(12, {"b": 1.0}, replay=replay), phase(12, {"c": 1.0}, replay=replay))
    mix = MixPlan(plan, plenty(plan))
    batches = read(mix)
    first, second = (flat(column(plan, batches, i, "replay")) for i in (1, 2))
    assert len(set(first)) == mix.first_reads(plan.phases[1], plan.phases[1].columns[1], 24) == 24
    assert len(set(second) - set(first)) == mix.first_reads(plan.phases[2], plan.phases[2].columns[1], 24) == 16
    assert mix.first_reads(plan.phases[2], plan.phases[2].columns[1], 10) == 10


@pytest.mark.parametrize("order", ["original", "shuffled"])
def test_a_phase_that_is_replayed_twice_goes_on_where_it_stopped(order):
    replay = ReplaySpec(of="p0", share=0.5, order=order)
    plan = plan_of(phase(10), phase(8, {"b": 1.0}, replay=replay), phase(12, {"c": 1.0}, replay=replay))
    batches = read(MixPlan(plan, plenty(plan)))
    stream = flat(column(plan, batches, 0, "new"))
    first, second = (flat(column(plan, batches, i, "replay")) for i in (1, 2))
    assert len(first) == 16 and len(second) == 24
    assert len(set(first) | set(second)) == 40 and not set(first) & set(second)
    assert sorted([*first, *second]) == sorted(stream)
    if order == "original":
        assert set(first) == set(stream[:16]) and set(second) == set(stream[16:])


def test_the_cap_on_repeats_counts_all_phases_together():
    replay = ReplaySpec(of="p0", share=0.5)
    plan = plan_of(phase(10), phase(12, {"b": 1.0}, replay=replay), phase(12, {"c": 1.0}, replay=replay))
    with pytest.raises(ConfigError, match=r"p2\.replay\.max_repeats: .*'p0' 1\.2 times, with the phases before it; 1"):
        MixPlan(plan, plenty(plan))


def test_an_order_that_changes_does_not_lift_the_cap():
    """The range is the same whichever way it is read."""
    replays = [ReplaySpec(of="p0", share=0.5, order=order) for order in ("original", "shuffled")]
    plan = plan_of(phase(10), phase(12, {"b": 1.0}, replay=replays[0]), phase(12, {"c": 1.0}, replay=replays[1]))
    with pytest.raises(ConfigError, match=r"p2\.replay\.max_repeats: .*'p0' 1\.2 times, with the phases before it; 1"):
        MixPlan(plan, plenty(plan))


@pytest.mark.parametrize(
    ("same", "idle"),
    [
        (dict(range="reservoir", reservoir=30 * LENGTH), dict(order="shuffled")),
        (dict(range="seen"), dict(reservoir=8 * LENGTH)),
    ],
)
def test_a_field_that_a_range_does_not_use_does_not_begin_it_again(same, idle):
    first = ReplaySpec(of="p0", share=0.5, **same)
    second = dataclasses.replace(first, **idle)
    plan = plan_of(phase(10), phase(6, {"b": 1.0}, replay=first), phase(6, {"c": 1.0}, replay=second))
    batches = read(MixPlan(plan, plenty(plan)))
    rows = [row for i in (1, 2) for row in flat(column(plan, batches, i, "replay"))]
    assert len(rows) == len(set(rows)) == 24


def test_unseen_data_of_a_source_is_read_once_by_a_phase():
    """Two replayed phases of one source would both go on where it stopped: every row twice, called unique."""
    unseen = ReplaySpec(of={"p0": 1, "p1": 1}, share=0.5, range="unseen")
    with pytest.raises(ConfigError, match=r"phases\.p2\.replay\.of: .*\['a'\].*'p0', 'p1'"):
        plan_of(phase(4), phase(4), phase(6, {"b": 1.0}, replay=unseen))
    plan = plan_of(phase(4), phase(4, {"c": 1.0}), phase(6, {"b": 1.0}, replay=unseen))
    rows = flat(column(plan, read(MixPlan(plan, plenty(plan))), 2, "replay"))
    assert len(rows) == len(set(rows)) == 12


def test_two_phases_replayed_in_parts():
    replay = ReplaySpec(of={"p0": 1, "p1": 3}, share=0.5)
    plan = plan_of(phase(10), phase(20, {"b": 1.0}), phase(8, {"c": 1.0}, replay=replay), batch=16)
    batches = read(MixPlan(plan, plenty(plan)))
    assert Counter(name for name, _ in flat(column(plan, batches, 2, "replay"))) == {"a": 16, "b": 48}


def test_threads_that_ask_at_once_get_what_one_would():
    """The loader's threads share one plan, which keeps no more than the orders that were asked for."""
    from concurrent.futures import ThreadPoolExecutor

    plan = plan_of(phase(30), phase(30, {"b": 1.0}, replay=ReplaySpec(of="p0", share=0.5)), batch=8)
    want = read(MixPlan(plan, plenty(plan)))
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            for _ in range(4):
                mix = MixPlan(plan, plenty(plan))
                assert list(pool.map(lambda s, m=mix: read(m, [s])[0], range(60))) == want
    finally:
        sys.setswitchinterval(before)
