"""The small files of a run in remote storage, here in the memory of fsspec."""

import json
import sys
import uuid
from pathlib import Path

import fsspec
import jax.numpy as jnp
import pytest
from fsspec.registry import _registry as loaded

from cpt.errors import ConfigError, RunError
from cpt.training.checkpoint import Checkpoints
from cpt.training.preservation import MARK, checkpoints_of
from cpt.training.remote import Remote, opened, pusher, staging_folder
from cpt.training.spec import InitSpec
from cpt.training.state import State


@pytest.fixture
def url():
    return f"memory://bucket/{uuid.uuid4().hex}/run"


def write(local, **files):
    for name, text in files.items():
        path = local / name.replace("__", "/").replace("_json", ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def read(url, name):
    with fsspec.open(f"{url}/{name}", "r") as f:
        return f.read()


def test_what_is_pushed_is_pulled_elsewhere(url, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    write(here, plan_json="{}", tensorboard__events="x", checkpoints__rolling="big", **{".lock": "me"})
    write(here, **{"branches__step-4__plan_json": "{}", "branches__step-4__checkpoints__x": "big"})
    names = ["branches/step-4/plan.json", "plan.json", "tensorboard/events"]
    assert Remote(url + "/", here).push() == names
    assert Remote(url, there).pull() == names
    assert (there / "tensorboard" / "events").read_text() == "x" and not (there / "checkpoints").exists()


def test_only_what_changed_is_pushed_again(url, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    write(here, plan_json="{}", rows="1\n")
    first = Remote(url, here)
    first.push()
    assert first.push() == []
    write(here, rows="1\n2\n")
    assert first.push() == ["rows"]
    second = Remote(url, there)
    second.pull()
    write(there, rows="1\n2\n3\n")
    assert second.push() == ["rows"]
    assert read(url, "rows") == "1\n2\n3\n"


def test_a_run_that_is_not_there_yet_is_empty(url, tmp_path):
    assert Remote(url, tmp_path / "new").pull() == [] and (tmp_path / "new").is_dir()


def test_what_was_not_pushed_any_more_stays_while_nobody_else_wrote(url, tmp_path):
    write(tmp_path, rows="1\n")
    Remote(url, tmp_path).push()
    write(tmp_path, rows="1\n2\n", more="x")
    assert Remote(url, tmp_path).pull() == []
    assert (tmp_path / "rows").read_text() == "1\n2\n" and (tmp_path / "more").exists()


def test_a_history_that_went_on_elsewhere_replaces_this_one(url, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    write(here, rows="1\n")
    Remote(url, here).push()
    write(here, rows="1\n2\n", more="x", **{".lock": "me"})
    other = Remote(url, there)
    other.pull()
    write(there, rows="1\n3\n")
    other.push()
    assert Remote(url, here).pull() == ["rows"]
    assert (here / "rows").read_text() == "1\n3\n" and not (here / "more").exists() and (here / ".lock").exists()


def test_a_run_that_was_removed_there_is_new(url, tmp_path):
    write(tmp_path, rows="1\n")
    remote = Remote(url, tmp_path)
    remote.push()
    remote.files.rm(remote.root, recursive=True)
    assert Remote(url, tmp_path).pull() == [] and not (tmp_path / "rows").exists()


def test_a_line_that_is_being_written_is_pushed_when_it_is_whole(url, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st')
    remote = Remote(url, tmp_path)
    remote.push()
    assert read(url, "metrics.jsonl") == '{"step": 1}\n'
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    remote.push()
    assert read(url, "metrics.jsonl") == '{"step": 1}\n{"step": 2}\n'


def test_a_url_without_a_driver_is_a_mistake_in_one_line(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"--workdir=nowhere://a/b: .*nowhere.*install its driver"):
        Remote("nowhere://a/b", tmp_path)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for name in ("gs", "gcs"):  # where an earlier test has loaded it
        monkeypatch.delitem(loaded, name, raising=False)
    with pytest.raises(ConfigError, match=r"--workdir=gs://a/b: .*gcsfs.*pip install 'cpt\[gcs\]'"):
        Remote("gs://a/b", tmp_path)


def test_a_storage_that_orbax_does_not_write_to_is_refused(url):
    with (
        pytest.raises(ConfigError, match=r"cannot be written to memory://, only to directories and to gs://"),
        opened(url, print),
    ):
        pass


def away(*_, **__):
    raise OSError(5, "Input/output error")


def test_storage_that_fails_loses_nothing_and_is_tried_again(url, tmp_path, monkeypatch):
    write(tmp_path, rows="1\n")
    remote = Remote(url, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(type(remote.files), "put_file", away)
        with pytest.raises(RunError, match=r"rows cannot be written \(Input/output error\); it is safe in .*"):
            remote.push()
    assert remote.push() == ["rows"]


def test_a_place_without_rights_is_noticed_at_once(url, tmp_path, monkeypatch):
    remote = Remote(url, tmp_path)
    remote.check_writable()
    assert not remote.files.exists(f"{remote.root}/.writable")
    monkeypatch.setattr(type(remote.files), "pipe_file", away)
    with pytest.raises(RunError, match=r"cannot write there \(Input/output error\); give another --workdir"):
        remote.check_writable()


def test_checkpoints_of_a_run_and_its_branches(url, tmp_path, monkeypatch):
    assert checkpoints_of(tmp_path / "run") == tmp_path / "run" / "checkpoints"
    assert str(checkpoints_of("gs://bucket/run")) == "gs://bucket/run/checkpoints"
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / MARK).write_text(json.dumps({"url": "gs://bucket/run", "files": {}}))
    assert str(checkpoints_of(tmp_path / "copy")) == "gs://bucket/run/checkpoints"
    branch = tmp_path / "copy" / "branches" / "step-4"
    assert str(checkpoints_of(branch)) == "gs://bucket/run/branches/step-4/checkpoints"
    monkeypatch.chdir(tmp_path / "copy")
    assert str(checkpoints_of(Path("branches/step-4"))) == "gs://bucket/run/branches/step-4/checkpoints"
    (tmp_path / "copy" / MARK).write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        checkpoints_of(tmp_path / "copy")


def test_two_runs_of_one_name_have_different_copies(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = {staging_folder(u, p) for u in ("gs://a/run", "gs://b/run") for p in (0, 1)}
    assert len(names) == 4 and staging_folder("gs://a/run/") in names
    assert all(n.is_relative_to(tmp_path / "cpt" / "runs") and n.name.startswith("run-") for n in names)


def test_no_checkpoint_is_newer_than_the_rows_in_the_storage(url, tmp_path, monkeypatch):
    """Where the rows cannot be pushed the checkpoint is not written; the next one is, after them."""
    folder, warned = tmp_path / "copy", []
    write(folder, rows="1\n")
    remote = Remote(url, folder)
    remote.pull()
    push, state = pusher(folder / "branches" / "step-4"), State({"w": jnp.ones(3)}, {"m": jnp.ones(3)})
    saver = Checkpoints(tmp_path / "checkpoints", warn=warned.append, before=push)
    with monkeypatch.context() as patched:
        patched.setattr(type(remote.files), "put_file", away)
        saver.save("rolling", 1, state, {})
        assert saver.wait() is not None and not saver.finished()
    assert len(warned) == 1 and "Input/output error" in warned[0] and "training goes on" in warned[0]
    saver.save("rolling", 2, state, {})
    assert saver.wait() is None and [s.step for s in saver.finished()] == [2]
    assert read(url, "rows") == "1\n"
    saver.close()


def test_a_local_run_pushes_nothing(tmp_path):
    write(tmp_path, rows="1\n")
    assert pusher(tmp_path)() is None and [p.name for p in tmp_path.iterdir()] == ["rows"]


def test_a_parent_is_a_path_or_in_storage_that_checkpoints_are_written_to():
    assert InitSpec(from_run="gs://bucket/run").from_run == "gs://bucket/run"
    with pytest.raises(ConfigError, match=r"init.from_run: s3://bucket/run: no run is there; give a path, or gs://"):
        InitSpec(from_run="s3://bucket/run")
