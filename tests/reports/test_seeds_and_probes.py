"""Runs that differ in their seed together, probes and domains as columns, sorting, following, exporting, listing."""

import csv
import html
import json
import math
import re
import shutil
import threading
import time
from dataclasses import replace

import pytest
from synthetic_run import write_run

from cpt import report
from cpt.errors import ConfigError, RunError
from cpt.evaluators.branches import branch_rows
from cpt.evaluators.intransigence import intransigence
from cpt.evaluators.rows import read_run
from cpt.evaluators.summary import summarise
from cpt.reports.compare import write_comparison
from cpt.reports.comparison import compared
from cpt.reports.comparisons.trade_off import trades_of
from cpt.reports.export import as_latex, export, run_rows
from cpt.reports.page import write_report
from cpt.reports.run_list import run_table, runs_in, state
from cpt.training import workdir

LASTING = {0.0: (0.50, 0.53, 0.47), 0.05: (0.16, 0.18, 0.14), 0.25: (0.15, 0.20, 0.13)}


@pytest.fixture
def seeds(tmp_path):
    """Three seeds of three shares of replay; the last two shares forget about the same."""
    return [
        write_run(tmp_path / f"r{share}-{seed}", replay=share, lasting=lasting, seed=seed, steps=100)
        for share, values in LASTING.items()
        for seed, lasting in enumerate(values)
    ]


def judged(page):
    """(config, set, quantity) -> what the table of differences says of it."""
    (table,) = [t for t in re.findall(r"<table>.*?</table>", page.read_text()) if "Differences to the first" in t]
    rows = [re.findall(r"<td[^>]*>([^<]*)", row) for row in re.findall(r"<tr>.*?</tr>", table)]
    return {(r[0], r[2], r[3]): r[5] for r in rows if r}


def text_of(page):
    return re.sub(r"<[^>]+>", " ", page.read_text()[page.read_text().index("<body>") :])


def test_seeds_are_taken_together_and_differences_are_judged(seeds, tmp_path):
    text = text_of(write_comparison(seeds, tmp_path / "a.html"))
    assert "3 configs, 3 seeds of each. " in text
    assert re.search(r"replay.share=0.05 forgets pile less than replay.share=0.0: −0\.34\d ± 0\.\d+", text)
    told = judged(tmp_path / "a.html")  # each against the first config
    assert told["replay.share=0.05", "pile", "forgetting"] == "told apart"
    assert told["replay.share=0.25", "pile", "forgetting"] == "told apart" and len(told) == 16
    summaries = [summarise(run)["sets"]["pile"]["forgetting"] for run in seeds]
    mean = sum(summaries[3:6]) / 3
    assert f"+{mean:.3f} ± " in text


def test_a_difference_that_is_none_is_called_noise(seeds, tmp_path):
    told = judged(write_comparison(seeds[3:], tmp_path / "a.html"))
    assert {q: told["replay.share=0.25", "pile", q] for q in ("forgetting", "final", "depth", "area")} == dict.fromkeys(
        ("forgetting", "final", "depth", "area"), "within noise"
    )


def test_one_seed_of_each_is_compared_over_documents(seeds, tmp_path):
    page = write_comparison([seeds[0], seeds[3]], tmp_path / "a.html")
    assert "its difference to another is over evaluation documents only" in text_of(page)
    told = judged(page)
    assert told["replay.share=0.05", "pile", "forgetting"] == "told apart"
    assert told["replay.share=0.05", "pile", "area"] == "no interval"


def test_runs_are_sorted_by_any_number_of_their_summaries(seeds):
    forgot = {p.name: summarise(p)["sets"]["pile"]["forgetting"] for p in seeds}
    assert list(compared(seeds, "sets.pile.forgetting").runs) == sorted(forgot, key=forgot.get)
    assert list(compared(seeds).runs) == [p.name for p in seeds]
    with pytest.raises(ConfigError, match=r"objective 'sets\.pil\.final': no 'pil' in sets; did you mean 'pile'"):
        compared(seeds, "sets.pil.final")


def test_runs_of_different_tokenizers_are_compared_per_byte(seeds, tmp_path):
    """4 bytes a token here: every number is the one in nats per token over 4 ln 2, and no other unit is named."""
    nats = compared(seeds[:2])
    for path, tokenizer in zip(seeds[:2], "ab", strict=True):
        (path / "environment.json").write_text(json.dumps({"tokenizer": tokenizer}))
    bits = compared(seeds[:2])
    assert not bits.one_tokenizer and compared(seeds[2:4]).one_tokenizer
    for name, run in bits.runs.items():
        for set_name, s in run.summary["sets"].items():
            was = nats.runs[name].summary["sets"][set_name]
            pairs = [(s[k], was[k]) for k in ("initial", "final", "forgetting")]
            pairs += [(s["gap"][k], was["gap"][k]) for k in ("depth", "area")]
            pairs += zip(s["forgetting_ci95"], was["forgetting_ci95"], strict=True)
            assert [a for a, _ in pairs] == pytest.approx([b / 4 / math.log(2) for _, b in pairs], rel=1e-3), set_name
            assert s["final"] == pytest.approx(s["bits_per_byte"]["final"])
    page = write_comparison(seeds[:2], tmp_path / "a.html")
    text = text_of(page)
    assert "losses are in bits per byte of text" in text and "Losses are bits per byte" in text
    assert "nats per token" not in text and '"text":"bits per byte"' in page.read_text()
    assert {row["unit"] for row in run_rows(bits)} == {"bits per byte"} and "unit" not in run_rows(nats)[0]


def test_branches_of_a_run_that_is_read_per_byte_are_too(seeds):
    trunk = seeds[0]
    shutil.copytree(seeds[1], trunk / "branches" / "step-100")
    nats, bits = (branch_rows(replace(read_run(trunk), per_byte=b)) for b in (False, True))
    assert nats and len(nats) == len(bits)
    for was, now in zip(nats, bits, strict=True):
        assert now["annealed"] == pytest.approx(was["annealed"] / 4 / math.log(2), rel=1e-3)


def test_text_that_is_not_the_same_is_named(seeds, tmp_path):
    for path, tokenizer in zip(seeds[:2], "ab", strict=True):
        (path / "environment.json").write_text(json.dumps({"tokenizer": tokenizer}))
    rows = [json.loads(line) for line in (seeds[1] / "eval.jsonl").read_text().splitlines()]
    n = rows[0]["bytes"]
    for row in rows:
        row["bytes"] = row["bytes"] // 2 if row["set"] == "pile" else None
        row["bits_per_byte"] = None if row["bytes"] is None else row["nats"] / row["bytes"] / math.log(2)
    (seeds[1] / "eval.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    text = text_of(write_comparison(seeds[:2], tmp_path / "a.html"))
    assert f"Of pile they score {n // 2:,} to {n:,} bytes, so not the same text" in text
    assert f"Nobody knows how many bytes slimpajama has in {seeds[1].name}." in text


def test_who_is_left_out_is_named(seeds, tmp_path):
    young = write_run(tmp_path / "young", replay=0.05, seed=9, steps=100, until=130)
    rows = [json.loads(line) for line in (seeds[0] / "eval.jsonl").read_text().splitlines()]
    rows[-2 if rows[-2]["set"] == "pile" else -1] |= {"loss": None, "nats": None}
    (seeds[0] / "eval.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    text = text_of(write_comparison([*seeds, young], tmp_path / "a.html"))
    assert "Left out, not finished: young." in text
    assert "Without a finite loss at the end, and so not in its means: r0.0-0." in text


def test_a_trade_off_is_over_the_sets_that_all_runs_have(seeds, tmp_path):
    """One run was evaluated on a further old set, which changes nothing between it and the others."""
    lines = (seeds[1] / "eval.jsonl").read_text().splitlines()
    more = [{**r, "set": "more", "loss": 9.0 + r["step"]} for r in map(json.loads, lines) if r["set"] == "pile"]
    (seeds[1] / "eval.jsonl").write_text("".join(line + "\n" for line in [*lines, *map(json.dumps, more)]))
    (seeds[1] / "eval_sets.json").write_text(json.dumps({"more": {"source": "books", "tags": ["upstream"]}}))
    points = {t.name: t.forgetting[0] for t in trades_of(compared(seeds[:2]))}
    assert points[seeds[1].name] == summarise(seeds[1])["sets"]["pile"]["forgetting"]
    alone = {t.name: t.forgetting[0] for t in trades_of(compared(seeds[1:2]))}
    assert alone[seeds[1].name] != points[seeds[1].name]


def test_of_two_sets_of_a_source_the_one_at_the_edges_counts(seeds):
    plan = json.loads((seeds[0] / "plan.json").read_text())
    plan["sets"]["pile_full"] = {"source": "pile", "tags": ["old"], "learned_in": "pile", "at": "edges"}
    (seeds[0] / "plan.json").write_text(json.dumps(plan))
    lines = (seeds[0] / "eval.jsonl").read_text().splitlines()
    full = [{**r, "set": "pile_full", "loss": 1.0 + (r["step"] == 200)} for r in map(json.loads, lines)
            if r["set"] == "pile" and r["step"] in (0, 100, 200)]  # fmt: skip
    (seeds[0] / "eval.jsonl").write_text("".join(line + "\n" for line in [*lines, *map(json.dumps, full)]))
    ((point,),) = ([t.forgetting[0] for t in trades_of(compared(seeds[:1]))],)
    assert point == 1.0


# ---- probes and domains ----
def with_probes(path, values):
    rows = [{"step": s, "tokens": 2048 * s, "probe": "mine", "values": v, "checkpoint": "in-loop"} for s, v in values]
    (path / "probes.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def test_a_probe_is_a_column_of_the_reports(seeds, tmp_path):
    with_probes(seeds[0], [(0, {"x": 1.5}), (100, {"x": 2.5}), (200, {"x": 1234.5678})])
    with_probes(seeds[1], [(0, {"x": 7.25, "y": None})])
    table = re.findall(r"<table>.*?</table>", write_comparison(seeds[:2], tmp_path / "a.html").read_text())
    (mine,) = [t for t in table if "mine.x" in t]
    assert re.findall(r"<t[hd](?: [^>]*)?>([^<]*)", mine) == [
        *("run", "mine.x", "mine.y"), *("r0.0-0", "1235", "–"), *("r0.0-1", "7.25", "–")
    ]  # fmt: skip
    page = write_report(seeds[0]).read_text()
    (one,) = [t for t in re.findall(r"<table>.*?</table>", page) if "mine.x" in t]
    assert re.findall(r"<td[^>]*>([^<]*)", one) == ["mine.x", "3", "1.5", "1235", "1.5", "1235"]
    assert "The numbers of the probe mine over tokens" in page
    assert "Probes" not in write_report(seeds[2]).read_text()


def test_domains_of_a_set_and_their_means(finished_run):
    n = 64
    domains = ["a" if i % 4 else "b" for i in range(n)]
    origin = {"rows": list(range(n)), "documents": list(range(n)), "domains": domains}
    (finished_run / "eval_sets.json").write_text(json.dumps({"pile": origin}))
    s = summarise(finished_run)["sets"]["pile"]
    rows = [json.loads(line) for line in (finished_run / "eval_sequences.jsonl").read_text().splitlines()]
    by_step = {r["step"]: r["nats"] for r in rows if r["set"] == "pile"}
    for name, wanted in (("a", range(n)), ("b", range(0, n, 4))):
        mine = [i for i in wanted if domains[i] == name]
        ends = [sum(by_step[step][i] for i in mine) / (128 * len(mine)) for step in (300, 600)]
        found = s["domains"][name]
        assert [found["initial"], found["final"]] == pytest.approx(ends) and found["sequences"] == len(mine)
        assert found["forgetting_ci95"][0] < found["forgetting"] < found["forgetting_ci95"][1]
    micro = sum(s["domains"][d]["final"] * s["domains"][d]["sequences"] for d in "ab") / n
    assert micro == pytest.approx(s["final"])
    assert s["macro"]["final"] == pytest.approx((s["domains"]["a"]["final"] + s["domains"]["b"]["final"]) / 2)
    assert "micro mean" in write_report(finished_run).read_text()
    assert summarise(finished_run)["sets"]["slimpajama"]["domains"] is None


def test_means_over_the_sets_of_a_tag(finished_run):
    plan = json.loads((finished_run / "plan.json").read_text())
    for s in plan["sets"].values():
        s["tags"].append("all")
    (finished_run / "plan.json").write_text(json.dumps(plan))
    tags, sets = summarise(finished_run)["tags"], summarise(finished_run)["sets"]
    both = [sets[n]["final"] for n in ("pile", "slimpajama")]
    assert tags["all"]["macro"]["after"] == pytest.approx(sum(both) / 2) == pytest.approx(tags["all"]["micro"]["after"])
    assert tags["old"]["micro"] == pytest.approx({"before": sets["pile"]["initial"], "after": sets["pile"]["final"]})


# ---- a reference ----
def test_intransigence_is_what_the_reference_learned_and_the_run_did_not(seeds, tmp_path):
    joint = write_run(tmp_path / "joint", lasting=-0.3, steps=100, seed=7)
    run, ref = (compared([p]).runs[p.name] for p in (seeds[0], joint))
    rows = {r["set"]: r for r in intransigence(run, ref)}
    best = {n: ref.curves[n].loss[-1] for n in ref.curves}
    assert rows["pile"]["intransigence"] == run.curves["pile"].loss[run.curves["pile"].steps == 100][0] - best["pile"]
    new = run.curves["slimpajama"].loss[-1] - best["slimpajama"]
    assert rows["slimpajama"]["intransigence"] == rows["slimpajama"]["distance"] == new
    assert rows["pile"]["distance"] == run.curves["pile"].loss[-1] - best["pile"]
    page = write_comparison(seeds[:2], tmp_path / "a.html", reference=joint)
    assert "Beside the reference" in text_of(page) and f"+{rows['pile']['intransigence']:.3f}" in text_of(page)


def test_a_reference_that_lacks_a_set_is_named(seeds, tmp_path):
    other = write_run(tmp_path / "other", old="books", steps=100)
    text = text_of(write_comparison(seeds[:1], tmp_path / "a.html", reference=other))
    assert "other did not evaluate 'pile' (it has: books, slimpajama)" in html.unescape(text)
    with pytest.raises(RunError, match="nowhere: no such run directory"):
        write_comparison(seeds[:1], tmp_path / "a.html", reference=tmp_path / "nowhere")


def test_loss_potential_is_the_last_rate_over_the_highest(finished_run):
    rows = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    for phase, part in zip(summarise(finished_run)["phases"], (rows[:300], rows[300:]), strict=True):
        rates = [r["lr"] for r in part]
        assert phase["loss_potential"] == rates[-1] / max(rates) and phase["peak_lr"] == max(rates)


# ---- export ----
def test_export_has_every_number_and_figures(seeds, tmp_path):
    with_probes(seeds[0], [(0, {"x": 1.5})])
    files = {p.name for p in export(compared(seeds), tmp_path / "paper")}
    tables = {f"{n}.{k}" for n in ("runs", "seeds", "differences") for k in ("csv", "tex")}
    figures = {f"{n}.{k}" for n in ("curves-pile", "curves-slimpajama", "trade_off") for k in ("png", "svg")}
    assert files == tables | figures | {"curves.csv"} == {p.name for p in (tmp_path / "paper").iterdir()}
    rows = list(csv.DictReader((tmp_path / "paper/runs.csv").open()))
    assert len(rows) == 18 and float(rows[0]["forgetting"]) == summarise(seeds[0])["sets"]["pile"]["forgetting"]
    assert rows[0]["mine.x"] == "1.5" and rows[2]["mine.x"] == ""
    assert rows[0]["phases.slimpajama.replay.share"] == "0.0" and "seed" in rows[0]
    curve = [r for r in csv.DictReader((tmp_path / "paper/curves.csv").open()) if r["run"] == rows[0]["run"]]
    lines = [json.loads(line) for line in (seeds[0] / "eval.jsonl").read_text().splitlines()]
    assert sorted(float(r["loss"]) for r in curve) == sorted(line["loss"] for line in lines)
    assert (tmp_path / "paper/trade_off.png").read_bytes().startswith(b"\x89PNG")
    assert "within_noise" in (tmp_path / "paper/differences.tex").read_text().replace("\\", "")


def test_names_that_are_no_plain_words_are_drawn(tmp_path):
    run = write_run(tmp_path / "we$ird_$x", old="a/b", new="a_b", steps=100)
    other = write_run(tmp_path / "_hidden", old="a/b", new="a_b", steps=100, seed=1)
    names = {p.name for p in export(compared([run, other]), tmp_path / "out")}
    assert {"curves-a_b.png", "curves-a_b-1.png"} <= names


def test_latex_escapes_names_and_writes_numbers_as_math():
    text = as_latex([{"a_b": "50%_&", "n": -1234.5678}, {"a_b": "x^2", "n": None}])
    assert text.splitlines() == [
        r"\begin{tabular}{lr}", r"\toprule", r"a\_b & n \\", r"\midrule", r"50\%\_\& & $-1235$ \\",
        r"x\textasciicircum{}2 & -- \\", r"\bottomrule", r"\end{tabular}",
    ]  # fmt: skip


# ---- many, growing and listed ----
def test_twenty_runs_are_a_small_page(tmp_path):
    runs = [write_run(tmp_path / f"run-{i:02}", lasting=0.02 * i, seed=i, steps=150) for i in range(20)]
    page = write_comparison(runs, tmp_path / "a.html")
    assert page.stat().st_size < 15e6


def test_a_run_is_followed_until_it_is_finished(tmp_path, monkeypatch):
    run, whole = write_run(tmp_path / "r", until=320), write_run(tmp_path / "whole")
    pages = []
    monkeypatch.setattr(report, "make", lambda *given: pages.append(given) or write_report(run, again_s=given[3]))
    follower = threading.Thread(target=report.follow, args=([str(run)], None, None, None, 0.05))
    follower.start()
    page = run / "report.html"
    for _ in range(600):
        if page.exists():
            break
        time.sleep(0.05)
    assert '<meta http-equiv="refresh" content="0.05">' in page.read_text()
    for name in ("metrics.jsonl", "eval.jsonl", "eval_sequences.jsonl"):
        (whole / name).rename(run / name)
    follower.join(20)
    assert not follower.is_alive() and len(pages) in (2, 3, 4)  # once per change, not per look
    assert "http-equiv" not in page.read_text() and "600 of 600 steps" in page.read_text()


def test_the_list_tells_states(tmp_path):
    write_run(tmp_path / "a" / "done")
    half = write_run(tmp_path / "a" / "half", until=320)
    (tmp_path / "a" / "notes").mkdir()
    broken = write_run(tmp_path / "b")
    (broken / "eval.jsonl").write_text("{oops\n{}\n")
    write_run(tmp_path / "a" / "done" / "branches" / "step-300")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text("{}")  # a model, not a run
    names = [str(p.relative_to(tmp_path)) for p in runs_in(tmp_path)]
    assert names == ["a/done", "a/done/branches/step-300", "a/half", "b"]
    assert [p.name for p in runs_in(half)] == ["half"]
    run = compared([half]).runs["half"]
    written = (half / "metrics.jsonl").stat().st_mtime
    assert state(run, written + 10) == "training" and state(run, written + 1000) == "stopped"
    with workdir.lock(half):
        assert state(run, written + 1000) == "training"
    assert not list((tmp_path / "a" / "done").glob(".lock"))
    table = run_table(tmp_path)
    states = [str(c) for c in table.columns[1].cells]
    assert states[0] == states[1] == "finished" and states[3].startswith("unreadable: run error")
    assert list(table.columns[2].cells)[:3] == ["600 of 600", "600 of 600", "320 of 600"]
    with pytest.raises(RunError, match="no run in it"):
        runs_in(tmp_path / "a" / "notes")
