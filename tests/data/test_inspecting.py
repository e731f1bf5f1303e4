"""Looking at the data of a run: the text of its batches, and the mix over time as it is planned."""

import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import toy
from rich.console import Console

from cpt import config as c
from cpt.config import load
from cpt.data.inspecting import END, batch_rows, show
from cpt.data.ledger import Ledger
from cpt.data.loader import Batches
from cpt.data.mix import MixPlan
from cpt.data.mix_picture import mix_over_time, mix_table, range_tokens, read_over_time, write_mix
from cpt.data.preparing import open_sources
from cpt.data.sizes import known_sizes
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
            assert "".join(d.text for d in row.documents) == tokenizer.decode(ids)
            assert sum(d.ends for d in row.documents) == int((ids == tokenizer.eod_id).sum())
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
    titles = [line for line in told.splitlines() if line.startswith("row ")]
    for b, title in enumerate(titles):
        of = f" of {names[b]}" if rows[b]["column"] != names[b] else ""
        assert title == f"row {b}  {rows[b]['column']}, row {row_B[b]:,}{of}"
    clock = plan.clock(step)
    assert {(r["step"], r["phase"], r["tokens"]) for r in rows} == {(step, "second", clock.tokens)}
    shares = dict(zip([c.name for c in plan.phases[1].columns], plan.phases[1].shares(0), strict=True))
    assert all(r["share"] == pytest.approx(shares[r["column"]]) and r["multiplier"] == 1 for r in rows)
    with pytest.raises(ConfigError, match=rf"--step={plan.total_steps}: the plan has the updates 0 to"):
        show(plan, plan.total_steps, 1, 1, False, Console(file=io.StringIO()))


def test_no_text_is_taken_for_markup_or_an_emoji(tmp_path):
    """LaTeX, code and chat logs are full of what rich would replace, in the table of rows as in the JSON."""
    odd = "a :x: :warning: [bold]b[/x] \\[ c \\n d\n\x1b[31m\u202e [/] é\\"
    config = toy.get_config(str(tmp_path))
    for name in toy.LETTERS:
        lines = [json.dumps({"text": f"{odd[:-1]} {i} {odd}"}) for i in range(600)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    config.batch.length = 200
    config.model.context = 200
    plan = resolve(load(config))
    sources, tokenizer = open_sources(plan.spec.sources, plan.spec.tokenizer, Path(plan.spec.stores), lambda _: None)
    told, raw = (printed(show, plan, 0, 8, 500, as_json) for as_json in (False, True))
    rows = [json.loads(line) for line in raw.splitlines()]
    assert raw.isascii() and len(rows) == plan.spec.batch.sequences
    for row in rows:
        (ids,) = sources[row["source"]].train.read_rows(np.array([row["row"]]), 200)
        assert "".join(d["text"] for d in row["documents"]) == tokenizer.decode(ids)
    shown = odd.replace("\n", "\\n").replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
    assert (
        told.count(f" {shown}{END}\n") == sum(d["ends"] and odd in d["text"] for r in rows for d in r["documents"]) > 0
    )
    short = printed(show, plan, 0, 8, 5, False)
    assert "tokens: a :x:…" in short and ":warning:" not in short and "\x1b" not in told + short


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


def test_tokens_and_epochs_are_those_of_the_ledger(world):
    """The sizes are found without opening what `open_sources` opens, the counts without allocating rows."""
    plan, mix, sources, _ = world
    sizes, unknown = known_sizes(plan)
    length = plan.spec.batch.length
    assert sizes == {n: s.train.rows(length) * length for n, s in sources.items()} and not unknown
    rows = Ledger(mix, 1.0).to_json()["phases"]
    for row in rows:
        phase = next(p for p in plan.phases if p.name == row["phase"])
        column = next(c for c in phase.columns if c.name == row["source"])
        assert range_tokens(plan, phase, column, sizes) == pytest.approx(length * mix.range_size(phase, column))
    told = printed(lambda console: console.print(mix_table(plan, sizes)))
    for row in rows:
        phase = next(p for p in plan.phases if p.name == row["phase"])
        k = [c.name for c in phase.columns].index(row["source"])
        epochs = row["tokens_planned"] / length / mix.range_size(phase, phase.columns[k])
        (line,) = [t for t in told.splitlines() if f" {row['source']} " in t]
        assert float(line.split()[-3]) == pytest.approx(epochs, rel=0.02)
    tokens_P, read = read_over_time(plan)
    assert set(read) == {"old", "new", "replay(first)"}
    assert sum(r[-1] for r in read.values()) == pytest.approx(plan.total_tokens) == tokens_P[-1]
    for row in rows:  # rows are whole, and never more than one away from the shares
        assert abs(read[row["source"]][-1] - row["tokens_planned"]) <= length


def test_tokens_are_counted_at_every_step_though_few_are_drawn(toy_config):
    toy_config.phases.second.update(
        steps=5003,
        mix={"old": 1.0, "new": 0.0},
        mixer=c.mixer(kind="linear", options=dict(end={"old": 0.0, "new": 1.0})),
    )
    plan = resolve(load(toy_config))
    second = plan.phases[1]
    exact = np.cumsum([[0, 0, 0], *(second.shares(s) for s in range(second.steps))], axis=0) * second.tokens_per_step
    tokens_P, read = read_over_time(plan)
    inside = np.flatnonzero(tokens_P >= second.first_token)[1:]
    at = (tokens_P[inside] - second.first_token) // second.tokens_per_step
    assert len(at) < second.steps / 4 and at[-1] == second.steps
    _, shares = mix_over_time(plan)
    for k, column in enumerate(second.columns):
        assert shares[column.name][-1] == second.shares(second.steps - 1)[k]  # drawn up to its border
        before = plan.phases[0].tokens if column.source == "old" else 0
        assert read[column.source or column.name][inside] == pytest.approx(before + exact[at, k])


def test_a_size_is_only_told_of_the_very_store_that_a_run_would_read(world, tmp_path):
    plan, _, sources, _ = world
    root = Path(plan.spec.stores)
    before = sorted(root.rglob("*"))

    def sizes(**changed):
        spec = plan.spec.sources["new"]
        return known_sizes(with_source(plan, dataclasses.replace(spec, **changed)))

    for changed in (dict(validation=0.2), dict(dedup=True), dict(max_chars=7), dict(replay_holdout=0.1)):
        found, unknown = sizes(**changed)
        assert "new" not in found and unknown == {"new": "it is prepared when it is first used"}
    folder = sources["new"].train.folder
    whole = known_sizes(plan)[0]["new"]
    assert sizes(corpus=None, store=str(folder))[0]["new"] == whole
    assert sizes(take_tokens=1000)[0]["new"] == 31 * 32 < whole
    found, unknown = sizes(corpus=None, store=str(tmp_path / "nowhere"))
    assert "new" not in found and "nowhere" in unknown["new"]
    assert sorted(root.rglob("*")) == before and not list(tmp_path.iterdir())


def test_the_size_of_a_store_whose_tokenizer_is_trained(toy_config, tmp_path):
    toy_config.stores = str(tmp_path / "stores")
    toy_config.tokenizer = c.tokenizer(kind="bpe", vocab_size=300, train_on="old")
    toy_config.model.vocab_size = 300
    plan = resolve(load(toy_config))
    assert known_sizes(plan)[0] == {} and not (tmp_path / "stores").exists()
    sources, _ = open_sources(plan.spec.sources, plan.spec.tokenizer, tmp_path / "stores", lambda _: None)
    assert known_sizes(plan)[0] == {n: s.train.rows(32) * 32 for n, s in sources.items()}
    # The stores of one tokenizer do not tell how many tokens another one would make.
    toy_config.tokenizer = c.tokenizer(kind="byte")
    assert known_sizes(resolve(load(toy_config)))[0] == {}
    toy_config.tokenizer = c.tokenizer(kind="bpe", vocab_size=290, train_on="old")
    assert known_sizes(resolve(load(toy_config)))[0] == {}


def with_source(plan, spec):
    """The plan with another source `new`."""
    changed = dataclasses.replace(plan.spec, sources={**plan.spec.sources, "new": spec})
    return resolve(changed)


def test_the_mix_as_a_file(world, tmp_path):
    plan, *_ = world
    for name, begins in (("m.png", b"\x89PNG"), ("m.svg", b"<?xml"), ("deep/m.html", b"<!doctype html>")):
        assert write_mix(plan, tmp_path / name).read_bytes().startswith(begins)
    sizes, _ = known_sizes(plan)
    assert "epochs" not in (tmp_path / "m.svg").read_text() and "epochs)" not in (tmp_path / "deep/m.html").read_text()
    page = write_mix(plan, tmp_path / "m.html", sizes).read_text()
    told = f"old, {plan.phases[0].tokens / sizes['old']:.3g} epochs"
    assert told in page and told in write_mix(plan, tmp_path / "m.svg", sizes).read_text()
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
