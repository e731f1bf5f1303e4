"""Hugging Face directories in and out; against transformers itself where torch is installed."""

import dataclasses
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from cpt.data.tokenizers._base import load
from cpt.data.tokenizers.byte import ByteTokenizer
from cpt.errors import ConfigError, DataError, RunError
from cpt.models import convert
from cpt.models.base import build
from cpt.models.spec import ModelSpec

SPEC = ModelSpec(layers=3, width=48, heads=4, vocab_size=97, context=64, rotary_fraction=0.5)
MORE = ModelSpec(
    layers=2,
    width=32,
    heads=2,
    vocab_size=258,
    context=40,
    ff=80,
    rotary_fraction=0.25,
    rotary_base=500.0,
    norm_eps=3e-4,
    parallel_residual=False,
    gelu="exact",
)


def noise(spec, seed=0):
    """Parameters of which every number differs, so that one that is swapped, forgotten or turned shows."""
    rng = np.random.default_rng(seed)
    shapes = build(spec).abstract()

    def one(path, leaf):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return (rng.standard_normal(leaf.shape) * 0.15 + centre).astype(np.float32)

    return jax.tree_util.tree_map_with_path(one, shapes)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def logits(spec, params, tokens):
    model = build(spec)
    return np.asarray(model.apply(params, jnp.asarray(tokens)) @ model.head(params))


def by_hand(folder, spec, params, *, prefix="gpt_neox.", head="embed_out.weight", dtype=np.float32, **config):
    """A directory as Hugging Face stores it, from its documented names and shapes; shares no code with what is tested.

    The rows of `query_key_value` are grouped by head, then q, k, v: filled here one head and one part at a time.
    """
    folder.mkdir(parents=True)
    d, hd = spec.width, spec.width // spec.heads
    out = {f"{prefix}embed_in.weight": params["embed"]["embedding"], head: params["head"]["kernel"].T}
    for i in range(spec.layers):
        ours, at = params["layers"][str(i)], f"{prefix}layers.{i}"
        fused, bias = np.empty((3 * d, d), np.float32), np.empty(3 * d, np.float32)
        for h in range(spec.heads):
            for part in range(3):
                rows = slice((3 * h + part) * hd, (3 * h + part + 1) * hd)
                fused[rows] = ours["attention"]["qkv"]["kernel"][:, h, part].T
                bias[rows] = ours["attention"]["qkv"]["bias"][h, part]
        out |= {f"{at}.attention.query_key_value.weight": fused, f"{at}.attention.query_key_value.bias": bias}
        dense = np.concatenate([ours["attention"]["out"]["kernel"][h].T for h in range(spec.heads)], axis=1)
        out |= {f"{at}.attention.dense.weight": dense, f"{at}.attention.dense.bias": ours["attention"]["out"]["bias"]}
        for theirs, name in (("dense_h_to_4h", "up"), ("dense_4h_to_h", "down")):
            out[f"{at}.mlp.{theirs}.weight"] = ours["mlp"][name]["kernel"].T
            out[f"{at}.mlp.{theirs}.bias"] = ours["mlp"][name]["bias"]
        for theirs, name in (("input_layernorm", "ln_attn"), ("post_attention_layernorm", "ln_mlp")):
            out |= {f"{at}.{theirs}.weight": ours[name]["scale"], f"{at}.{theirs}.bias": ours[name]["bias"]}
        # What old files hold besides.
        out[f"{at}.attention.bias"] = np.tril(np.ones((1, 1, 8, 8), np.uint8))
        out[f"{at}.attention.masked_bias"] = np.array(-1e4, np.float32)
        out[f"{at}.attention.rotary_emb.inv_freq"] = np.ones(3, np.float32)
    out |= {f"{prefix}final_layer_norm.{n}": params["ln_final"][o] for n, o in (("weight", "scale"), ("bias", "bias"))}
    numbers = {k: np.ascontiguousarray(v.astype(dtype) if v.dtype == np.float32 else v) for k, v in out.items()}
    save_file(numbers, folder / "model.safetensors", metadata={"format": "pt"})
    sizes = dict(hidden_size=d, num_hidden_layers=spec.layers, num_attention_heads=spec.heads)
    sizes |= dict(vocab_size=spec.vocab_size, max_position_embeddings=spec.context, intermediate_size=spec.ff_dim)
    old = dict(rotary_pct=spec.rotary_fraction, rotary_emb_base=int(spec.rotary_base), hidden_act="gelu_new")
    rest = dict(model_type="gpt_neox", layer_norm_eps=spec.norm_eps, use_parallel_residual=spec.parallel_residual)
    config = {k: v for k, v in (sizes | old | rest | config).items() if v is not ...}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def edit(folder, change):
    """Change the tensors of a single-file directory."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("spec", [SPEC, MORE], ids=["pythia", "every-option"])
def test_write_then_read_is_the_identity(tmp_path, spec):
    params = noise(spec)
    convert.write(tmp_path / "out", spec, params)
    back, again = convert.read(tmp_path / "out")
    assert back == spec and same(params, again)
    assert all(x.dtype == np.float32 and x.flags.c_contiguous for x in jax.tree.leaves(again))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_a_directory_made_by_hand_is_read(tmp_path):
    params = noise(SPEC)
    spec, got = convert.read(by_hand(tmp_path / "old", SPEC, params))
    assert spec == SPEC and same(got, params)


def test_what_is_written_is_what_is_made_by_hand(tmp_path):
    """Names, shapes and numbers, read by the library; the buffers of old files are not written."""
    params = noise(MORE)
    convert.write(tmp_path / "ours", MORE, params)
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    theirs = load_file(by_hand(tmp_path / "hand", MORE, params) / "model.safetensors")
    theirs = {k: v for k, v in theirs.items() if not k.endswith(("attention.bias", "masked_bias", "inv_freq"))}
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    with safe_open(tmp_path / "ours" / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize(
    "layout",
    [
        {"prefix": ""},
        {"head": "lm_head.weight"},
        {
            "rotary_pct": ...,
            "rotary_emb_base": ...,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        },
        {"rope_theta": 10000, "partial_rotary_factor": 0.5, "rope_scaling": None, "attention_bias": True},
        {"hidden_act": "gelu_fast"},
        {"hidden_act": "gelu_pytorch_tanh"},
        {"layer_norm_eps": ..., "use_parallel_residual": ..., "rotary_emb_base": ...},
    ],
    ids=["bare", "new-head", "new-rotary", "both-rotaries", "gelu_fast", "gelu_tanh", "defaults"],
)
def test_other_spellings_of_the_same_model(tmp_path, layout):
    params = noise(SPEC)
    spec, got = convert.read(by_hand(tmp_path / "in", SPEC, params, **layout))
    assert spec == SPEC and same(got, params)


def test_gelu_of_hugging_face_is_the_exact_one(tmp_path):
    """And a quarter of each head is rotated, where nothing says otherwise."""
    spec = dataclasses.replace(SPEC, width=64)
    folder = by_hand(tmp_path / "in", spec, noise(spec), hidden_act="gelu", rotary_pct=...)
    assert convert.read(folder)[0] == dataclasses.replace(spec, gelu="exact", rotary_fraction=0.25)


def test_options_are_read(tmp_path):
    params = noise(MORE)
    folder = by_hand(tmp_path / "in", MORE, params, hidden_act="gelu")
    spec, got = convert.read(folder)
    assert spec == MORE and same(got, params)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_both_ways(tmp_path, dtype):
    """Reading widens exactly; writing rounds once, so what was read is written back as it was."""
    half = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}[dtype]
    rounded = jax.tree.map(lambda x: x.astype(half).astype(np.float32), noise(SPEC))
    folder = by_hand(tmp_path / "in", SPEC, rounded, dtype=half)
    spec, got = convert.read(folder)
    assert same(got, rounded)
    convert.write(tmp_path / "out", spec, noise(SPEC), dtype=dtype)
    assert same(convert.read(tmp_path / "out")[1], rounded)
    with safe_open(tmp_path / "out" / "model.safetensors", "np") as file:
        name = "gpt_neox.embed_in.weight"
        assert file.get_slice(name).get_dtype() == {"bfloat16": "BF16", "float16": "F16"}[dtype]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == dtype


def test_a_tied_head_is_a_copy_of_the_embedding(tmp_path):
    params = noise(SPEC)
    params["head"]["kernel"] = params["embed"]["embedding"].T.copy()
    with_head = by_hand(tmp_path / "both", SPEC, params, tie_word_embeddings=True)
    assert same(convert.read(with_head)[1], params)
    edit(with_head, lambda t: t.pop("embed_out.weight"))
    assert same(convert.read(with_head)[1], params)
    edit(with_head, lambda t: t.update({"embed_out.weight": t["gpt_neox.embed_in.weight"] + 1}))
    with pytest.raises(RunError, match=r"'embed_out\.weight' differs from 'gpt_neox\.embed_in\.weight'"):
        convert.read(with_head)


def test_shards(tmp_path):
    params = noise(SPEC)
    convert.write(tmp_path / "out", SPEC, params, max_shard_bytes=40_000)
    files = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    n = len(files)
    assert n > 3 and files == [f"model-{i:05d}-of-{n:05d}.safetensors" for i in range(1, n + 1)]
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    held = {name: load_file(tmp_path / "out" / name) for name in files}
    assert index["weight_map"] == {t: name for name in files for t in held[name]}
    sizes = [sum(a.nbytes for a in held[name].values()) for name in files]
    assert max(sizes) <= 40_000 and sum(sizes) == index["metadata"]["total_size"]
    spec, got = convert.read(tmp_path / "out")
    assert spec == SPEC and same(got, params)
    biggest = 3 * SPEC.width**2 * 4
    convert.write(tmp_path / "small", SPEC, params, max_shard_bytes=biggest - 1)  # which then has a file of its own
    assert same(convert.read(tmp_path / "small")[1], params)


def test_the_tokenizer_comes_along(tmp_path):
    ByteTokenizer().save(tmp_path / "tokenizer.json")
    convert.write(tmp_path / "out", MORE, noise(MORE), tokenizer_file=tmp_path / "tokenizer.json")
    assert load(tmp_path / "out").hash == ByteTokenizer().hash
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert config["eos_token_id"] == generation["eos_token_id"] == 256
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["model_max_length"] == 40
    # A directory that is read and written keeps the settings of its own tokenizer.
    (tmp_path / "out" / "tokenizer_config.json").write_text('{"mine": 1}')
    convert.write(tmp_path / "again", MORE, noise(MORE), tokenizer_file=tmp_path / "out")
    assert (tmp_path / "again" / "tokenizer_config.json").read_text() == '{"mine": 1}'
    convert.write(tmp_path / "none", MORE, noise(MORE))
    assert json.loads((tmp_path / "none" / "config.json").read_text())["eos_token_id"] is None
    assert not (tmp_path / "none" / "tokenizer.json").exists()
    with pytest.raises(ConfigError, match=r"has 257 ids, the model 97"):
        convert.write(tmp_path / "small", SPEC, noise(SPEC), tokenizer_file=tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=r"not a tokenizer\.json"):
        convert.write(tmp_path / "small", MORE, noise(MORE), tokenizer_file=tmp_path / "tokenizer.json")
    assert not (tmp_path / "small").exists()


def test_parameters_on_devices_are_written_and_placed(tmp_path):
    """JAX arrays go out one by one; on the way in each can be put on a device before the next is read."""
    params, placed = noise(SPEC), []
    convert.write(tmp_path / "out", SPEC, jax.device_put(params))

    def place(path, array):
        placed.append(path)
        return jax.device_put(array)

    _, got = convert.read(tmp_path / "out", place=place)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(got)) and same(got, params)
    assert len(placed) == len(set(placed)) == len(jax.tree.leaves(params)) and ("head", "kernel") in placed


def test_no_second_copy_of_the_model(tmp_path):
    spec = ModelSpec(layers=12, width=128, heads=4, vocab_size=512, context=8)
    params = noise(spec)
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    largest = max(x.nbytes for x in jax.tree.leaves(params))
    convert.read_spec(by_hand(tmp_path / "first", SPEC, noise(SPEC)))  # what the first use loads is not of the model
    tracemalloc.start()
    convert.write(tmp_path / "out", spec, params)
    written = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    kept = convert.read(tmp_path / "out")
    read = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"model {size:,} bytes; peak while writing {written:,}, while reading {read:,}")
    assert written < 4 * largest < size / 2
    assert size <= read < size + 4 * largest and kept


DAMAGE = {
    "cut": (lambda f: f.write_bytes(f.read_bytes()[:-7]), r"model\.safetensors: not a whole safetensors file"),
    "empty": (lambda f: f.write_bytes(b""), r"model\.safetensors: not a whole safetensors file"),
    "garbage": (lambda f: f.write_bytes(os.urandom(999)), r"model\.safetensors: not a whole safetensors file"),
    "gone": (lambda f: f.unlink(), r"has neither model\.safetensors nor model\.safetensors\.index\.json"),
    "pickle": (lambda f: f.rename(f.with_name("pytorch_model.bin")), r"has only pytorch_model\.bin.*save_pretrained"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_files(tmp_path, name):
    folder = by_hand(tmp_path / "in", SPEC, noise(SPEC))
    harm, line = DAMAGE[name]
    harm(folder / "model.safetensors")
    with pytest.raises(RunError, match=line) as e:
        convert.read(folder)
    assert "\n" not in str(e.value) and str(folder) in str(e.value)


BLOCK = "gpt_neox.layers.1.mlp.dense_4h_to_h"
TENSORS = {
    "missing": (lambda t: t.pop(f"{BLOCK}.bias"), rf"tensor '{BLOCK}\.bias' is missing, of the 40"),
    "missing-two": (
        lambda t: [t.pop(f"{BLOCK}.{n}") for n in ("bias", "weight")],
        rf"tensor '{BLOCK}\.weight' is missing \(and 1 more\)",
    ),
    "no-head": (lambda t: t.pop("embed_out.weight"), r"'embed_out\.weight' is missing.*with its head"),
    "extra-layer": (
        lambda t: t.update({"gpt_neox.layers.3.input_layernorm.bias": np.zeros(48, np.float32)}),
        r"tensor 'gpt_neox\.layers\.3\.input_layernorm\.bias' is none of the 40",
    ),
    "adapter": (lambda t: t.update({"x.lora_A": np.zeros(3, np.float32)}), r"'x\.lora_A' is none .*adapter"),
    "shape": (
        lambda t: t.update({f"{BLOCK}.weight": t[f"{BLOCK}.weight"].T.copy()}),
        rf"tensor '{BLOCK}\.weight' has shape \[192, 48\], its config\.json makes it \[48, 192\]",
    ),
    "twice": (
        lambda t: t.update({"embed_in.weight": t["gpt_neox.embed_in.weight"]}),
        r"are the same one",
    ),
    "nan": (
        lambda t: t["gpt_neox.final_layer_norm.bias"].__setitem__(3, np.nan),
        r"'gpt_neox\.final_layer_norm\.bias' holds numbers that are not finite",
    ),
    "int8": (
        lambda t: t.update({f"{BLOCK}.bias": np.zeros(48, np.int8)}),
        rf"tensor '{BLOCK}\.bias' is I8, and only F32, F16, BF16",
    ),
}


@pytest.mark.parametrize("name", TENSORS)
def test_wrong_tensors(tmp_path, name):
    folder = by_hand(tmp_path / "in", SPEC, noise(SPEC))
    harm, line = TENSORS[name]
    edit(folder, harm)
    with pytest.raises(RunError, match=line) as e:
        convert.read(folder)
    assert "\n" not in str(e.value) and str(folder) in str(e.value)


CONFIGS = {
    "another": ({"model_type": "bert"}, r"model_type: 'bert' is not an architecture that converts .*gpt_neox"),
    "none": ({"model_type": ...}, r"model_type: 'None' is not an architecture"),
    "list": ({"model_type": ["gpt_neox"]}, r"model_type: '\['gpt_neox'\]' is not an architecture"),
    "no-size": ({"hidden_size": ...}, r"config\.json: hidden_size: None must be a whole number"),
    "word": ({"num_hidden_layers": "3"}, r"num_hidden_layers: '3' must be a whole number"),
    "heads": ({"num_attention_heads": 5}, r"config\.json: model\.heads: 5 does not divide"),
    "relu": ({"hidden_act": "relu"}, r"hidden_act: 'relu' is not supported  \(supported: gelu, gelu_new"),
    "unhashable": ({"hidden_act": ["gelu"]}, r"hidden_act: \['gelu'\] is not supported"),
    "no-bias": ({"attention_bias": False}, r"attention_bias: False is not supported"),
    "long": ({"rope_scaling": {"type": "linear", "factor": 2.0}}, r"rope_type: 'linear' is not supported"),
    "long beside": (
        {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 2.0}},
        r"rope_type: 'linear' is not supported",
    ),
    "two": (
        {"rope_parameters": {"partial_rotary_factor": 0.25}},
        r"partial_rotary_factor 0\.25, rotary_pct 0\.5 contra",
    ),
    "rope": ({"rope_parameters": 3}, r"rope_parameters: 3 must be an object"),
    "eps": ({"layer_norm_eps": None}, r"layer_norm_eps: None must be a number"),
    "parallel": ({"use_parallel_residual": 1}, r"model\.parallel_residual: 1 must be True or False"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_that_no_model_here_has(tmp_path, name):
    change, line = CONFIGS[name]
    folder = by_hand(tmp_path / "in", SPEC, noise(SPEC), **change)
    with pytest.raises(ConfigError, match=line) as e:
        convert.read(folder)
    assert "\n" not in str(e.value) and str(folder / "config.json") in str(e.value)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(ConfigError, match=r"no such folder.*hf download"):
        convert.read("EleutherAI/pythia-70m")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RunError, match=r"config\.json: not JSON"):
        convert.read(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(RunError, match=r"config\.json: not a JSON object"):
        convert.read(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(RunError, match=r"config\.json: cannot be read"):
        convert.read(tmp_path)


def test_damaged_shards(tmp_path):
    folder = tmp_path / "out"
    convert.write(folder, SPEC, noise(SPEC), max_shard_bytes=100_000)
    index, first = folder / "model.safetensors.index.json", sorted(folder.glob("*.safetensors"))[0]
    content, sound = first.read_bytes(), index.read_text()
    first.unlink()
    with pytest.raises(RunError, match=rf"{first.name}: is missing"):
        convert.read(folder)
    first.write_bytes(content[:-1])
    with pytest.raises(RunError, match=rf"{first.name}: not a whole safetensors file"):
        convert.read(folder)
    first.write_bytes(content)
    moved = json.loads(sound)
    moved["weight_map"]["embed_out.weight"] = first.name
    index.write_text(json.dumps(moved))
    with pytest.raises(RunError, match=rf"{first.name}: has no tensor 'embed_out\.weight'"):
        convert.read(folder)
    for bad in ("{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../x"}}', '{"weight_map": {"a": 3}}'):
        index.write_text(bad)
        with pytest.raises(RunError, match=r"not the index of a sharded model"):
            convert.read(folder)
    index.write_text(sound)
    convert.read(folder)


def test_parameters_that_cannot_be_written(tmp_path):
    def refused(line, dtype="float32", spec=SPEC):
        with pytest.raises(RunError, match=line):
            convert.write(tmp_path / "out", spec, params, dtype=dtype)
        assert list(tmp_path.iterdir()) == []

    params = noise(SPEC)
    params["ln_final"]["bias"][1] = 7e4
    refused(r"ln_final\.bias holds numbers that are beyond float16; store float32 or bfloat16", "float16")
    params["ln_final"]["bias"][1] = np.inf
    refused(r"ln_final\.bias holds numbers that are not finite")
    params = noise(SPEC)
    params["layers"]["0"]["mlp"]["gate"] = {"kernel": np.zeros((2, 2))}
    refused(r"layers\.0\.mlp\.gate\.kernel has no place")
    params = noise(SPEC)
    refused(
        r"embed\.embedding has shape \[97, 48\], the model \[98, 48\]", spec=dataclasses.replace(SPEC, vocab_size=98)
    )
    del params["layers"]["2"]
    refused(r"parameter layers\.2\.ln_attn\.scale is missing")


def test_what_is_there_is_not_lost(tmp_path, monkeypatch):
    folder, params = tmp_path / "out", noise(SPEC)
    convert.write(folder, SPEC, params)
    with pytest.raises(ConfigError, match=r"out: is there already"):
        convert.write(folder, SPEC, noise(SPEC, 1))
    (folder / "mine.txt").write_text("kept until the new one is whole")
    broken = noise(SPEC, 1)
    broken["head"]["kernel"][0, 0] = np.nan
    with pytest.raises(RunError, match="not finite"):
        convert.write(folder, SPEC, broken, overwrite=True)
    assert same(convert.read(folder)[1], params) and (folder / "mine.txt").exists()

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=r"out: the disk is full; nothing was written there"):
            convert.write(folder, SPEC, noise(SPEC, 1), overwrite=True)
    assert same(convert.read(folder)[1], params)
    rename = Path.rename

    def refused(self, target):
        if ".partial-" in self.name:
            raise OSError(13, "Permission denied")
        return rename(self, target)

    with monkeypatch.context() as m:
        m.setattr(Path, "rename", refused)
        with pytest.raises(RunError, match=r"out: Permission denied"):
            convert.write(folder, SPEC, noise(SPEC, 1), overwrite=True)
    assert same(convert.read(folder)[1], params) and [p.name for p in tmp_path.iterdir()] == ["out"]
    convert.write(folder, SPEC, noise(SPEC, 1), overwrite=True)
    assert same(convert.read(folder)[1], noise(SPEC, 1)) and not (folder / "mine.txt").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file: is there already"):
        convert.write(tmp_path / "file", SPEC, params, overwrite=True)
    (tmp_path / "empty").mkdir()
    convert.write(tmp_path / "empty", SPEC, params)
    assert same(convert.read(tmp_path / "empty")[1], params)


def test_options_that_are_none(tmp_path):
    with pytest.raises(ConfigError, match=r"dtype: no 'float64'"):
        convert.write(tmp_path / "out", SPEC, noise(SPEC), dtype="float64")
    with pytest.raises(ConfigError, match=r"max_shard_bytes: 0"):
        convert.write(tmp_path / "out", SPEC, noise(SPEC), max_shard_bytes=0)
    with pytest.raises(ConfigError, match=r"model\.family: 'mine:net' is not an architecture that converts"):
        convert.write(tmp_path / "out", dataclasses.replace(SPEC, family="mine:net"), noise(SPEC))


def test_neither_torch_nor_jax_is_started():
    heavy = ("torch", "transformers", "jax")
    code = f"import sys, cpt.models.convert.gpt_neox; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr[-2000:]


TOKENS = np.random.default_rng(0).integers(0, 97, (2, 40))


@pytest.mark.parametrize("shard_bytes", [convert.SHARD_BYTES, 60_000])
@pytest.mark.parametrize("change", [{}, {"gelu": "exact", "parallel_residual": False, "ff": 80, "norm_eps": 1e-3}])
def test_transformers_loads_what_is_written(tmp_path, change, shard_bytes):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    spec = dataclasses.replace(SPEC, rotary_base=300.0, **change)
    params = noise(spec)
    convert.write(tmp_path / "out", spec, params, max_shard_bytes=shard_bytes)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        theirs = model.eval()(torch.from_numpy(TOKENS)).logits.numpy()
    ours = logits(spec, params, TOKENS)
    print(f"largest logit {abs(ours).max():.2f}, off by {abs(ours - theirs).max():.2e}")
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shard", ["5GB", "60KB"])
@pytest.mark.parametrize("act", ["gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"])
def test_what_transformers_saves_is_read(tmp_path, act, shard):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.GPTNeoXConfig(
        vocab_size=97,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=80,
        hidden_act=act,
        max_position_embeddings=64,
        rotary_pct=0.5,
        rotary_emb_base=300,
        use_parallel_residual=act == "gelu",
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    model = transformers.GPTNeoXForCausalLM(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn_like(p) * 0.15 + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
        theirs = model(torch.from_numpy(TOKENS)).logits.numpy()
    model.save_pretrained(tmp_path / "saved", max_shard_size=shard)
    assert (tmp_path / "saved" / "model.safetensors.index.json").exists() == (shard == "60KB")
    spec, params = convert.read(tmp_path / "saved")
    assert spec.ff == 80 and spec.rotary_base == 300.0 and spec.rotary_dim == 6
    np.testing.assert_allclose(logits(spec, params, TOKENS), theirs, atol=1e-5, rtol=0)
    convert.write(tmp_path / "again", spec, params)
    assert same(convert.read(tmp_path / "again")[1], params)


def test_transformers_saved_in_bfloat16(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    convert.write(tmp_path / "out", SPEC, noise(SPEC), dtype="bfloat16")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    model.save_pretrained(tmp_path / "saved")
    assert same(convert.read(tmp_path / "saved")[1], convert.read(tmp_path / "out")[1])


def test_transformers_loads_the_tokenizer(tmp_path):
    transformers = pytest.importorskip("transformers")
    text = "Größe 12\n  <|endoftext|> \U0001f600"
    ByteTokenizer().save(tmp_path / "tokenizer.json")
    convert.write(tmp_path / "out", MORE, noise(MORE), tokenizer_file=tmp_path / "tokenizer.json")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    plain = text.replace("<|endoftext|>", "")
    assert tokenizer(plain)["input_ids"] == list(plain.encode())
    assert tokenizer.decode(list(plain.encode())) == plain
    assert tokenizer.eos_token_id == 256 and tokenizer.model_max_length == 40
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert config.eos_token_id == 256
