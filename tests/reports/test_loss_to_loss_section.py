import json

import numpy as np
import pytest
from synthetic_run import write_run

from cpt.evaluators.rows import read_run
from cpt.reports.page import write_report
from cpt.reports.sections.loss_to_loss import POINTS, loss_to_loss


def shaped(path, old, steps=40, every=1):
    """A run whose old set's loss in the last phase is `old(loss of the new set, share of the phase done)`."""
    write_run(path, steps=steps)
    rows = [json.loads(line) for line in (path / "eval.jsonl").read_text().splitlines()]
    kept = [r for r in rows if r["step"] < steps]
    for step in range(steps, 2 * steps + 1, every):
        done = (step - steps) / steps
        new = 2.4 + 2.4 * np.exp(-done / 0.3)
        for name, loss in (("slimpajama", new), ("pile", float(old(new, done)))):
            kept.append({**rows[0], "step": step, "tokens": step * 2048, "set": name, "loss": loss})
    (path / "eval.jsonl").write_text("".join(json.dumps(r) + "\n" for r in kept))
    return read_run(path)


def test_the_path_of_the_last_phase_is_drawn(tmp_path):
    run = read_run(write_run(tmp_path / "r", steps=300))
    section = loss_to_loss(run)
    (block,) = section.blocks
    path = block.figure.data[0]
    old, new = (run.curves[n].since(300) for n in ("pile", "slimpajama"))
    assert path.name == "pile" and list(path.x) == pytest.approx(new.loss, abs=1e-5)
    assert list(path.y) == pytest.approx(old.loss, abs=1e-5)
    assert path.text[0] == "300" and path.marker.symbol[0] == "circle-open"
    assert f"{new.loss[-1]:.3f}, pile went from {old.loss[0]:.3f} to {old.loss[-1]:.3f}" in block.alt


def test_a_law_is_drawn_after_the_peak_and_described(tmp_path):
    def old(new, done):
        return 3.0 if done < 0.05 else 1.5 + 0.9 * (new - 2.0) ** 0.8

    run = shaped(tmp_path / "r", old)
    (block,) = loss_to_loss(run).blocks
    assert [t.name for t in block.figure.data] == ["pile", "pile, fitted"]
    law = block.figure.data[1]
    assert list(law.y) == pytest.approx(1.5 + 0.9 * (np.array(law.x) - 2.0) ** 0.8, abs=0.005)
    assert "exponent 0.80" in block.caption and "residual 0.0" in block.caption


def test_no_law_where_none_fits(tmp_path):
    rng = np.random.default_rng(0)
    scattered = shaped(tmp_path / "a", lambda new, done: 3 + 0.2 * rng.random() + (done == 0))
    rising = shaped(tmp_path / "b", lambda new, done: 5 - new / 2)
    short = shaped(tmp_path / "c", lambda new, done: new, every=10)
    flat = shaped(tmp_path / "d", lambda new, done: 3.0)
    for run in (scattered, rising, short, flat):
        (block,) = loss_to_loss(run).blocks
        assert [t.name for t in block.figure.data] == ["pile"] and "Dotted" not in block.caption


def test_what_is_not_pinned_down_is_no_forecast(tmp_path):
    rng = np.random.default_rng(0)
    run = shaped(tmp_path / "r", lambda new, done: 1.5 + 0.9 * (new - 2.0) ** 0.9 + rng.normal(0, 0.01))
    (block,) = loss_to_loss(run).blocks
    assert len(block.figure.data) == 2 and "so it is no forecast" in block.caption


@pytest.mark.parametrize("until", [0, 30, 40])
def test_nothing_to_show_before_the_last_phase_has_begun(tmp_path, until):
    assert loss_to_loss(read_run(write_run(tmp_path / "r", steps=40, until=until))) is None


def test_nothing_to_show_of_one_set_or_without_a_plan(tmp_path):
    path = write_run(tmp_path / "r", steps=40)
    lines = (path / "eval.jsonl").read_text().splitlines(keepends=True)
    (path / "eval.jsonl").write_text("".join(row for row in lines if '"pile"' not in row.split('"set"')[1][:10]))
    assert loss_to_loss(read_run(path)) is None
    (path / "plan.json").unlink()
    assert loss_to_loss(read_run(path)) is None


def test_a_long_path_stays_light(tmp_path):
    run = shaped(tmp_path / "r", lambda new, done: 5 - new / 2, steps=3000)
    (block,) = loss_to_loss(run).blocks
    assert len(block.figure.data[0].x) <= POINTS + 1
    assert len(block.figure.to_json()) < 40_000


def test_the_section_is_on_the_page(tmp_path):
    page = write_report(write_run(tmp_path / "r", old="<b>old</b>", steps=40)).read_text()
    assert "<h2 id=" in page and "Loss against loss" in page and "<b>old</b>" not in page.split("<main>")[1]
