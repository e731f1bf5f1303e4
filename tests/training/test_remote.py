"""The small files of a run in remote storage, here in the memory of fsspec."""

import uuid

import fsspec
import pytest

from cpt.errors import ConfigError, RunError
from cpt.training.remote import Remote


@pytest.fixture
def url():
    return f"memory://bucket/{uuid.uuid4().hex}/run"


def write(local, **files):
    for name, text in files.items():
        path = local / name.replace("__", "/").replace("_json", ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_what_is_pushed_is_pulled_elsewhere(url, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    write(here, plan_json="{}", tensorboard__events="x", checkpoints__rolling="big", **{".lock": "me"})
    assert Remote(url + "/").push(here) == ["plan.json", "tensorboard/events"]
    assert Remote(url).pull(there) == ["plan.json", "tensorboard/events"]
    assert (there / "tensorboard" / "events").read_text() == "x" and not (there / "checkpoints").exists()


def test_only_what_changed_is_pushed_again(url, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    write(here, plan_json="{}", rows="1\n")
    first = Remote(url)
    first.push(here)
    assert first.push(here) == []
    write(here, rows="1\n2\n")
    assert first.push(here) == ["rows"]
    second = Remote(url)
    second.pull(there)
    write(there, rows="1\n2\n3\n")
    assert second.push(there) == ["rows"]
    assert fsspec.open(f"{url}/rows", "r").open().read() == "1\n2\n3\n"


def test_a_run_that_is_not_there_yet_is_empty(url, tmp_path):
    assert Remote(url).pull(tmp_path / "new") == [] and (tmp_path / "new").is_dir()


def test_a_url_without_a_driver_is_a_mistake_in_one_line():
    with pytest.raises(ConfigError, match=r"--workdir=nowhere://a/b: .*nowhere.*install its driver"):
        Remote("nowhere://a/b")


def test_storage_that_fails_loses_nothing_and_is_tried_again(url, tmp_path, monkeypatch):
    write(tmp_path / "here", rows="1\n")
    remote = Remote(url)

    def away(*_, **__):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(type(remote.files), "put_file", away)
        with pytest.raises(RunError, match=r"rows cannot be written \(Input/output error\); it is safe in .*here"):
            remote.push(tmp_path / "here")
    assert remote.push(tmp_path / "here") == ["rows"]
