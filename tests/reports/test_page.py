import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from synthetic_run import write_run

from cpt.errors import RunError
from cpt.evaluators.rows import read_run
from cpt.registry import available
from cpt.reports.page import FIRST, LAST, ROOM, write_report

HOSTILE = "</script><script>alert('x')</script><img src=http://evil.example/x.png onerror=alert(1)> \"q\" & 'r'"


class Page(HTMLParser):
    """The elements of a page, with what stands in its scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.text, self._script = [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self._script = dict(attrs)

    def handle_endtag(self, tag):
        if tag == "script":
            self._script = None

    def handle_data(self, data):
        if self._script is None:
            self.text.append(data)
        elif "data-plot" in self._script:
            self.scripts.append((self._script["data-plot"], json.loads(data)))

    def all(self, tag):
        return [a for t, a in self.tags if t == tag]


def page_of(path):
    return Page(write_report(path).read_text(encoding="utf-8"))


def test_every_figure_is_there_with_its_words_and_its_data(finished_run):
    page = page_of(finished_run)
    plots = [a for a in page.all("div") if a.get("class") == "plot"]
    assert len(plots) == 7  # losses, gap, matrix, loss to loss, mix, training loss, throughput
    assert [a["id"] for a in plots] == [i for i, _ in page.scripts]
    assert all(len(a["aria-label"]) > 20 and a["role"] == "img" for a in plots)
    for _, spec in page.scripts:
        for trace in spec["data"]:
            assert any(v is not None for v in trace["x"]), trace["name"]


def test_the_answer_is_in_words_with_its_interval(finished_run):
    text = " ".join(page_of(finished_run).text)
    assert re.search(
        r"slimpajama was learned by 2\.4\d\d ± 0\.0\d\d|slimpajama was learned by 2\.39\d ± 0\.0\d\d", text
    )
    assert re.search(r"pile was forgotten by 0\.160 ± 0\.0\d\d nats per token", text)
    assert "peaked at 32.8k tokens, and has not come all the way back" in text
    assert "The ledger is exact" in text and "30,720 of 614,400 tokens (5.00 %)" in text


def test_within_noise_is_said(tmp_path):
    text = " ".join(page_of(write_run(tmp_path / "r", lasting=0.0)).text)
    assert re.search(r"pile was kept, within noise \(0\.000 ± 0\.0\d\d nats per token\)", text)
    assert "was back after" in text


def test_nothing_is_loaded_from_anywhere(finished_run):
    page = page_of(finished_run)
    assert not [a for a in page.all("script") if "src" in a]
    assert [a["href"] for a in page.all("link")] == ["data:,"]
    assert not any(page.all(t) for t in ("img", "iframe", "object", "embed", "base"))
    css = (finished_run / "report.html").read_text().split("<style>")[1].split("</style>")[0]
    assert "url(" not in css and "@import" not in css


def test_hostile_names_stay_text(tmp_path):
    path = write_run(tmp_path / "r", old=HOSTILE, new="<b>new</b>")
    page, plain = page_of(path), page_of(write_run(tmp_path / "plain"))
    count = {t for t, _ in page.tags}
    assert "img" not in count
    assert len(page.all("script")) == len(plain.all("script"))
    assert [i for i, _ in page.scripts] == [i for i, _ in plain.scripts]
    assert HOSTILE in "".join(page.text)
    for _, spec in page.scripts:
        assert "<img" not in json.dumps(spec) and "<script" not in json.dumps(spec)


def test_the_shaded_area_is_the_measured_one(finished_run):
    page = page_of(finished_run)
    gap = next(spec for _, spec in page.scripts if "tokens since the switch" in json.dumps(spec["layout"]["xaxis"]))
    floor, top = gap["data"][0], gap["data"][1]
    pairs = list(zip(top["x"], top["y"], strict=True))
    area = sum((y0 + y1 - 2 * floor["y"][0]) / 2 * (x1 - x0) for (x0, y0), (x1, y1) in pairwise(pairs))
    summary = json.loads((finished_run / "summary.json").read_text())
    assert area == pytest.approx(summary["sets"]["pile"]["gap"]["area"], rel=1e-3)


@pytest.mark.parametrize("until", [0, 1, 120, 300, 301, 450])
def test_a_young_run_renders(tmp_path, until):
    page = page_of(write_run(tmp_path / "r", until=until))
    assert "in progress" in " ".join(page.text)
    assert [a for a in page.all("h1")]


@pytest.mark.parametrize(
    "name",
    [
        "plan.json",
        "metrics.jsonl",
        "eval.jsonl",
        "eval_sequences.jsonl",
        "ledger.json",
        "config.json",
        "environment.json",
    ],
)
def test_any_file_may_be_missing(finished_run, name):
    (finished_run / name).unlink()
    assert page_of(finished_run).all("h2")


def test_three_phases_show_each_old_set_after_each_switch(finished_run):
    plan = json.loads((finished_run / "plan.json").read_text())
    last = plan["phases"][1]
    last["steps"], last["tokens"] = 150, 150 * last["tokens_per_step"]
    plan["phases"].append({**last, "name": "code", "first_step": 450, "first_token": 450 * last["tokens_per_step"]})
    (finished_run / "plan.json").write_text(json.dumps(plan))
    titles = [spec["layout"].get("title", {}).get("text") for _, spec in page_of(finished_run).scripts]
    assert [t for t in titles if t] == ["pile during slimpajama", "pile during code", "slimpajama during code"]


def test_every_section_has_a_place_and_out_is_respected(finished_run, tmp_path):
    assert set(available(ROOM)) == set(FIRST + LAST)
    out = write_report(finished_run, tmp_path / "new" / "page.html")
    assert out == tmp_path / "new" / "page.html" and out.exists()
    assert not (finished_run / "report.html").exists()


def test_no_run_is_an_error(tmp_path):
    with pytest.raises(RunError):
        write_report(tmp_path)


def test_writing_twice_gives_the_same_page(finished_run):
    first = write_report(finished_run).read_bytes()
    assert write_report(finished_run).read_bytes() == first
    assert read_run(finished_run).summary["finished"]
