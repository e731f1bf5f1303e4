"""The arithmetic of the benchmarks: steady steps, contention, ratios, exponents, and the buckets of a run's time."""

import threading

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt.bench import growth
from cpt.bench.checkpoint import Stretch
from cpt.bench.contention import TICK, Others, busy_s
from cpt.bench.evaluation import dense_figures
from cpt.bench.facts import stated_peak
from cpt.bench.step import Round
from cpt.bench.timing import Step, counted, exponent, figures, over_rounds, rates, ratio, steady_from
from cpt.models.spec import ModelSpec, flops_per_token
from cpt.training.accounting import BUCKETS, Account

# ---- steps ----


def test_timing_starts_behind_three_steps_within_two_percent():
    assert steady_from([9.0, 3.0, 1.02, 1.0, 1.01, 1.0, 1.0]) == 5
    assert steady_from([1.0, 1.0, 1.0, 1.0]) == 3
    assert steady_from([9.0, 1.0, 1.021, 1.0, 1.0, 1.0, 1.0]) == 6  # 2.1 % is not within 2 %


def test_a_machine_that_never_gets_steady_is_taken_as_it_is():
    rising = [1.1**i for i in range(40)]
    assert steady_from(rising) == 10
    assert steady_from(rising, at_most=4) == 4
    assert steady_from(rising[:6]) == 3  # half of them are left
    assert steady_from([]) == 0


def steps(*seconds: float, contended: tuple[int, ...] = ()) -> list[Step]:
    return [Step(s, 0.5 if i in contended else 0.0) for i, s in enumerate(seconds)]


def test_contended_steps_are_left_out_of_the_figures_and_told():
    said = figures(steps(1, 1, 1, 1.0, 7.0, 1.2, 9.0, 1.1, contended=(4, 6)))
    assert said["median_s"] == pytest.approx(1.1)
    assert said["p95_s"] == pytest.approx(1.19)
    assert (said["warm_up"], said["counted"], said["contended"], said["all_contended"]) == (3, 3, 2, False)


def test_where_too_few_are_quiet_all_count_and_that_is_told():
    said = figures(steps(1, 1, 1, 2.0, 4.0, 6.0, 8.0, contended=(3, 4, 5)))
    assert said["median_s"] == 5.0
    assert said["all_contended"] and said["contended"] == 3


def test_others_may_use_a_little():
    assert not Step(1.0, 0.06).contended
    assert Step(1.0, 0.061).contended


def test_a_ratio_is_of_turns_in_which_neither_was_disturbed():
    ours = steps(1, 1, 1, 9, 9, 9, 9, 1, contended=(3, 4, 5, 6))
    theirs = steps(2, 2, 2, 2, 2, 2, 2, 50, contended=(7,))
    assert ratio(ours, theirs) == 2.0
    assert ratio(steps(1, 1, 9, 9, contended=(2, 3)), steps(2, 2, 2, 2)) == 0.4  # too few were quiet
    assert ratio(ours, ours) == 1.0


def test_rates_are_those_of_the_published_arithmetic():
    """Pythia-410M at T = 2048: 2.7250 GFLOP per token with the whole square, 2.4231 with its visible half; 181.5k
    tokens/s are then half of 989 TFLOP/s."""
    spec = ModelSpec(layers=24, width=1024, heads=16, vocab_size=50_304, context=2048)
    palm, causal = (flops_per_token(spec, 2048, a) for a in ("palm", "causal"))
    assert (palm / 1e9, causal / 1e9) == (pytest.approx(2.7250, abs=1e-4), pytest.approx(2.4231, abs=1e-4))
    said = rates(2.0, 363_000, 363_000 * palm, 363_000 * causal, 989e12, 800e12)
    assert said["tokens_per_second"] == 181_500
    assert said["mfu_palm"] == pytest.approx(0.5, abs=1e-3)
    assert said["mfu_causal"] == pytest.approx(0.4447, abs=1e-3)
    assert said["of_matmul_palm"] == pytest.approx(0.5 * 989 / 800, abs=1e-3)
    assert rates(2.0, 1, 1.0, 1.0, None, 1.0)["mfu_palm"] is None


@pytest.mark.parametrize(
    "kind, peak",
    [("NVIDIA H200", 989e12), ("TPU v5 lite", 197e12), ("TPU v5p", 459e12), ("TPU v4", 275e12), ("cpu", None)],
)
def test_the_stated_peak_is_that_of_the_longest_name(kind, peak):
    assert stated_peak(kind) == peak


# ---- growth ----


@given(st.floats(-2, 4), st.floats(1e-6, 1e3), st.lists(st.integers(1, 10**7), min_size=2, max_size=8, unique=True))
def test_the_exponent_of_a_power_is_found(power, scale, sizes):
    assert exponent(sizes, [scale * float(s) ** power for s in sizes]) == pytest.approx(power, abs=1e-6)


@pytest.mark.parametrize("x, y", [([1], [1]), ([1, 2], [0, 1]), ([0, 1], [1, 1])])
def test_no_exponent_of_too_little(x, y):
    with pytest.raises(ValueError, match="two positive points"):
        exponent(x, y)


def test_growth_is_judged_by_the_larger_sizes():
    """A constant part of 100 hides quadratic growth in a fit over everything."""
    sizes = [1, 2, 4, 8, 16, 32, 64]
    said = growth.told({s: 100.0 + s**2 for s in sizes}, {s: float(s) for s in sizes})
    assert said["exponent"] < 1 < 1.1 < said["exponent_upper"]
    assert said["faster"]
    assert not growth.told({s: 3.0 * s for s in sizes}, {s: float(s) for s in sizes})["faster"]
    assert not growth.told({s: 3.0 for s in sizes}, {s: 1.0 for s in sizes})["faster"]


def test_the_figure_of_growth_is_a_picture(tmp_path):
    sizes = [1, 2, 4]
    said = growth.told({s: 1e-3 * s for s in sizes}, {s: float(s) for s in sizes})
    out = growth.draw({f"axis {i}": said for i in range(9)}, tmp_path / "new" / "growth.png")
    assert out.read_bytes().startswith(b"\x89PNG")


def test_dense_evaluation_is_held_against_a_third_of_its_share():
    said = dense_figures(with_s=0.14, without_s=0.1, evaluated=2048, trained_on=2048)
    assert said["model_s"] == pytest.approx(0.1 / 3)
    assert said["over_model"] == pytest.approx(1.2)


# ---- what others do ----

STAT = """cpu  999 999 999 999 999 999 999 999 0 0
cpu0 100 10 20 5000 900 1 2 3 0 0
cpu1 200 0 0 100 0 0 0 0 0 0
cpu12 7 0 0 0 0 0 0 0
intr 1 2 3
"""


def test_only_work_on_our_own_cores_is_counted():
    assert busy_s(STAT, [0]) == pytest.approx(136 * TICK)  # neither idle nor waiting for a disk
    assert busy_s(STAT, [0, 1]) == pytest.approx(336 * TICK)
    assert busy_s(STAT, [12]) == pytest.approx(7 * TICK)


def watched(*samples: tuple[float, float, float], cores: int = 2) -> Others:
    """Others that saw, at each time, what everything and what ours had worked by then."""
    others = Others()
    others.cores = list(range(cores))
    others.times = [at for at, _, _ in samples]
    others.samples = [(everything, ours) for _, everything, ours in samples]
    return others


def test_the_share_of_others_is_that_of_the_samples_around_a_step():
    others = watched((0.0, 0, 0), (1.0, 2, 2), (2.0, 4, 3), (3.0, 6, 5))
    assert others.share(0.1, 0.9) == 0.0
    assert others.share(1.2, 1.3) == pytest.approx(0.5, abs=2 * TICK)
    assert others.share(0.5, 2.5) == pytest.approx(1 / 6, abs=2 * TICK)
    assert others.share(2.5, 9.9) == 0.0
    assert watched((0.0, 0, 0)).share(0, 1) == 0.0  # nobody looked


def test_a_busy_neighbour_is_noticed():
    """Only where Linux counts."""
    import subprocess
    import sys
    import time

    others = Others(every=0.05)
    others.look()
    if not others.samples:
        pytest.skip("no /proc/stat")
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        with others:
            begun = time.monotonic()
            time.sleep(1.0)
            assert others.share(begun, time.monotonic()) > 0.15
        ours = Others([neighbour.pid], every=0.05)
        ours.look()
        time.sleep(0.3)
        ours.look()
        assert ours.samples[1][1] > ours.samples[0][1]  # its work is ours if it is named
    finally:
        neighbour.kill()
        neighbour.wait()


# ---- the buckets of a run ----


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_innermost_bucket_gets_the_time():
    clock = Clock()
    account = Account(clock)
    clock.now += 1
    with account.to("checkpoint"):
        clock.now += 2
        with account.to("step"):
            clock.now += 4
        clock.now += 8
    clock.now += 16
    assert account.seconds() == dict.fromkeys(BUCKETS, 0.0) | {"idle": 17, "checkpoint": 10, "step": 4}


def test_compiling_is_taken_out_of_the_bucket_it_happened_in_once():
    """A function inside a function is told first, and again as a part of the outer one."""
    clock = Clock()
    account = Account(clock)
    with account.to("eval"):
        clock.now += 5
        account.compiled(2.0)
        clock.now += 1
        account.compiled(4.0)  # 2 s of it are known
        clock.now += 3
    assert account.seconds()["compile"] == 4.0
    assert account.seconds()["eval"] == 5.0


def test_a_bucket_is_closed_by_an_error():
    clock = Clock()
    account = Account(clock)
    with pytest.raises(RuntimeError), account.to("data"):
        clock.now += 1
        raise RuntimeError
    clock.now += 2
    assert (account.seconds()["data"], account.seconds()["idle"]) == (1.0, 2.0)


moves = st.recursive(
    st.one_of(st.floats(0, 9), st.tuples(st.just("compiled"), st.floats(0, 20))),
    lambda inner: st.tuples(st.sampled_from(BUCKETS), st.lists(inner, max_size=4)),
    max_leaves=30,
)


@given(st.lists(moves, max_size=8))
def test_the_buckets_sum_to_wall_time_whatever_happens(script):
    clock = Clock()
    account = Account(clock)

    def play(move) -> None:
        if isinstance(move, float):
            clock.now += move
        elif move[0] == "compiled" and isinstance(move[1], float):
            account.compiled(move[1])
        else:
            with account.to(move[0]):
                for inner in move[1]:
                    play(inner)

    for move in script:
        play(move)
    seconds = account.seconds()
    assert sum(seconds.values()) == pytest.approx(clock.now - 100.0, abs=1e-9)
    assert min(seconds.values()) >= -1e-9


def test_what_jax_compiles_is_heard_in_this_thread_only():
    def fresh() -> None:
        number = np.random.default_rng().integers(10**9)
        jax.jit(lambda x: x * number + 1)(np.ones(3)).block_until_ready()

    account = Account()
    fresh()
    assert account.seconds()["compile"] == 0.0
    with account.watching(), account.to("step"):
        thread = threading.Thread(target=fresh)
        thread.start()
        thread.join()
        assert account.seconds()["compile"] == 0.0
        fresh()
    heard = account.seconds()["compile"]
    assert heard > 0
    fresh()
    assert account.seconds()["compile"] == heard


def test_a_round_compares_each_turn_with_those_around_it():
    """The machine gets slower from turn to turn, and twice somebody else works: 1.1 all the same."""
    trainer = [steps(1.65, 1.65, 1.65), steps(2.75, 2.75, 2.75, 9.0, contended=(3,))]
    bare = [steps(1, 1, 1), steps(2, 2, 9.0, 2, contended=(2,)), steps(3, 3, 3)]
    assert Round({"trainer": trainer, "bare": bare}, 0.0, {}).ratios("bare") == pytest.approx([1.1, 1.1])
    disturbed = Round({"trainer": [steps(4, 1, 1, contended=(0,))], "bare": [steps(1, 1, 1)] * 2}, 0.0, {})
    assert disturbed.ratios("bare") == [2.0]  # too few were quiet: all are counted
    now_and_then = Round({"trainer": [steps(*[1.0] * 9, 3.0)], "bare": [steps(*[1.0] * 10)] * 2}, 0.0, {})
    assert now_and_then.ratios("bare") == pytest.approx([1.2])  # what is done once in ten updates counts


def test_the_interval_of_a_ratio_holds_it_where_turns_share_neighbours_and_rounds_differ():
    assert over_rounds([[1.5]]) == (1.5, None)  # one round says nothing of the next
    assert over_rounds([[*[1.0] * 8, 0.1, 9.0]])[0] == 1.0  # a turn that something happened in does not decide
    rng, held, ratios = np.random.default_rng(0), 0, []
    for _ in range(300):
        rounds = []
        for _ in range(4):
            others, state = rng.normal(1, 0.04, 11), rng.normal(0, 0.02)
            mine = rng.normal(1.02 + state, 0.04, 10)
            turns = {"trainer": [steps(m) for m in mine], "bare": [steps(b) for b in others]}
            rounds.append(Round(turns, 0.0, {}).ratios("bare"))
        ratio, (low, high) = over_rounds(rounds)
        held += low <= 1.02 <= high
        ratios.append(ratio)
    assert np.mean(ratios) == pytest.approx(1.02, abs=0.005)
    assert 0.92 <= held / 300 <= 0.98


def test_a_checkpoint_costs_what_its_updates_took_beyond_the_others():
    """The last update of a stretch is its as well: it ends sooner, for nothing follows it meanwhile."""
    quiet, during = [1.0] * 12, [1.5, 1.25, 1.0, 1.0]
    assert Stretch(0.1, [*during, *quiet, 0.75], [], 4).cost([*during, *quiet, 0.75]) == pytest.approx(0.5)


def test_too_few_steady_steps_are_all_counted():
    assert len(counted(steps(1, 1, 1, 1, contended=(3,)))) == 1
