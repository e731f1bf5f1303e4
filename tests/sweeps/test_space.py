"""The space of a sweep: what product, zip and chain make of points, and what they refuse."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt import sweeps as s
from cpt.errors import ConfigError

sizes = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@given(sizes)
def test_a_product_holds_every_combination_once(lengths):
    made = s.product(*(s.values(f"f{i}", range(n)) for i, n in enumerate(lengths)))
    combinations = {tuple(p[f"f{i}"] for i in range(len(lengths))) for p in made.points}
    expected = 1
    for n in lengths:
        expected *= n
    assert len(made.points) == len(combinations) == expected
    assert all(0 <= c[i] < lengths[i] for c in combinations for i in range(len(lengths)))


@given(sizes)
def test_a_chain_is_as_long_as_its_parts(lengths):
    made = s.chain(*(s.values(f"f{i}", range(n)) for i, n in enumerate(lengths)))
    assert [len(p) for p in made.points] == [1] * sum(lengths)


def test_what_the_docstring_shows():
    both = s.values(["phases.a.lr.peak", "phases.b.lr.peak"], [1e-3, 3e-3])
    assert both.points[1] == {"phases.a.lr.peak": 3e-3, "phases.b.lr.peak": 3e-3}
    side = s.zip(s.values("x", [1, 2]), s.values("y", ["a", "b"]))
    assert side.points == ({"x": 1, "y": "a"}, {"x": 2, "y": "b"})
    more = s.chain(s.point({"kind": "wsd", "floor": 0.0}), s.product(s.values("peak", [1.0, 2.0]), s.seeds(4, 5)))
    assert more.points == (
        {"kind": "wsd", "floor": 0.0},
        {"peak": 1.0, "seed": 4}, {"peak": 1.0, "seed": 5}, {"peak": 2.0, "seed": 4}, {"peak": 2.0, "seed": 5},
    )  # fmt: skip
    assert more.fields == ["kind", "floor", "peak", "seed"]


def test_ranges_are_searched_together_beside_one_point():
    made = s.product(s.point({"kind": "wsd"}), s.log_uniform("peak", 1e-4, 1e-2), s.choice("shape", ["exp", "cosine"]))
    assert made.points == ({"kind": "wsd"},) and [r.name for r in made.ranges] == ["peak", "shape"]
    assert made.ranges[0].middle == pytest.approx(1e-3) and made.ranges[1].ends == ("exp", "cosine")
    assert s.integers("n", 1, 9).ranges[0].middle == 5
    assert made.varying == ["peak", "shape"]  # what is the same in all runs tells none apart
    assert s.product(s.values("kind", ["wsd"]), s.seeds(0, 1)).varying == ["seed"]


MISTAKES = {
    "no values": (lambda: s.values("seed", []), "values('seed'): no values"),
    "no path": (lambda: s.values("phases.my-phase.x", [1]), "'phases.my-phase.x': not the path of a field"),
    "a section": (lambda: s.values("optimizer", [{"b1": 0.9}]), "optimizer: a dict is no value"),
    "text as seed": (lambda: s.seeds("1"), "give whole numbers"),
    "set twice": (lambda: s.product(s.seeds(0), s.values("seed", [1])), "product: seed is set twice"),
    "lengths": (
        lambda: s.zip(s.seeds(0, 1), s.values("x", [1, 2, 3])),
        "zip: side by side they need one length, got 2, 3",
    ),
    "empty product": (lambda: s.product(), "product: an empty space"),
    "no space": (lambda: s.product([1, 2]), "product: [1, 2] is no space"),
    "range in a chain": (lambda: s.chain(s.uniform("x", 0, 1), s.seeds(0)), "chain: x is a range; ranges go together"),
    "range and seeds": (
        lambda: s.product(s.uniform("x", 0, 1), s.seeds(0, 1)),
        "x is a range, seed has several values",
    ),
    "turned round": (lambda: s.uniform("x", 1, 0), "1 to 0 is no range"),
    "log of zero": (lambda: s.log_uniform("x", 0, 1), "give the lower end first above 0"),
    "half a number": (lambda: s.integers("x", 0.5, 3), "must be whole numbers"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told(name):
    make, says = MISTAKES[name]
    with pytest.raises(ConfigError) as e:
        make()
    assert says in str(e.value)
