"""Looking at the data of a run: the text of its batches, and the mix over time as it is planned."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import toy
from rich.console import Console

from cpt.config import load
from cpt.data.inspecting import END, batch_rows, show
from cpt.data.loader import Batches
from cpt.data.mix import MixPlan
from cpt.data.mix_picture import mix_over_time, mix_table, write_mix
from cpt.data.preparing import open_sources
from cpt.errors import ConfigError, RunError
from cpt.plan import resolve

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("inspecting")
    config = toy.get_config(str(root))
    config.phases.second.replay.share = 0.25
    config.stores = str(root / "stores")
    plan = resolve(load(config))
    sources, tokenizer = open_sources(plan.spec.sources, plan.spec.tokenizer, root / "stores", lambda _: None)
    rows = {name: source.train.rows(plan.spec.batch.length) for name, source in sources.items()}
    return plan, MixPlan(plan, rows), sources, tokenizer


def printed(function, *arguments):
    console = Console(file=io.StringIO(), width=200)
    function(*arguments, console)
    return console.file.getvalue()


@pytest.mark.parametrize("where", ["first", "second"])
def test_what_is_shown_is_what_the_loader_gives(world, where):
    plan, mix, sources, tokenizer = world
    phase = next(p for p in plan.phases if p.name == where)
    batches = Batches(mix, {name: s.train for name, s in sources.items()})
    for step in (phase.first_step, phase.end - 1):
        batch = batches[step]
        found = list(batch_rows(plan, mix, sources, tokenizer, step))
        assert [phase.columns[k].name for k in batch["source_B"]] == [r.column for r in found]
        for row, tokens, targets in zip(found, batch["tokens_BxL"], batch["targets_BxL"], strict=True):
            ids = np.append(tokens, targets[-1])
            text = "".join(d.text for d in row.documents)
            plain = text.replace(END, "").encode().decode("unicode_escape") if text.isascii() else None
            assert plain is None or plain == tokenizer.decode(ids)
            assert text.count(END) == int((ids == tokenizer.eod_id).sum())
            assert sum(d.tokens for d in row.documents) == len(ids)
            # Each stretch is a stretch of the document that it is said to be of.
            pieces = np.split(ids, np.cumsum([d.tokens for d in row.documents])[:-1])
            for d, piece in zip(row.documents, pieces, strict=True):
                ((_, domain, whole),) = sources[row.source].train.documents(d.number, d.number + 1)
                assert domain == d.domain and piece.tobytes() in whole.tobytes()


def test_the_command_shows_rows_shares_and_json(world):
    plan, mix, *_ = world
    step = plan.phases[1].first_step
    told = printed(show, plan, step, 2, 40, False)
    assert f"update {step}: phase second, step 0 of it" in told and "replay(first)" in told and "25 %" in told
    assert told.count("\nrow ") == 2 and f"and {plan.spec.batch.sequences - 2} more rows" in told
    rows = [json.loads(line) for line in printed(show, plan, step, 0, 40, True).splitlines()]
    _, names, row_B = mix.batch_at(step)
    assert [r["row"] for r in rows] == row_B.tolist() and [r["source"] for r in rows] == names
    assert {r["step"] for r in rows} == {step} and all(d["text"] for r in rows for d in r["documents"])
    with pytest.raises(ConfigError, match=rf"--step={plan.total_steps}: the plan has the updates 0 to"):
        show(plan, plan.total_steps, 1, 1, False, Console(file=io.StringIO()))


def test_ids_are_shown_where_nobody_can_read_them(world):
    plan, mix, sources, tokenizer = world
    (first, *_), (known, *_) = (batch_rows(plan, mix, sources, t, 0) for t in (None, tokenizer))
    ids = np.array(" ".join(d.text for d in first.documents).split(), int)
    assert len(ids) == plan.spec.batch.length + 1
    assert [d.number for d in first.documents] == [d.number for d in known.documents]


def test_the_mix_that_is_drawn_is_the_mix_that_is_planned(world):
    plan, *_ = world
    tokens_P, shares = mix_over_time(plan)
    assert np.sum(list(shares.values()), axis=0) == pytest.approx(np.ones(len(tokens_P)))
    for phase in plan.phases:
        inside = (tokens_P >= phase.first_token) & (tokens_P < phase.first_token + phase.tokens)
        for k, column in enumerate(phase.columns):
            at = (tokens_P[inside] - phase.first_token) // phase.tokens_per_step
            drawn = shares[column.name][inside][-len(np.unique(at)) :]
            assert drawn == pytest.approx([phase.shares(int(s))[k] for s in np.unique(at)])
    told = printed(lambda console: console.print(mix_table(plan)))
    assert "replay(first)" in told and "25 %" in told


def test_the_mix_as_a_file(world, tmp_path):
    plan, *_ = world
    for name, begins in (("m.png", b"\x89PNG"), ("m.svg", b"<?xml"), ("deep/m.html", b"<!doctype html>")):
        assert write_mix(plan, tmp_path / name).read_bytes().startswith(begins)
    with pytest.raises(ConfigError, match=r"draws \.html, \.png, \.svg, not '\.pdf'"):
        write_mix(plan, tmp_path / "m.pdf")
    with pytest.raises(RunError, match=r"m\.png: cannot write"):
        (tmp_path / "taken").write_text("")
        write_mix(plan, tmp_path / "taken" / "m.png")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["plan", "--config=configs/data_mixing.py:curriculum"], 0, "prose"),
        (["--list"], 0, "replay.schedule.kind"),
        (["show", "--help"], 0, "--chars"),
        (["shwo"], 2, "shwo: no such command; did you mean 'show'?"),
        (["plan"], 2, "--config: required"),
        (["plan", "--config=configs/data_mixing.py", "--config.batch.sequencs=3"], 2, "batch.sequencs"),
        ([], 2, "--list shows corpora"),
    ],
)
def test_the_commands(words, code, says):
    done = subprocess.run([sys.executable, "-m", "cpt.data", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code and says in (done.stderr if code else done.stdout), done.stderr
    assert code == 0 or len(done.stderr.strip().splitlines()) == 1
