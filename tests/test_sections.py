"""Sections: dataclass and `ConfigDict` are two forms of the same thing, and what does not fit is named."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from cpt.errors import ConfigError
from cpt.sections import parse, section, to_dict


@dataclass(frozen=True)
class Leaf:
    size: int = 3
    rate: float | None = None
    tag: str = "x"


@dataclass(frozen=True)
class Length:
    steps: int | None = None
    fraction: float | None = None


@dataclass(frozen=True)
class Tree:
    name: str
    leaf: Leaf = Leaf()
    maybe: Length | None = None
    kind: Literal["thin", "thick"] = "thin"
    leaves: Mapping[str, Leaf] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    on: bool = False
    options: dict = field(default_factory=dict)
    anything: Any = None


@dataclass(frozen=True)
class Owner:
    length: Length | None = None


@dataclass(frozen=True)
class Forest:
    tree: Tree


leaves = st.builds(
    Leaf,
    st.integers(-(2**40), 2**40),
    st.none() | st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
)
names = st.text("abcdef", min_size=1, max_size=4)
trees = st.builds(
    Tree,
    name=st.text(max_size=5),
    leaf=leaves,
    maybe=st.none() | st.builds(Length, steps=st.integers(0, 9)),
    kind=st.sampled_from(["thin", "thick"]),
    leaves=st.dictionaries(names, leaves, max_size=3),
    shares=st.dictionaries(names, st.floats(0, 1), max_size=3),
    words=st.lists(st.text(max_size=3), max_size=3).map(tuple),
    on=st.booleans(),
    options=st.dictionaries(names, st.integers(), max_size=2),
)


@settings(deadline=None)
@given(trees)
def test_there_and_back(tree):
    assert parse(Tree, to_dict(tree)) == tree
    given_fields = {f.name: getattr(tree, f.name) for f in dataclasses.fields(tree)}
    config = section(Tree, **given_fields)
    assert parse(Tree, config.to_dict()) == tree
    # Every field is in the `ConfigDict`, so that each can be overridden by name.
    assert set(config.keys()) == set(given_fields) and set(config.leaf.keys()) == {"size", "rate", "tag"}


def test_defaults_are_filled_in():
    assert parse(Tree, {"name": "a", "leaf": {"size": 5}}) == Tree("a", Leaf(5))
    assert parse(Tree, section(Tree, name="a").to_dict()) == Tree("a")


def test_an_optional_section_is_there_when_a_field_of_it_is():
    """Its fields can be overridden one by one although it is None."""
    config = section(Owner)
    assert parse(Owner, config.to_dict()).length is None
    config.length.fraction = 0.5
    assert parse(Owner, config.to_dict()).length == Length(fraction=0.5)


def test_a_section_used_twice_is_two_sections():
    """Overriding one place of a recipe that shares a section object must leave the other as it was."""
    shared = section(Leaf, size=7)
    config = section(Tree, name="a", leaf=shared, leaves={"u": shared, "v": shared})
    config.leaf.size, config.leaves.u.rate = 8, 0.5
    assert (config.leaves.u.size, config.leaves.v.size, shared.size) == (7, 7, 7)
    assert config.leaves.v.rate is None and config.leaf.rate is None


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"name": "a", "leef": {}}, r"leef: no such field; did you mean 'leaf'\?  \(fields: name, leaf, "),
        ({"name": "a", "leaf": {"sise": 1}}, r"leaf\.sise: no such field; did you mean 'size'\?"),
        ({"name": "a", "leaves": {"u": {"sise": 1}}}, r"leaves\.u\.sise: no such field"),
        ({}, r"^config error: name: required, but not given"),
        ({"name": None}, r"^config error: name: required, but not given"),
        ({"name": "a", "leaf": None}, r"leaf: expected a section with the fields size, rate, tag, got None"),
        ({"name": "a", "leaf": 3}, r"leaf: expected a section .* got 3"),
        ({"name": 3}, r"name: expected str, got int 3"),
        ({"name": "a", "leaf": {"size": 1.5}}, r"leaf\.size: expected int, got float 1\.5"),
        ({"name": "a", "leaf": {"size": True}}, r"leaf\.size: expected int, got bool True"),
        ({"name": "a", "leaf": {"size": float("inf")}}, r"leaf\.size: expected int, got float inf"),
        ({"name": "a", "leaf": {"size": float("nan")}}, r"leaf\.size: expected int, got float nan"),
        ({"name": "a", "leaf": {"size": "1"}}, r"leaf\.size: expected int, got str '1'"),
        ({"name": "a", "leaf": {"rate": "high"}}, r"leaf\.rate: expected float, got str 'high'"),
        ({"name": "a", "leaf": {"rate": False}}, r"leaf\.rate: expected float, got bool"),
        ({"name": "a", "on": 1}, r"on: expected bool, got int 1"),
        ({"name": "a", "kind": "thick "}, r"kind: 'thick ' is not allowed; did you mean 'thick'\?  \(one of: 'thin'"),
        ({"name": "a", "shares": {"u": "half"}}, r"shares\.u: expected float, got str 'half'"),
        ({"name": "a", "shares": [0.5]}, r"shares: expected named entries, got \[0\.5\]"),
        ({"name": "a", "words": "ab"}, r"words: expected a tuple, got 'ab'"),
        ({"name": "a", "words": (1,)}, r"words\[0\]: expected str, got int 1"),
        (3, r"expected a section with the fields name, leaf"),
    ],
)
def test_what_does_not_fit_is_named(raw, says):
    with pytest.raises(ConfigError, match=says):
        parse(Tree, raw)


def test_where_is_the_path_in_front():
    with pytest.raises(ConfigError, match=r"^config error: phases\.a\.size: expected int"):
        parse(Leaf, {"size": "x"}, "phases.a")


def test_numbers_may_be_written_either_way_where_nothing_is_lost():
    leaf = parse(Leaf, {"size": 300e9, "rate": 1})
    assert (leaf.size, leaf.rate) == (300_000_000_000, 1.0)
    assert type(leaf.size) is int and type(leaf.rate) is float


def test_a_recipe_that_names_an_unknown_field_is_stopped_at_once():
    with pytest.raises(
        ConfigError, match=r"Leaf\.sise: no such field; did you mean 'size'\?  \(fields: size, rate, tag"
    ):
        section(Leaf, sise=3)


def test_what_a_recipe_leaves_out_stays_typed_and_reachable():
    config = section(Tree, name="a")
    assert isinstance(config.maybe, ConfigDict) and config.leaf.rate is None
    config.leaf.rate = 0.5
    with pytest.raises(TypeError):
        config.leaf.rate = "high"
    assert parse(Tree, config.to_dict()).leaf.rate == 0.5


def test_a_required_section_that_was_forgotten_is_named():
    with pytest.raises(ConfigError, match=r"tree\.name: required, but not given"):
        parse(Forest, section(Forest).to_dict())
