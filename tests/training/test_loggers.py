"""Loggers beside the run's own files: what they are told, and that none of them can stop or slow a run."""

import importlib.util
import json
import sys
import threading
import time
import types

import pytest

from cpt.errors import ConfigError
from cpt.training import loggers as room
from cpt.training.loggers import LoggerFacts, check_loggers, open_loggers
from cpt.training.loggers._base import Background
from cpt.training.logs import Board

CONFIG = {"seed": 3, "phases": {"new": {"replay": {"share": 0.25}, "mix": {}}}, "order": ["old", "new"]}


@pytest.fixture
def facts(tmp_path):
    """`facts(step)`: of one run directory; `facts.said` is what was told to the person watching."""

    def make(step=0, **more):
        return LoggerFacts(tmp_path, "demo", "3f9c2a71aa", CONFIG, step, make.said.append, **more)

    make.said = []
    return make


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


class FakeWandb(types.ModuleType):
    """Records what is called; `fails` raises from that call on."""

    def __init__(self, api_key="known"):
        super().__init__("wandb")
        self.calls, self.threads, self.fails = [], set(), None
        self.api = types.SimpleNamespace(api_key=api_key)

    def _called(self, call, *args):
        self.threads.add(threading.current_thread())
        if self.fails == call:
            raise self.error
        self.calls.append((call, *args))
        return self

    error = RuntimeError("quota\n  exceeded")

    def Settings(self, **more):
        return more

    def init(self, **more):
        return self._called("init", more)

    def define_metric(self, name, step_metric):
        self._called("define_metric", name, step_metric)

    def log(self, values):
        self._called("log", values)

    def finish(self):
        self._called("finish")

    def of(self, name):
        return [c[1] for c in self.calls if c[0] == name]


@pytest.fixture
def wandb(monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


class FakeMlflow(types.ModuleType):
    """A tracking server in memory; the clients of two starts share it."""

    def __init__(self):
        super().__init__("mlflow")
        self.experiments, self.runs, self.uris = {}, {}, []
        self.entities = types.ModuleType("mlflow.entities")
        self.entities.Metric = lambda key, value, timestamp, step: (key, value, step)
        self.entities.Param = lambda key, value: (key, value)

    def MlflowClient(self, tracking_uri):
        self.uris.append(tracking_uri)
        return self

    def get_experiment_by_name(self, name):
        found = self.experiments.get(name)
        return found and types.SimpleNamespace(experiment_id=found)

    def create_experiment(self, name):
        self.experiments[name] = f"e{len(self.experiments)}"
        return self.experiments[name]

    def create_run(self, experiment, run_name):
        key = f"r{len(self.runs)}"
        self.runs[key] = {
            "experiment": experiment,
            "name": run_name,
            "status": ["RUNNING"],
            "metrics": [],
            "params": [],
        }
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=key))

    def update_run(self, run, status):
        self.runs[run]["status"].append(status)

    def set_terminated(self, run):
        self.runs[run]["status"].append("FINISHED")

    def log_batch(self, run, metrics=(), params=()):
        assert len(params) <= 100
        self.runs[run]["metrics"] += metrics
        self.runs[run]["params"] += params


@pytest.fixture
def mlflow(monkeypatch):
    fake = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.setitem(sys.modules, "mlflow.entities", fake.entities)
    return fake


def trained(logger, steps):
    for step in steps:
        logger.scalar("train/loss", 4 - 0.1 * step, step)
        logger.scalar("train/lr", 1e-3, step)


def test_values_of_a_step_go_to_wandb_together_on_an_axis_of_their_own(wandb, facts):
    logger = open_loggers(["wandb"], facts())
    trained(logger, (1, 2))
    logger.close()
    (init,) = wandb.of("init")
    assert (init["project"], init["name"], init["resume"], init["mode"]) == ("cpt", "demo-3f9c2a71", "allow", None)
    assert init["config"] == CONFIG and init["dir"] == str(facts().workdir)
    assert ("define_metric", "*", "step") in wandb.calls
    assert wandb.of("log") == [
        {"train/loss": pytest.approx(3.9), "train/lr": 1e-3, "step": 1},
        {"train/loss": pytest.approx(3.8), "train/lr": 1e-3, "step": 2},
    ]
    assert wandb.calls[-1] == ("finish",) and facts.said == []
    assert threading.current_thread() not in wandb.threads


def test_a_resumed_run_goes_on_in_the_same_wandb_run_and_another_run_does_not(wandb, facts, tmp_path):
    for step in (0, 5):
        open_loggers(["wandb"], facts(step)).close()
    other = tmp_path / "other"
    other.mkdir()
    open_loggers(["wandb"], LoggerFacts(other, "demo", "3f9c2a71aa", CONFIG, 0)).close()
    first, second, third = (init["id"] for init in wandb.of("init"))
    assert first == second != third and first.isalnum()


def test_without_an_account_wandb_writes_offline_and_says_how_to_send_it(wandb, facts, monkeypatch):
    wandb.api.api_key = None
    open_loggers(["wandb"], facts()).close()
    assert wandb.of("init")[0]["mode"] == "offline"
    assert len(facts.said) == 1 and "`wandb sync " in facts.said[0]
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    open_loggers(["wandb"], facts()).close()
    assert wandb.of("init")[1]["mode"] == "disabled" and wandb.of("init")[1]["project"] == "mine"
    assert len(facts.said) == 1


def test_mlflow_gets_the_config_once_and_a_resumed_run_goes_on(mlflow, facts, tmp_path):
    for start in (0, 2):
        logger = open_loggers(["mlflow"], facts(start))
        trained(logger, (start + 1, start + 2))
        logger.scalar("eval/replay(old)/loss", 2.5, start + 2)
        logger.close()
    assert mlflow.uris[0] == (tmp_path / "mlruns").as_uri()
    ((run_id, run),) = mlflow.runs.items()
    assert json.loads((tmp_path / "loggers.json").read_text()) == {"mlflow": run_id}
    assert run["status"] == ["RUNNING", "FINISHED", "RUNNING", "FINISHED"] and run["name"] == "demo-3f9c2a71"
    assert run["params"] == [("seed", "3"), ("phases.new.replay.share", "0.25"), ("order", "['old', 'new']")]
    assert [m for m in run["metrics"] if m[0] == "train/lr"] == [("train/lr", 1e-3, s) for s in (1, 2, 3, 4)]
    assert ("eval/replay_old_/loss", 2.5, 4) in run["metrics"]
    assert facts.said == []


def test_mlflow_uses_the_server_and_experiment_of_the_environment(mlflow, facts, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "sweeps")
    open_loggers(["mlflow"], facts()).close()
    assert mlflow.uris == ["http://tracking.example"] and list(mlflow.experiments) == ["sweeps"]


def test_several_loggers_are_one_and_keep_their_ids_in_one_file(wandb, mlflow, facts, tmp_path):
    logger = open_loggers(["tensorboard", "wandb", "mlflow"], facts())
    trained(logger, (1,))
    logger.close()
    assert set(json.loads((tmp_path / "loggers.json").read_text())) == {"wandb", "mlflow"}
    assert wandb.of("log") and mlflow.runs["r0"]["metrics"]
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes()


def test_tensorboard_is_the_board_of_before(facts, tmp_path):
    from cpt.training.loggers.tensorboard import tensorboard

    board = tensorboard(facts(7))
    assert isinstance(board, Board)
    board.close()
    assert [p.name.endswith(".7") for p in (tmp_path / "tensorboard").iterdir()] == [True]


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_a_service_that_fails_says_so_once_and_the_run_goes_on(wandb, facts, fails):
    wandb.fails = fails
    logger = open_loggers(["wandb", "tensorboard"], facts())
    for step in range(50):
        trained(logger, (step,))
        time.sleep(0.001)
    logger.close()
    assert facts.said == [
        "wandb: RuntimeError: quota exceeded; nothing more goes there, the run goes on and its files have it all"
    ]


def test_a_service_that_wants_to_end_the_run_does_not(wandb, facts):
    wandb.fails, wandb.error = "init", SystemExit(1)
    open_loggers(["wandb"], facts()).close()
    assert len(facts.said) == 1 and "wanted to end the run" in facts.said[0]


def test_one_that_cannot_even_speak_does_no_harm(wandb, tmp_path):
    def broken(line):
        raise OSError("no terminal")

    wandb.fails = "init"
    open_loggers(["wandb"], LoggerFacts(tmp_path, "demo", "3f9c2a71aa", CONFIG, 0, broken)).close()


class Stuck:
    """A service that never answers until it is let go."""

    def __init__(self):
        self.go, self.entered, self.sent = threading.Event(), threading.Event(), []

    def send(self, step, values):
        self.entered.set()
        self.go.wait(20)
        self.sent.append((step, dict(values)))

    def finish(self):
        pass


def test_a_service_that_hangs_slows_neither_the_run_nor_its_end(monkeypatch):
    monkeypatch.setattr("cpt.training.loggers._base.WAITING", 100)
    service, said = Stuck(), []
    logger = Background("slow", lambda: service, said.append)
    trained(logger, (0, 1))
    assert service.entered.wait(10)
    before = time.monotonic()
    trained(logger, range(200))
    assert time.monotonic() - before < 0.5
    logger.close(wait_s=0.2)
    assert time.monotonic() - before < 2
    service.go.set()
    assert len(said) == 1 and "slow: does not keep up" in said[0]


def test_a_hanging_end_is_said(monkeypatch):
    service, said = Stuck(), []
    logger = Background("slow", lambda: service, said.append)
    logger.scalar("a", 1.0, 1)
    logger.close(wait_s=0.2)
    assert said and "did not take everything within 0.2 s" in said[0]
    service.go.set()


def test_values_are_sent_while_the_run_is_idle_and_a_repeated_one_is_not_lost():
    service, said = Stuck(), []
    service.go.set()
    logger = Background("quick", lambda: service, said.append, idle_s=0.02)
    logger.scalar("a", 1.0, 1)
    end = time.monotonic() + 10
    while not service.sent and time.monotonic() < end:
        time.sleep(0.01)
    assert service.sent == [(1, {"a": 1.0})]
    for value in (2.0, 3.0):
        logger.scalar("a", value, 2)
    logger.close()
    assert service.sent[1:] == [(2, {"a": 2.0}), (2, {"a": 3.0})] and said == []


@pytest.mark.parametrize(("kind", "command"), [("wandb", "pip install wandb"), ("mlflow", "pip install mlflow-skinny")])
def test_a_missing_package_is_told_before_anything_begins(monkeypatch, kind, command):
    monkeypatch.setitem(sys.modules, kind, None)  # as if it were not installed
    with pytest.raises(ConfigError, match=f"loggers: '{kind}' needs the package {kind}; install it: {command}"):
        check_loggers(["tensorboard", kind])


def test_wrong_names_are_told():
    with pytest.raises(ConfigError, match=r"loggers: no 'wanbd' in .*; did you mean 'wandb'\?  \(there are: mlflow, "):
        check_loggers(["wanbd"])
    with pytest.raises(ConfigError, match="'tensorboard' is named twice"):
        check_loggers(["tensorboard", "tensorboard"])
    check_loggers([])


def test_a_logger_of_your_own_is_named_by_its_path(monkeypatch, facts):
    mine, told = types.ModuleType("mine"), []

    class Own:
        def __init__(self, facts):
            told.append(facts.step)

        def scalar(self, name, value, step):
            told.append((name, value, step))

        def close(self):
            told.append("closed")

    mine.Own = Own
    monkeypatch.setitem(sys.modules, "mine", mine)
    logger = open_loggers(["mine:Own"], facts(4))
    logger.scalar("a", 1.0, 5)
    logger.close()
    assert told == [4, ("a", 1.0, 5), "closed"]


def test_damaged_ids_are_made_anew(mlflow, facts, tmp_path):
    for text in ("not json", "[1]", '{"mlflow": 3}'):
        (tmp_path / "loggers.json").write_text(text)
        open_loggers(["mlflow"], facts()).close()
    assert len(mlflow.runs) == 3 and facts.said == []


def test_the_room_needs_no_package_to_be_imported():
    from cpt.registry import available

    assert list(available(room.ROOM)) == ["mlflow", "tensorboard", "wandb"]


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")
def test_the_real_mlflow_reads_what_was_written(facts, tmp_path):
    from mlflow import MlflowClient

    for start in (0, 2):
        logger = open_loggers(["mlflow"], facts(start))
        trained(logger, (start + 1, start + 2))
        logger.scalar("eval/replay(old)/loss", float("nan"), start + 2)
        logger.close()
    assert facts.said == []
    client = MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("cpt").experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["phases.new.replay.share"] == "0.25"
    assert [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")] == [1, 2, 3, 4]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_the_real_wandb_writes_offline(facts, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for start in (0, 2):
        logger = open_loggers(["wandb"], facts(start))
        trained(logger, (start + 1, start + 2))
        logger.close()
        time.sleep(1.1)  # W&B names its folders by the second
    assert facts.said == []
    identity = json.loads((tmp_path / "loggers.json").read_text())["wandb"]
    files = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2 and all(identity in p.name and b"train/loss" in p.read_bytes() for p in files)
