"""The trials of a sweep in a storage: entered once, taken once, kept when the space changes."""

import re
from dataclasses import replace

import optuna
import pytest
from optuna.trial import TrialState

from cpt import sweeps as s
from cpt.errors import ConfigError, RunError
from cpt.sweeps.storage import open_storage, open_study
from cpt.sweeps.table import results

PEAK = "phases.second.lr.peak"


def names(queue):
    return [t.user_attrs["run"] for t in queue.trials()]


def test_two_workers_enter_each_point_once_and_never_take_the_same(open_at, url, grid):
    a, b = open_at(grid, url), open_at(grid, url)
    a.fill(False)
    b.fill(False)
    assert len(a.study.get_trials()) == 4 and names(a) == list(a.grid)
    taken = [queue.take(set()) for queue in (a, b, a, b)]
    assert [t.number for t in taken] == [0, 1, 2, 3] and a.take(set()) is None
    assert [t.candidate.directory.name for t in taken] == names(a)
    b.give_back(taken[1])
    assert a.take({1}) is None and a.take(set()).number == 1


def test_a_grid_that_grows_keeps_what_is_done_and_shows_its_values(open_at, url):
    def sweep(*peaks):
        return s.sweep("grown", s.values(PEAK, peaks), "bwt")

    queue = open_at(sweep(1e-3, 1e-2), url)
    queue.fill(False)
    queue.complete(queue.take(set()), 0.5)
    grown = open_at(sweep(1e-3, 3e-3, 2e-2), url)
    grown.fill(False)
    assert [(t.params[PEAK], t.value) for t in grown.trials()] == [(1e-3, 0.5), (3e-3, None), (2e-2, None)]
    # 1e-2 is out of the space: it stays in the storage and is not trained.
    assert [grown.take(set()).candidate.values[PEAK] for _ in range(2)] == [3e-3, 2e-2] and grown.take(set()) is None
    assert len(grown.study.get_trials()) == 4


def test_texts_may_be_added_too(open_at, url):
    """Optuna's choices are final; a study with others begins anew, and the directories know what is done."""

    def sweep(*kinds):
        return s.sweep("kinds", s.values("phases.second.lr.kind", kinds), "bwt")

    few, more = open_at(sweep("cosine"), url), open_at(sweep("cosine", "linear"), url)
    few.fill(False)
    more.fill(False)
    assert len(few.trials()) == 1 and len(more.trials()) == 2
    assert names(few)[0] in names(more) and few.study.study_name != more.study.study_name


def test_a_dead_worker_is_known_by_its_process_or_by_its_silence(open_at, url, grid, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("cpt.sweeps.queue.time.monotonic", lambda: clock[0])
    queue, other = open_at(grid, url, grace_s=10.0), open_at(grid, url, grace_s=10.0)
    queue.fill(False)
    other.owner = "another-host/1/abc"
    mine, theirs = queue.take(set()), other.take(set())
    assert queue.recover() == []
    clock[0] = 9.0
    assert queue.recover() == []
    other.sign(theirs)
    queue.sign(mine)
    clock[0] = 18.0
    assert queue.recover() == []  # it was heard of, if not by the clock's 10 seconds
    queue.sign(mine)
    clock[0] = 29.0
    assert queue.recover() == [theirs.number]
    assert [t.state for t in queue.trials()][mine.number] == TrialState.RUNNING  # this process lives


def test_a_search_draws_the_same_whoever_takes_it(open_at, url, tmp_path):
    space = s.product(s.log_uniform(PEAK, 2e-3, 1e-1), s.choice("phases.second.lr.kind", ["cosine", "linear"]))
    sweep = s.sweep("drawn", space, "bwt", search=s.random(trials=4, seed=3))
    alone = open_at(sweep, f"journal:{tmp_path}/alone.log")
    alone.fill(False)
    first = [dict(alone.take(set()).candidate.values) for _ in range(4)]
    a, b = open_at(sweep, url), open_at(sweep, url)
    a.fill(False)
    b.fill(False)
    assert [dict(queue.take(set()).candidate.values) for queue in (a, b, b, a)] == first
    assert len({tuple(v.values()) for v in first}) == 4 and all(2e-3 <= v[PEAK] <= 1e-1 for v in first)
    assert a.take(set()) is None and b.trials()[2].params == first[2]
    given_back = next(t for t in a.trials() if t.number == 2)
    a.storage.set_trial_state_values(a._id(given_back), TrialState.WAITING)
    assert dict(a.take(set()).candidate.values) == first[2]  # drawn once
    more = open_at(s.sweep("drawn", space, "bwt", search=s.random(trials=6, seed=3)), url)
    more.fill(False)
    assert len(more.trials()) == 6


def test_values_that_do_not_go_together_fail_their_trial_alone(open_at, tmp_path):
    """Each end of each range is possible with the others in the middle; not every pair is."""
    space = s.product(s.uniform("phases.second.lr.peak", 0.03, 0.09), s.uniform("phases.second.lr.floor", 0.0, 0.055))
    queue = open_at(s.sweep("pairs", space, "bwt", search=s.random(trials=24)), f"journal:{tmp_path}/books.log")
    queue.fill(False)
    taken = []
    while found := queue.take(set()):
        taken.append(found)
    failed = [t for t in queue.trials() if t.state == TrialState.FAIL]
    assert 0 < len(failed) < 12 and len(taken) + len(failed) == 24
    for trial in failed:
        assert trial.params["phases.second.lr.floor"] > trial.params["phases.second.lr.peak"]
        assert "phases.second.lr.floor: must lie between 0 and peak" in trial.user_attrs["error"]
    table, lines = results(queue)
    assert table.row_count == 24 and len(lines) == len(failed)


def test_tpe_goes_where_it_was_good(open_at, tmp_path):
    sweep = s.sweep("tpe", s.uniform(PEAK, 0.002, 1.0), "bwt", search=s.tpe(trials=30, startup=8))
    queue = open_at(sweep, f"journal:{tmp_path}/tpe.log")
    queue.fill(False)
    found = []
    while taken := queue.take(set()):
        found.append(taken.candidate.values[PEAK])
        queue.complete(taken, (found[-1] - 0.7) ** 2)
    distance = [abs(x - 0.7) for x in found]
    assert sum(distance[-10:]) < 0.7 * sum(distance[:10]) and min(distance) < 0.03


def test_failed_trials_are_entered_again_when_asked(open_at, url, grid):
    search = s.sweep("other", s.uniform(PEAK, 0.001, 0.01), "bwt", search=s.random(trials=2))
    for sweep in (grid, search):
        queue = open_at(sweep, url)
        queue.fill(False)
        total = len(queue.trials())
        queue.fail(queue.take(set()), "data error: no store")
        queue.fill(False)
        assert len(queue.trials()) == total
        queue.fill(True)
        assert len(queue.trials()) == total and all(t.state == TrialState.WAITING for t in queue.trials())


def test_asha_stops_what_does_not_keep_up(open_at, url):
    sweep = s.sweep("pruned", s.seeds(0, 1, 2, 3), "sets.new.final", prune=s.asha(first=2, factor=2))
    queue = open_at(sweep, url)
    queue.fill(False)
    taken = [queue.take(set()) for _ in range(4)]
    assert not queue.report(taken[0], 1, 9.0)  # too early
    assert [queue.report(t, 2, loss) for t, loss in zip(taken, (1.0, 2.0, 0.5, 3.0), strict=True)] == [
        False, True, False, True
    ]  # fmt: skip
    queue.prune(taken[1])
    pruned = queue.trials()[1]
    assert pruned.state == TrialState.PRUNED and pruned.value == 2.0 and pruned.intermediate_values == {2: 2.0}
    assert queue.take(set()) is None
    queue.fill(True)
    assert queue.take(set()) is None  # never by itself
    assert queue.reported(taken[0]) == 2


def test_one_name_is_one_sweep(open_at, url, grid, recipe):
    open_at(grid, url).fill(False)
    other = s.sweep("grid", grid.space, "sets.new.final")
    with pytest.raises(ConfigError, match=r"holds a sweep 'grid' with another metric \(bwt, here sets.new.final\)"):
        open_at(other, url)
    other = replace(recipe, overrides=("--config.batch.sequences=4",))
    with pytest.raises(ConfigError, match="with another config"):
        open_study(open_storage(url), grid, other.base, url)


def test_optuna_can_read_it(open_at, tmp_path, grid):
    """As optuna-dashboard does: parameters have the names of their fields."""
    queue = open_at(grid, f"sqlite:///{tmp_path}/books.db")
    queue.fill(False)
    queue.complete(queue.take(set()), 0.25)
    study = optuna.load_study(study_name="grid", storage=f"sqlite:///{tmp_path}/books.db")
    assert study.best_value == 0.25 and study.best_params == {PEAK: 0.001, "seed": 0}
    assert set(study.trials_dataframe()["state"]) == {"COMPLETE", "WAITING"}


URLS = {
    "postgres": ("postgresql://me:secret@127.0.0.1:1/sweeps", "--storage=postgresql://me:***@127.0.0.1:1/sweeps: "),
    "mysql": ("mysql+nothing://me@127.0.0.1/sweeps", "no driver|cannot be used"),
    "no url": ("books.db", "not understood; sqlite:///FILE"),
    "no file": ("journal:", "names no file"),
    "not a database": ("sqlite:///{0}/notes.txt", "cannot be used"),
    "no place": ("sqlite:///{0}/notes.txt/books.db", "cannot be used"),
    "a journal of something else": ("journal:{0}/notes.txt", "cannot be used"),
}


@pytest.mark.parametrize("name", URLS)
def test_a_storage_that_cannot_be_used_is_told_in_a_line(name, tmp_path, grid, recipe):
    url, says = URLS[name]
    (tmp_path / "notes.txt").write_text("neither a database nor a journal\n" * 200)
    with pytest.raises((ConfigError, RunError)) as e:
        open_study(open_storage(url.format(tmp_path)), grid, recipe.base, url)
    assert "\n" not in str(e.value) and "secret" not in str(e.value)
    assert re.search(says.replace("*", r"\*") if "***" in says else says, str(e.value))


def test_the_missing_driver_of_postgresql_is_named(monkeypatch):
    monkeypatch.setattr("cpt.sweeps.storage.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"no driver for PostgreSQL; pip install 'cpt\[postgres\]'"):
        open_storage("postgresql://me@db/sweeps")
