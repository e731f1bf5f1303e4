"""What a sweep judges by: the final number is that of `summary.json`, and on the way it is what it would be there."""

import json

import pytest
from synthetic_run import write_run

from cpt.config import load
from cpt.evaluators.summary import summarise, write_summary
from cpt.plan import resolve
from cpt.sweeps.metric import WeightedSum

BOTH = WeightedSum.of({"sets.slimpajama.final": 1.0, "sets.pile.forgetting": -2.0})


def test_a_weighted_sum_is_that_of_the_summary(tmp_path):
    run = write_run(tmp_path / "run")
    summary = summarise(run)
    expected = summary["sets"]["slimpajama"]["final"] - 2 * summary["sets"]["pile"]["forgetting"]
    assert BOTH.value(run) == pytest.approx(expected) and expected != 0
    stored = write_summary(run)
    stored["sets"]["pile"]["forgetting"] += 1.0
    (run / "summary.json").write_text(json.dumps(stored))
    assert BOTH.value(run) == pytest.approx(expected - 2.0)  # the run's own is believed
    stored["finished"] = False
    (run / "summary.json").write_text(json.dumps(stored))
    assert BOTH.value(run) == pytest.approx(expected)  # unless it is of an unfinished run
    assert str(BOTH) == "sets.slimpajama.final - 2*sets.pile.forgetting"


class Plan:
    """As much of a plan as `so_far` asks."""

    class spec:
        class evaluation:
            class _Set:
                at = "grid"

            sets = {"pile": _Set, "slimpajama": _Set}  # noqa: RUF012

    @staticmethod
    def sets_at(step):
        return ("grid",)


def test_on_the_way_it_is_what_the_summary_would_say_there(tmp_path):
    whole = write_run(tmp_path / "whole", steps=60)
    found = dict(BOTH.so_far(whole, Plan, 60))
    assert found and min(found) > 60
    for step in list(found)[:: len(found) // 3]:
        cut = tmp_path / f"until-{step}"
        cut.mkdir()
        for name in ("plan.json", "config.json"):
            (cut / name).write_text((whole / name).read_text())
        for name in ("metrics.jsonl", "eval.jsonl"):
            rows = [line for line in (whole / name).read_text().splitlines() if json.loads(line)["step"] <= step]
            (cut / name).write_text("".join(line + "\n" for line in rows))
        assert found[step] == pytest.approx(BOTH.of_summary(summarise(cut)), abs=1e-12)
    assert dict(BOTH.so_far(whole, Plan, max(found) - 1)) == {max(found): found[max(found)]}


def test_an_evaluation_that_is_being_written_waits(tmp_path):
    run = write_run(tmp_path / "run", steps=60)
    rows = (run / "eval.jsonl").read_text().splitlines()
    last = json.loads(rows[-1])["step"]
    (run / "eval.jsonl").write_text("".join(line + "\n" for line in rows[:-1]))
    assert last not in dict(BOTH.so_far(run, Plan, 60))
    assert BOTH.so_far(tmp_path / "nothing", Plan, 0) == []


@pytest.mark.parametrize(
    "path",
    [
        "bwt",
        "sets.new.final",
        "sets.*.forgetting",
        "sets.old.gap.depth",
        "tags.upstream.macro.after",
        "sets.old.bits_per_byte.final",
        "matrix.loss.0.0",
    ],
)
def test_a_number_that_a_finished_run_has_passes_the_check(path, toy_config):
    plan = resolve(load(toy_config))
    WeightedSum.of({path: 1.0}).check(plan)
