import json

import pytest
from rich.console import Console
from synthetic_run import TOKENS_PER_STEP, old_loss, write_run

from cpt.errors import RunError
from cpt.evaluators.rows import read_run
from cpt.evaluators.summary import downstream, reference_step, summarise, summary_table, upstream, write_summary


def edit(path, name, change):
    value = json.loads((path / name).read_text())
    change(value)
    (path / name).write_text(json.dumps(value))


def test_numbers_of_a_finished_run(finished_run):
    s = summarise(finished_run)
    pile = s["sets"]["pile"]
    assert (s["finished"], s["steps"], s["tokens"]) == (True, 600, 600 * TOKENS_PER_STEP)
    assert (pile["reference_step"], pile["reference_tokens"]) == (300, 300 * TOKENS_PER_STEP)
    assert pile["initial"] == pytest.approx(3.4)
    assert pile["final"] == pytest.approx(old_loss(600, 300, 0.44, 0.16))
    lo, hi = pile["forgetting_ci95"]
    assert lo < pile["forgetting"] < hi < lo + 0.05
    assert pile["forgetting"] == pytest.approx(0.16, abs=1e-3)
    assert pile["bits_per_byte"]["initial"] == pytest.approx(3.4 / 4 / 0.693147, rel=1e-5)
    gap = pile["gap"]
    assert (gap["peak_step"], gap["peak_tokens"]) == (316, 16 * TOKENS_PER_STEP)
    assert gap["depth"] == pytest.approx(old_loss(316, 300, 0.44, 0.16) - 3.4)
    assert gap["depth_ci95"][0] < gap["depth"] < gap["depth_ci95"][1]
    assert gap["area_ci95"][0] < gap["area"] < gap["area_ci95"][1]
    assert gap["recovery_tokens"] is None
    assert s["sets"]["slimpajama"]["forgetting"] == pytest.approx(-2.4, abs=0.02)
    assert s["bwt"] == pytest.approx(-pile["forgetting"])
    assert s["fwt"] == pytest.approx(0.1)
    assert s["matrix"]["loss"][1] == pytest.approx([3.4, 4.8])
    assert s["worst_case_loss"] == pytest.approx((gap["worst"] + s["sets"]["slimpajama"]["final"]) / 2)
    assert s["ledger"]["tokens_consumed"] == 600 * TOKENS_PER_STEP
    assert (upstream(s), downstream(s)) == (["pile"], ["slimpajama"])


def test_write_is_strict_json_and_leaves_nothing_else(finished_run):
    before = {p.name for p in finished_run.iterdir()}
    written = write_summary(finished_run)
    text = (finished_run / "summary.json").read_text()
    assert "NaN" not in text
    assert json.loads(text) == written
    assert {p.name for p in finished_run.iterdir()} == before | {"summary.json"}


def test_reference_steps_of_three_phases(finished_run):
    def three(plan):
        p = plan["phases"][1]
        plan["phases"].append({**p, "name": "code", "first_step": 600, "first_token": 600 * TOKENS_PER_STEP})
        plan["sets"] |= {"code": {"learned_in": "code"}, "other": {"learned_in": None}}

    edit(finished_run, "plan.json", three)
    run = read_run(finished_run)
    assert [reference_step(run, n) for n in ("pile", "slimpajama", "code", "other")] == [300, 600, 600, 600]


def test_a_single_phase_run_refers_to_its_start(finished_run):
    edit(finished_run, "plan.json", lambda p: p["phases"].pop())
    assert reference_step(read_run(finished_run), "pile") == 0
    assert summarise(finished_run)["bwt"] is None


def test_before_the_switch_nothing_is_claimed(tmp_path):
    s = summarise(write_run(tmp_path / "young", until=120))
    assert not s["finished"]
    assert s["sets"]["pile"]["final"] > 3.4
    assert [s["sets"]["pile"][k] for k in ("initial", "forgetting", "gap")] == [None] * 3
    assert (s["bwt"], s["matrix"]["loss"][2]) == (None, [None, None])


def test_at_the_switch_itself_there_is_no_change_yet(tmp_path):
    s = summarise(write_run(tmp_path / "switch", until=300))["sets"]["pile"]
    assert s["initial"] == s["final"]
    assert (s["forgetting"], s["gap"]) == (None, None)


def test_a_row_written_twice_counts_once_and_the_later_wins(finished_run):
    rows = (finished_run / "eval.jsonl").read_text().splitlines()
    row = next(json.loads(r) for r in rows if json.loads(r)["step"] == 600)
    with open(finished_run / "eval.jsonl", "a") as f:
        f.write(json.dumps({**row, "loss": 9.0}) + "\n")
    run = read_run(finished_run)
    assert len(run.curves["pile"].steps) == len(run.curves["slimpajama"].steps)
    assert summarise(finished_run)["sets"]["pile"]["final"] == 9.0


def test_no_interval_where_sequences_do_not_cover_the_curve(finished_run):
    path = finished_run / "eval_sequences.jsonl"
    path.write_text("".join(r + "\n" for r in path.read_text().splitlines() if json.loads(r)["step"] != 350))
    s = summarise(finished_run)["sets"]["pile"]
    assert s["forgetting"] is not None
    assert (s["forgetting_ci95"], s["gap"]["depth_ci95"]) == (None, None)


def test_a_nan_loss_becomes_null(finished_run):
    path = finished_run / "eval.jsonl"
    rows = [json.loads(r) for r in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(r | ({"loss": None} if r["step"] == 600 else {})) + "\n" for r in rows))
    s = write_summary(finished_run)["sets"]["pile"]
    assert (s["final"], s["forgetting"], s["gap"]["depth"]) == (None, None, None)


def test_an_unfinished_last_line_is_left_out_and_a_broken_one_is_named(finished_run):
    with open(finished_run / "eval.jsonl", "a") as f:
        f.write('{"step": 60')
    assert summarise(finished_run)["finished"]
    with open(finished_run / "eval.jsonl", "a") as f:
        f.write("\n")
    with pytest.raises(RunError, match=r"eval.jsonl, line \d+: not a JSON object"):
        summarise(finished_run)


@pytest.mark.parametrize("name", ["plan.json", "metrics.jsonl", "eval.jsonl", "eval_sequences.jsonl", "ledger.json"])
def test_any_file_may_be_missing(finished_run, name):
    (finished_run / name).unlink()
    assert summarise(finished_run)["name"] == finished_run.name


def test_no_run_is_a_clear_line(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RunError, match=r"run error: .*give the folder that training printed"):
            summarise(path)


def test_closing_table(finished_run):
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(summary_table(summarise(finished_run)))
    lines = console.export_text().splitlines()
    pile = next(line for line in lines if line.startswith("pile"))
    assert pile.split()[1:6] == ["3.400", "3.560", "+0.160", "±", pile.split()[5]]
    assert "0.487" in pile and "32.8k tok" in pile and "not yet" in pile and "nat·tok" in pile


def test_what_the_starting_model_knew_can_be_forgotten(finished_run):
    """A run of one phase, begun from a model that knew `pile`: tagged upstream, learned by no phase of this run."""

    def one_phase(plan):
        plan["phases"] = plan["phases"][1:]
        plan["sets"]["pile"] = {"source": "pile", "tags": ["upstream"], "learned_in": None}

    edit(finished_run, "plan.json", one_phase)
    s = summarise(finished_run)
    assert (upstream(s), downstream(s)) == (["pile"], ["slimpajama"])
    assert s["sets"]["pile"]["reference_step"] == 300 and s["sets"]["pile"]["forgetting"] == pytest.approx(
        0.16, abs=1e-3
    )
    edit(finished_run, "plan.json", lambda p: p["sets"]["pile"].update(tags=[]))
    assert upstream(summarise(finished_run)) == []


def test_intervals_resample_documents_where_they_are_known(finished_run):
    rows = (finished_run / "eval_sequences.jsonl").read_text().splitlines()
    sequences = len(json.loads(rows[0])["nats"])
    wide = summarise(finished_run)["sets"]["pile"]["forgetting_ci95"]
    same = {"documents": [i // 8 for i in range(sequences)], "rows": list(range(sequences))}
    (finished_run / "eval_sets.json").write_text(json.dumps({"pile": same}))
    clustered = summarise(finished_run)["sets"]["pile"]["forgetting_ci95"]
    assert clustered != wide
    (finished_run / "eval_sets.json").write_text(json.dumps({"pile": {**same, "documents": [0] * sequences}}))
    assert summarise(finished_run)["sets"]["pile"]["forgetting_ci95"] is None  # one document says nothing about others


def test_chaudhry_looks_at_the_ends_of_phases_only(finished_run):
    pile = summarise(finished_run)["sets"]["pile"]
    assert pile["forgetting_best"] == pytest.approx(pile["forgetting"])  # the end of its own phase was its best end
    assert pile["over_best"] >= pile["forgetting_best"]
