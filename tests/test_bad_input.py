"""Every mistake of a user is one clear line and exit code 2, before anything is trained; the real command each time."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import toy

ROOT = Path(__file__).resolve().parents[1]
TOY = "--config={toy}"
SECOND = "--config.phases.second"


@dataclass(frozen=True)
class Case:
    """Flags of the command (with {places} of the `world` fixture), and what its one line begins with and contains."""

    flags: tuple[str, ...]
    room: str
    says: tuple[str, ...]
    env: dict = field(default_factory=dict)


def toy_case(*flags: str, says: tuple[str, ...], room: str = "config error", **env: str) -> Case:
    return Case((TOY, *flags), room, says, env)


def wrong_lr(*flags: str, says: tuple[str, ...]) -> Case:
    return toy_case(*(f"{SECOND}.{f}" for f in flags), says=says)


FIELDS = {
    "unknown field": toy_case(
        f"{SECOND}.replay.shares=0.1",
        says=("phases.second.replay.shares: no such field", "did you mean 'share'?", "of, share, range"),
    ),
    "unknown phase": toy_case(
        "--config.phases.secnd.replay.share=0.1",
        says=("phases.secnd.replay.share: no such field 'secnd'", "did you mean 'second'?"),
    ),
    "unknown section": toy_case(
        "--config.modle.layers=2", says=("modle.layers: no such field", "did you mean 'model'?")
    ),
    "field of a number": toy_case("--config.seed.value=2", says=("seed.value: no such field 'value'",)),
    "field of a text": toy_case("--config.name.value=2", says=("--config.name.value",)),
    "not a path": toy_case(
        "--config.phases.my-phase.steps=1", says=("phases.my-phase.steps: not the path of a field",)
    ),
    "unknown source in a mix": toy_case(
        f"{SECOND}.mix.newer=0.1", says=("phases.second.mix.newer: no such source; did you mean 'new'?", "new, old")
    ),
    "text for a number": toy_case(
        f"{SECOND}.replay.share=abc", says=("phases.second.replay.share: cannot read 'abc'", "float")
    ),
    "half a row": toy_case("--config.batch.sequences=8.5", says=("batch.sequences: cannot read '8.5'", "whole number")),
    "number for a section": toy_case(
        "--config.batch=3", says=("batch: '3' is one value, named entries are needed there",)
    ),
    "nothing for a number": toy_case("--config.seed=None", says=("seed: expected int, got NoneType",)),
    "unknown policy": toy_case(
        f"{SECOND}.optimizer.policy=rest", says=("phases.second.optimizer.policy: 'rest'", "did you mean 'reset'?")
    ),
    "unknown phase in order": toy_case(
        "--config.order=('first','secnd')", says=("order: no phase 'secnd'", "'second'")
    ),
    "set of an unknown source": toy_case(
        "--config.evaluation.sets.old.source=odl", says=("evaluation.sets.old.source: no source 'odl'", "'old'")
    ),
    "zero rows per pass": toy_case(
        "--config.evaluation.rows_per_pass=0", says=("evaluation.rows_per_pass: 0 is not at least 1",)
    ),
    "row longer than the context": toy_case("--config.batch.length=64", says=("batch.length: 64", "model.context=32")),
}
PHASES = {
    "shares above 1": toy_case(f"{SECOND}.mix.old=0.5", says=("phases.second.mix: shares sum to 1.5", "not 1")),
    "share not a number": toy_case(
        f"{SECOND}.mix.new=nan", says=("phases.second.mix.new: expected float, got float nan",)
    ),
    "no tokens": toy_case(f"{SECOND}.tokens=0", says=("phases.second: no tokens", "one batch of 256 tokens")),
    "less than a batch": toy_case(f"{SECOND}.tokens=255", says=("phases.second: no tokens", "one batch of 256 tokens")),
    "tokens and steps": toy_case(
        f"{SECOND}.tokens=1000", f"{SECOND}.steps=10", says=("phases.second: give exactly one of tokens and steps",)
    ),
    "later phase replayed": toy_case(
        f"{SECOND}.replay.of=second", says=("phases.second.replay.of: 'second' is not an earlier phase", "first")
    ),
    "unknown phase replayed": toy_case(
        f"{SECOND}.replay.of=fist", says=("phases.second.replay.of: 'fist' is not an earlier phase", "mean 'first'?")
    ),
    "replay of nothing": toy_case(
        f"{SECOND}.replay.of=None", says=("phases.second.replay.of: name the earlier phase",)
    ),
    "replay share 1.5": toy_case(
        f"{SECOND}.replay.share=1.5", says=("phases.second.replay.share: 1.5 is not in [0, 1)",)
    ),
    "weight of nothing": toy_case(
        f"{SECOND}.weights.nwe=1", says=("phases.second.weights.nwe: nothing of that name", "did you mean 'new'?")
    ),
    "unknown mixer": toy_case(
        f"{SECOND}.mixer.kind=liner", says=("phases.second.mixer.kind: no 'liner'", "did you mean 'linear'?")
    ),
    "fraction of an open end": wrong_lr(
        "open_ended=True",
        "lr.kind=wsd",
        says=("phases.second.lr.", "fraction: the phase is open-ended", "steps or tokens"),
    ),
    "cosine of an open end": wrong_lr("open_ended=True", says=("phases.second.lr.kind: cosine", "open-ended")),
    "no peak": toy_case(
        "--config.phases.first.lr.peak=None", says=("phases.first.lr.peak: kind 'cosine' needs", "e.g. 3e-4")
    ),
    "unknown schedule": wrong_lr(
        "lr.kind=cosin", says=("phases.second.lr.kind: no 'cosin'", "did you mean 'cosine'?", "package.module:name")
    ),
    "schedule that cannot be imported": wrong_lr(
        "lr.kind=nowhere:f", says=("phases.second.lr.kind: cannot import 'nowhere:f'",)
    ),
    "warm-up too long": wrong_lr("lr.warmup.steps=30", says=("phases.second.lr: warmup 30 steps are 10 too many",)),
}
COMMAND = {
    "URL as workdir": toy_case(
        "--workdir=s3://bucket/run", says=("--workdir=s3://bucket/run", "cannot be written to s3://")
    ),
    "no config": Case((), "config error", ("--config: required", "e.g. --config=configs/")),
    "missing config file": Case(("--config=nope.py",), "config error", ("--config=nope.py: no such file", "looked in")),
    "config without a value": Case(("--config=",), "config error", ("--config=: no such file",)),
    "syntax error": Case(("--config={tmp}/syntax.py",), "config error", ("syntax.py:2: invalid syntax",)),
    "import error": Case(
        ("--config={tmp}/import.py",), "config error", ("import.py:1: ModuleNotFoundError", "nothing_of_that_name")
    ),
    "config that fails": Case(("--config={tmp}/fails.py",), "config error", ("fails.py:2: ZeroDivisionError",)),
    "config that reads a missing file": Case(
        ("--config={tmp}/reads.py",), "config error", ("reads.py:2: FileNotFoundError", "/nope")
    ),
    "no get_config": Case(("--config={tmp}/empty.py",), "config error", ("empty.py: has no function get_config()",)),
    "config of a number": Case(
        ("--config={tmp}/number.py",), "config error", ("number.py: get_config() returned int",)
    ),
    "recipe with an unknown field": Case(
        ("--config={tmp}/recipe.py",), "config error", ("LRSpec.shap: no such field; did you mean 'shape'?",)
    ),
    "recipe without a model": Case(("--config={tmp}/bare.py",), "config error", ("model.layers: required",)),
    "unknown size": Case(
        ("--config={root}/configs/pile_to_slimpajama.py:99b",),
        "config error",
        (":99b: no such size", "tiny, dense, probes, 410m"),
    ),
    "unknown flag": toy_case("--dry_rn", says=("'dry_rn'", "dry_run")),
    "not a flag": toy_case("resume", says=("resume: not understood", "--name=value")),
}
DATA = {
    "missing store": Case(
        ("--config={root}/configs/pile_to_slimpajama.py:410m",),
        "data error",
        ("sources.pile.store: stores/pile does not exist", "python -m cpt.prepare", "--out=stores/pile"),
    ),
    "missing corpus": toy_case(
        "--config.sources.old.path={tmp}/nope.jsonl", room="data error", says=("nope.jsonl: no such file",)
    ),
    "empty corpus": toy_case(
        "--config.sources.old.path={tmp}/empty.jsonl", room="data error", says=("empty.jsonl: no documents",)
    ),
    "invalid JSON in line 1,203": toy_case(
        "--config.sources.old.path={tmp}/torn.jsonl",
        "--config.sources.old.max_bad=0.0",
        room="data error",
        says=("torn.jsonl:1203: invalid JSON",),
    ),
    "no such text field": toy_case(
        "--config.sources.old.text_field=body",
        room="data error",
        says=("old.jsonl:1: no field 'body'", "it has text", "text_field"),
    ),
    "unknown corpus": toy_case(
        "--config.sources.old.corpus=jsnl", says=("sources.old.corpus: no 'jsnl'", "did you mean 'jsonl'?")
    ),
    "neither corpus nor store": toy_case(
        "--config.sources.old.corpus=None", says=("sources.old: give exactly one of corpus and store", "neither")
    ),
    "ids beyond the vocabulary": toy_case(
        "--config.model.vocab_size=100",
        room="data error",
        says=("its 257 ids exceed model.vocab_size=100", "raise model.vocab_size"),
    ),
    "a source runs out": toy_case(
        f"{SECOND}.steps=5000",
        room="data error",
        says=("sources.new: runs out", "1,152,000 tokens", "epochs allows 1", "allow epochs="),
    ),
    "no validation split": toy_case(
        "--config.sources.old.validation=0", room="data error", says=("evaluation.sets.old:", "validation share")
    ),
    "replay runs out": toy_case(
        f"{SECOND}.replay.share=0.9",
        f"{SECOND}.replay.max_repeats=0.5",
        says=("phases.second.replay.max_repeats: the plan replays its range of 'first' 0.9 times; 0.5 allowed",),
    ),
    "reservoir of no size": toy_case(
        f"{SECOND}.replay.range=reservoir", says=("phases.second.replay.reservoir: give its size in tokens",)
    ),
}
MACHINE = {
    "workdir under a file": toy_case(
        "--workdir={tmp}/fails.py/run", room="run error", says=("fails.py/run: cannot write there", "another --workdir")
    ),
    "read-only workdir": toy_case(
        "--workdir={tmp}/read_only/run", room="run error", says=("read_only/run: cannot write there", "--workdir")
    ),
    "damaged plan": toy_case("--workdir={tmp}/damaged", room="run error", says=("plan.json: not a plan", "--workdir")),
    "unknown optimizer": toy_case("--config.optimizer.kind=policy", says=("optimizer.kind: no 'policy'", "adamw")),
    "run to start from is missing": toy_case(
        "--config.init.from_run={tmp}/nope", room="run error", says=("init.from_run:", "nope has no checkpoint")
    ),
    "eight devices, six rows": toy_case(
        "--config.batch.sequences=6",
        says=("mesh: 6 rows per micro-batch cannot be split over", "8 divides it", "batch.sequences"),
        XLA_FLAGS=f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
    ),
    "mesh of too many": toy_case("--config.mesh.data=3", says=("mesh: data 3", "not the number of devices, 1")),
}
CASES = FIELDS | PHASES | COMMAND | DATA | MACHINE
FILES = {
    "syntax.py": "from cpt import config\ndef get_config(:\n",
    "import.py": "import nothing_of_that_name\n",
    "fails.py": "def get_config():\n    return 1 / 0\n",
    "reads.py": "def get_config():\n    return open('/nope').read()\n",
    "empty.py": "",
    "number.py": "def get_config():\n    return 3\n",
    "recipe.py": "from cpt import config as c\ndef get_config():\n    return c.lr(shap='exp')\n",
    "bare.py": "from cpt import config as c\ndef get_config():\n    return c.run(name='bare')\n",
    "empty.jsonl": "\n",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> dict[str, str]:
    """Names of places: a folder with everything that is wrong, and the toy recipe whose data is right."""
    tmp = tmp_path_factory.mktemp("bad")
    for name, text in FILES.items():
        (tmp / name).write_text(text)
    toy.write_corpora(tmp / "data")
    good = (tmp / "data" / "old.jsonl").read_text().splitlines()
    lines = (good * (1300 // len(good) + 1))[:1300]
    lines[1202] = lines[1202][:-2]
    (tmp / "torn.jsonl").write_text("\n".join(lines))
    (tmp / "read_only").mkdir()
    (tmp / "read_only").chmod(0o500)
    (tmp / "damaged").mkdir()
    (tmp / "damaged" / "plan.json").write_text("[]")
    return {"tmp": str(tmp), "root": str(ROOT), "toy": f"{toy.__file__}:{tmp / 'data'}"}


def command(flags: list[str], cwd: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "cpt.main", *flags],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


def assert_one_line(done: subprocess.CompletedProcess, room: str, says: tuple[str, ...]) -> None:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(f"{room}: ")
    for fragment in says:
        assert fragment in lines[0]


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_line(name, world, tmp_path):
    case = CASES[name]
    if name == "read-only workdir" and os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    flags = [f.format(**world) for f in case.flags]
    if not any(f.startswith("--workdir") for f in flags):
        flags.append(f"--workdir={tmp_path / 'run'}")
    done = command(flags, str(tmp_path), **case.env)
    assert_one_line(done, case.room, case.says)
    # It was found before anything was trained or compiled: there is no state that could have been saved.
    assert not any(p.is_file() for p in tmp_path.rglob("checkpoints/**/*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--config.seed=1", "seed: it was 0, the new plan says 1"),
        ("--config.model.width=64", "model.width: it was 32, the new plan says 64"),
        ("--config.phases.first.steps=3", "phases.first.tokens: 512 were trained, the new plan says 768"),
    ],
)
def test_a_finished_run_keeps_its_past(flag, says, finished, world):
    before = written(finished)
    done = command([*short_run(world, finished), flag], world["tmp"])
    assert_one_line(done, "config error", (f"{finished} belongs to another plan: {says}", "give another --workdir"))
    assert before == written(finished)


def written(run: Path) -> dict[Path, int]:
    """When each file of a run was last written; its lock is taken to look at it."""
    return {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file() and p.name != ".lock"}


def short_run(world: dict[str, str], workdir: Path) -> list[str]:
    flags = [TOY.format(**world), f"--workdir={workdir}"]
    return [*flags, "--config.phases.first.steps=2", "--config.phases.second.steps=2"]


@pytest.fixture(scope="module")
def finished(world) -> Path:
    workdir = Path(world["tmp"]) / "finished"
    done = command(short_run(world, workdir), world["tmp"])
    assert done.returncode == 0, done.stderr
    return workdir


def test_a_mistake_that_stopped_the_start_can_be_mended_in_place(world, tmp_path):
    """The first try named a corpus that is not there; the second, in the same run directory, is not held to it."""
    flags = [TOY.format(**world), f"--workdir={tmp_path / 'run'}"]
    for path in ("nope", "still_nope"):
        done = command([*flags, f"--config.sources.old.path={path}.jsonl"], str(tmp_path))
        assert_one_line(done, "data error", (f"{path}.jsonl: no such file",))
