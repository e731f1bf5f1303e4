"""The table at launch says what the plan is: tokens, shares, rates, evaluations, checkpoints, cost."""

import copy
import importlib.util
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from cpt.config import load
from cpt.models.spec import flops_per_token
from cpt.plan import resolve
from cpt.reports.plan_table import cost_line, evaluations_text, flop_text, mix_text, plan_table, replay_lines


@pytest.fixture(scope="module")
def planned(toy_root):
    """`planned(steps=7, ...)`: the plan of the toy recipe with these fields of its second phase."""
    import toy

    recipe = toy.get_config(str(toy_root))

    def change(**fields):
        config = copy.deepcopy(recipe)
        for path, value in fields.items():
            *parents, last = path.split("__")
            node = config.phases.second
            for name in parents:
                node = node[name]
            node[last] = value
        return resolve(load(config))

    return change


def rows(plan) -> list[list[str]]:
    table = plan_table(plan)
    return [list(map(str, cells)) for cells in zip(*(list(column.cells) for column in table.columns), strict=False)]


def test_the_rows_of_the_toy_recipe(planned):
    plan = planned()
    assert [c.header for c in plan_table(plan).columns] == [
        "phase", "tokens", "steps", "mix", "learning rate", "optimizer", "evaluations",
    ]  # fmt: skip
    first, second = rows(plan)[:2]
    assert first[:4] == ["first", "5.12k", "20", "old 100 %"]
    assert second[:4] == ["second", "5.12k", "20", "new 90 %, replay(first) 10 %"]
    assert (first[4], second[4]) == ("ramp 2 > cosine 0.01..1e-3", "re-warm 2 > cosine 0.01..1e-3")
    assert (first[5], second[5]) == ("fresh", "reset")
    totals = [next(iter(list(c.cells)[2:]), "") for c in plan_table(plan).columns[:3]]
    assert totals == ["total", "10.2k", "40"]


def test_it_fits_a_terminal_of_160_columns(planned):
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(plan_table(planned()))
    lines = console.export_text().splitlines()
    assert len(lines) == 4 and "re-warm 2 > cosine 0.01..1e-3" in lines[2]


def test_a_share_is_never_torn_apart(planned):
    """In a terminal of any width lines end after a comma, or else between a name and its number."""
    plan = planned(mix={"new": 0.6, "old": 0.4}, evaluate__dense=3, evaluate__every__steps=4)
    for width in range(80, 161):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(plan_table(plan))
        lines = console.export_text().splitlines()
        assert max(map(len, lines)) <= width
        for text in ("old 36 %", "replay(first)", "10 %", "1..3,", "every 4,"):
            assert any(text in line for line in lines), (width, text, lines)
    assert "new 54 %, old 36 %, replay(first) 10 %" in lines[2] and evaluations_text(plan.phases[1]) in lines[2]


def test_the_papers_recipe_at_a_glance():
    root = Path(__file__).resolve().parents[2]
    spec = importlib.util.spec_from_file_location("papers", root / "configs" / "pile_to_slimpajama.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    plan = resolve(load(module.get_config("410m")))
    pile, slimpajama = rows(plan)[:2]
    assert pile[:4] == ["pile", "300B", "132,685", "pile 100 %"]
    assert slimpajama[3] == "slimpajama 95 %, replay(pile) 5 %"
    assert slimpajama[4] == "re-warm 1.33k > cosine 3e-4..3e-5"
    assert replay_lines(plan) == [
        "slimpajama: 285B new + 15B replayed tokens (5 % replay(pile), compute-equivalent, seen, original order)"
    ]
    assert "405M parameters · batch 1104 x 2048 = 2,260,992 tokens per step" in cost_line(plan)
    assert "checkpoints: 2 anchors, 132 grid, 530 rolling (newest 2 kept)" in cost_line(plan)


def test_the_cost_is_the_matmul_count_of_all_tokens(planned):
    plan = planned()
    flops = plan.total_tokens * flops_per_token(plan.spec.model, 32)
    assert f" · {flops / 1e9:.3g} GFLOP · " in cost_line(plan)  # giga, not the "B" of token counts
    assert [flop_text(x) for x in (5, 5e3, 5e6, 5e9, 5e12, 5e21)] == [
        f"5 {prefix}FLOP" for prefix in ("", "k", "M", "G", "T", "Z")
    ]


@settings(deadline=None)
@given(steps=st.integers(2, 60))
def test_checkpoints_are_counted_as_they_will_be_saved(planned, steps):
    plan = planned(steps=steps)
    kinds = [kind for step in range(plan.total_steps + 1) for kind in plan.checkpoints_at(step)]
    expected = [f"{kinds.count('anchor')} anchors", f"{kinds.count('grid')} grid", f"{kinds.count('rolling')} rolling"]
    assert f"checkpoints: {', '.join(expected)} (" in cost_line(plan)


def test_a_mix_that_changes_shows_both_ends(planned):
    plan = planned(mix={"new": 1.0, "old": 0.0}, mixer__kind="linear", mixer__options={"end": {"new": 0.0, "old": 1.0}})
    assert mix_text(plan.phases[1]) == "new 90 > 0 %, old 0 > 90 %, replay(first) 10 %"


def test_replay_on_top_and_unseen(planned):
    plan = planned(
        steps=None, tokens=4608, replay__accounting="fixed_new", replay__range="unseen", replay__order="shuffled"
    )
    assert plan.phases[1].steps == 20
    assert replay_lines(plan) == [
        "second: 4.61k new + 512 replayed tokens (10 % replay(first), on top of the new tokens, unseen, shuffled order)"
    ]
    assert replay_lines(planned(replay__share=0.0)) == []


def test_the_policy_says_how_long(planned):
    assert rows(planned(optimizer__policy="lr0_warm", optimizer__steps=7))[1][5] == "lr0_warm 7"
    assert rows(planned(optimizer__policy="keep", optimizer__steps=7))[1][5] == "keep"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (dict(dense=4, geometric=8, every=5), "10 (0, 1..4, 8, every 5, end)"),
        (dict(dense=0, geometric=0, every=5), "5 (0, every 5, end)"),
        (dict(dense=0, geometric=16, every=0), "7 (0, 1, 2, 4..16, end)"),
        (dict(dense=0, geometric=0, every=0), "2 (0, end)"),
    ],
)
def test_evaluations(planned, fields, text):
    given_fields = {"evaluate__dense": fields["dense"], "evaluate__geometric": fields["geometric"]}
    phase = planned(**given_fields, evaluate__every__steps=fields["every"]).phases[1]
    assert evaluations_text(phase) == text
    assert text.startswith(str(len(phase.eval_steps)))
