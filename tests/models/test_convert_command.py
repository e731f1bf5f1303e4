"""`python -m cpt.convert`: a directory looked into, made a run to start from, and a run made a directory."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import llama_cases as cases
import ml_dtypes
import numpy as np
import pytest
import toy
from rich.console import Console
from safetensors.numpy import load_file, save_file

from cpt import config as c
from cpt import convert as command
from cpt.config import load
from cpt.data.tokenizers.byte import ByteTokenizer
from cpt.errors import ConfigError, RunError
from cpt.models import convert
from cpt.models.spec import DecoderSpec, LlamaSpec
from cpt.plan import resolve
from cpt.sections import parse
from cpt.training.exchange import Export, export_run, import_model
from cpt.training.run import run_training
from cpt.training.workdir import prepare_workdir

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = cases.golden()
MODEL = dict(layers=1, width=32, heads=4, kv_heads=2, ff=64, vocab_size=257, context=32, qk_norm="head", tied=True)


def folder_of(tmp_path, name="qwen2"):
    return cases.write_folder(tmp_path / "hf", name, GOLDEN[name]["shapes"])


def toy_run(root, workdir, **init):
    """The toy recipe with a Qwen3 in place of its GPT-NeoX, 4 updates in each phase."""
    config = toy.get_config(str(root))
    config.model = c.llama(**MODEL)
    config.evaluation.sets = {"old": c.evaluation_set(source="old", sequences=4, tags=("upstream",))}
    for name in ("first", "second"):
        config.phases[name].steps = 4
    config.init = c.init(**init)
    plan = resolve(load(config))
    prepare_workdir(workdir)
    told = io.StringIO()
    assert run_training(plan, workdir, Console(file=told, width=200)).step == 8
    return plan, told.getvalue()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(root, workdir): a finished run."""
    root = tmp_path_factory.mktemp("exchange")
    toy_run(root, root / "run")
    return root, root / "run"


def test_inspect_tells_what_there_is(tmp_path, capsys):
    folder = folder_of(tmp_path)
    ByteTokenizer().save(folder / "tokenizer.json")
    assert command.inspect(folder) == 0
    told = " ".join(capsys.readouterr().out.split())
    for part in (
        "architecture qwen2, family llama",
        "layers 2, width 32, heads 4, kv_heads 2, head_dim 8, ff_dim 48, vocab_size 61, context 64",
        "bias qkv, tied True",
        "parameters 17,600 (15,648 without embedding and head)",
        "tensors 26 in 1 file",
        "F32",
        "257 ids, more than the model has",
        "loads yes",
    ):
        assert part in told, told
    count = sum(np.prod(shape) for shape in GOLDEN["qwen2"]["shapes"].values())
    assert count == 17_600


def test_inspect_says_why_it_does_not_load(tmp_path, capsys):
    folder = folder_of(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float64)
    save_file(tensors, folder / "model.safetensors")
    assert command.inspect(folder) == 2
    out, err = capsys.readouterr()
    assert "25 F32, 1 F64" in out and "loads no" in " ".join(out.split())
    assert err.startswith("run error: ") and "'model.norm.weight' is F64" in err and err.count("\n") == 1
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert command.inspect(folder) == 2
    out, err = capsys.readouterr()
    assert "layers 2" in out and "a pickle, which is not read" in err


def test_the_commands_answer_mistakes_in_one_line(tmp_path):
    def run(*argv):
        line = [sys.executable, "-m", "cpt.convert", *map(str, argv)]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=env)
        return done.returncode, done.stdout, done.stderr

    assert run("exprt") == (
        2,
        "",
        "config error: exprt: no such command; did you mean 'export'?  (there are: inspect, import, export, grow, "
        "vocabulary)\n",
    )
    code, _, err = run("inspect", tmp_path / "none")
    assert code == 2 and "no such folder" in err and err.count("\n") == 1
    code, _, err = run("import", "--out=x")
    assert code == 2 and err == "config error: --hf: required (see --help)\n"
    code, out, _ = run("export", "--help")
    assert code == 0 and "--shard_bytes" in out and "python -m cpt.convert export --workdir" in out


def test_an_imported_model_is_exported_as_it_was(tmp_path):
    """Every tensor byte for byte, in one file or in many, also in half precision."""
    folder, said = folder_of(tmp_path, "olmo2"), []
    half = {k: v.astype(ml_dtypes.bfloat16) for k, v in load_file(folder / "model.safetensors").items()}
    save_file(half, folder / "model.safetensors")
    import_model(folder, tmp_path / "run", said.append)
    assert any("has no tokenizer.json" in line for line in said)
    asked = Export("bfloat16", 9_000, "none")
    export_run(tmp_path / "run", None, tmp_path / "out", asked, said.append)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    back = {k: v for file in files for k, v in load_file(file).items()}
    assert len(files) > 2 and back.keys() == half.keys()
    assert all(back[k].tobytes() == v.tobytes() and back[k].dtype == v.dtype for k, v in half.items())
    assert convert.read_spec(tmp_path / "out") == convert.read_spec(folder)
    with pytest.raises(ConfigError, match=r"run: is there already"):
        import_model(folder, tmp_path / "run", said.append)
    with pytest.raises(ConfigError, match=r"its tokenizer \(unknown\) is not found.*--tokenizer=none"):
        export_run(tmp_path / "run", None, tmp_path / "more", Export(), said.append)
    with pytest.raises(RunError, match=r"no checkpoint of step 3; nearest: 0"):
        export_run(tmp_path / "run", 3, tmp_path / "more", asked, said.append)


def test_a_run_goes_out_and_another_starts_from_it(trained, tmp_path):
    root, run = trained
    export_run(run, None, tmp_path / "out", Export(), print)
    card = (tmp_path / "out" / "README.md").read_text()
    for part in ("| second |", "| old |", "ledger exact", "step 8 of 8", "10.0 %", "started from"):
        assert (part in card) == (part != "started from"), card
    assert str(root) not in card
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "qwen3" and config["eos_token_id"] == 256
    assert command.inspect(tmp_path / "out") == 0
    section = c.model_of(str(tmp_path / "out"), remat="full")
    assert parse(DecoderSpec, section.to_dict(), "model") == LlamaSpec(**MODEL, remat="full")
    import_model(tmp_path / "out", tmp_path / "imported", print)
    _, told = toy_run(root, tmp_path / "child", from_run=str(tmp_path / "imported"))
    assert "checkpoint grid/0" in told
    first, last = (
        [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
        for folder in (tmp_path / "child", run)
    )
    assert first[0]["step"] == 0 and first[0]["nats"] == pytest.approx(last[-1]["nats"], rel=1e-6)
    with pytest.raises(RunError, match=r"has no full checkpoint"):
        toy_run(root, tmp_path / "no", from_run=str(tmp_path / "imported"), what="params+opt")


def test_the_tokenizer_is_that_of_the_run(trained, tmp_path):
    _, run = trained
    other = json.loads(json.dumps(json.loads(_byte(tmp_path / "a").read_text())))
    other["added_tokens"] = [*other["added_tokens"], {**other["added_tokens"][0], "id": 257, "content": "<x>"}]
    (tmp_path / "a").write_text(json.dumps(other))
    with pytest.raises(ConfigError, match=r"not the tokenizer that the run was trained with"):
        export_run(run, None, tmp_path / "out", Export(tokenizer=str(tmp_path / "a")), print)
    export_run(run, 4, tmp_path / "out", Export(tokenizer=str(_byte(tmp_path / "b"))), print)
    assert "anchor/4" in (tmp_path / "out" / "README.md").read_text()
    assert "up to step 8" in (tmp_path / "out" / "README.md").read_text()


def _byte(path):
    ByteTokenizer().save(path)
    return path


def test_a_model_on_several_devices(tmp_path):
    """Each tensor is split over them while it is read; what is written is what was read."""
    folder = folder_of(tmp_path, "llama")
    code = (
        "import sys; from pathlib import Path; from cpt.training.exchange import Export, export_run, import_model\n"
        "folder, run, out = map(Path, sys.argv[1:])\n"
        "import_model(folder, run, print); export_run(run, None, out, Export(tokenizer='none'), print)\n"
        "import jax; print(jax.device_count())"
    )
    flags = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4",
        "PYTHONPATH": str(ROOT),
    }
    line = [sys.executable, "-c", code, *map(str, (folder, tmp_path / "run", tmp_path / "out"))]
    done = subprocess.run(line, env={**os.environ, **flags}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.endswith("4\n"), done.stderr[-2000:]
    before, after = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "out"))
    assert before.keys() == after.keys() and all(np.array_equal(before[k], after[k]) for k in before)


def test_an_import_that_cannot_be_saved_is_an_error(tmp_path, monkeypatch):
    """Not a warning to nobody, and a directory that looks whole."""
    from cpt.training import checkpoint, storage

    def full(self, meta, items):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.Writer, "save", full)
    monkeypatch.setattr(checkpoint, "LAST_TRIES_S", (0.0,))
    with pytest.raises(RunError, match="No space left"):
        import_model(folder_of(tmp_path), tmp_path / "run", lambda line: None)
    assert not (tmp_path / "run" / "plan.json").exists()


@pytest.mark.slow
def test_a_gigabyte_is_imported_in_the_memory_of_a_laptop(tmp_path):
    """Reading, and the checkpoint at the end: less than 2.2 GB above the parameters, or it would hold them thrice."""
    spec = dict(hidden_size=1024, intermediate_size=2816, num_hidden_layers=14, vocab_size=32_000)
    shapes = {
        "model.embed_tokens.weight": (32_000, 1024),
        "lm_head.weight": (32_000, 1024),
        "model.norm.weight": (1024,),
    }
    for i in range(14):
        block = f"model.layers.{i}."
        shapes |= {f"{block}self_attn.{n}_proj.weight": (1024, 1024) for n in "qkvo"}
        shapes |= {f"{block}mlp.{n}_proj.weight": (2816, 1024) for n in ("gate", "up")}
        shapes[f"{block}mlp.down_proj.weight"] = (1024, 2816)
        shapes |= {f"{block}{n}_layernorm.weight": (1024,) for n in ("input", "post_attention")}
    folder, rng = tmp_path / "hf", np.random.default_rng(0)
    folder.mkdir()
    save_file({k: rng.standard_normal(s, np.float32) for k, s in shapes.items()}, folder / "model.safetensors")
    config = dict(model_type="llama", num_attention_heads=16, max_position_embeddings=2048, rms_norm_eps=1e-5)
    (folder / "config.json").write_text(json.dumps(config | spec | {"tie_word_embeddings": False}))
    measured = (
        "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:]).returncode; "
        "print(code, 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = [sys.executable, "-m", "cpt.convert", "import", f"--hf={folder}", f"--out={tmp_path / 'run'}"]
    done = subprocess.run([sys.executable, "-c", measured, *command], cwd=ROOT, capture_output=True, text=True)
    code, peak = map(int, done.stdout.splitlines()[-1].split())
    params = sum(4 * np.prod(s) for s in shapes.values())
    print(f"{params / 1e9:.2f} GB of parameters, peak {(peak - params) / 1e9:.2f} GB above them")
    assert code == 0 and params > 0.98e9
    assert peak - params < 2.2e9
