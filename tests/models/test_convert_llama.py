"""Directories of the Llama family: every spelling of the same model, and what no model here has, named."""

import dataclasses
import json

import jax
import llama_cases as cases
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cpt.errors import ConfigError, RunError
from cpt.models import convert
from cpt.models.rope import RopeSpec
from cpt.models.spec import LlamaSpec

GOLDEN = cases.golden()
ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPE |= {"original_max_position_embeddings": 32}


def folder_of(tmp_path, name="llama", **config):
    """A case with some settings changed; `...` leaves one out."""
    folder = cases.write_folder(tmp_path / "in", name, GOLDEN[name]["shapes"])
    changed = {k: v for k, v in (cases.config(name) | config).items() if v is not ...}
    (folder / "config.json").write_text(json.dumps(changed))
    return folder


def edit(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


SPELLINGS = {
    "transformers 4": dict(rope_parameters=..., rope_theta=5e5, rope_scaling=ROPE),
    "older": dict(rope_parameters=..., rope_theta=5e5, rope_scaling={**ROPE, "rope_type": ..., "type": "llama3"}),
    "transformers 5": dict(rope_parameters={**ROPE, "rope_theta": 5e5}),
    "both": dict(rope_parameters={**ROPE, "rope_theta": 5e5}, rope_theta=5e5, rope_scaling=ROPE),
    "context beside": dict(
        rope_parameters={**ROPE, "rope_theta": 5e5, "original_max_position_embeddings": ...},
        original_max_position_embeddings=32,
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings_of_one_rope(tmp_path, name):
    change = {
        k: {n: x for n, x in v.items() if x is not ...} if isinstance(v, dict) else v
        for k, v in SPELLINGS[name].items()
    }
    spec = convert.read_spec(folder_of(tmp_path, **change))
    assert spec.rotary_base == 5e5
    assert spec.rope == RopeSpec("llama3", 8.0, 32, low_freq_factor=1.0, high_freq_factor=4.0)


def test_yarn_may_leave_its_factor_to_the_contexts(tmp_path):
    yarn = dict(rope_type="yarn", factor=None, original_max_position_embeddings=16, mscale=0.707, mscale_all_dim=1.0)
    spec = convert.read_spec(folder_of(tmp_path, rope_parameters=..., rope_scaling=yarn))
    assert (spec.rope.factor, spec.rope.original_context) == (4.0, 16)
    expected = (0.0707 * np.log(4) + 1) / (0.1 * np.log(4) + 1)
    assert spec.rope.scale == pytest.approx(expected)


def test_what_a_silent_config_means(tmp_path):
    """As the classes of transformers have it; a window that no row reaches, or that is switched off, is none."""

    def read(number, name, **change):
        return convert.read_spec(folder_of(tmp_path / str(number), name, **change))

    silent = dict(num_key_value_heads=..., rms_norm_eps=..., tie_word_embeddings=..., head_dim=...)
    assert read(1, "llama", **silent) == LlamaSpec(
        layers=2, width=32, heads=4, vocab_size=61, context=64, ff=48, norm_eps=1e-6
    )
    assert read(2, "mistral", **silent, num_attention_heads=8).kv_heads == 8
    assert read(3, "qwen3", **silent, num_attention_heads=32).head_dim == 128
    assert read(4, "olmo2", **silent).norm_eps == 1e-5
    assert read(5, "mistral", sliding_window=64) == read(6, "mistral")
    assert read(7, "qwen2", sliding_window=16, use_sliding_window=False) == read(8, "qwen2")
    full = ["full_attention"] * 2
    assert read(9, "qwen3", sliding_window=16, layer_types=full) == read(10, "qwen3")
    assert read(11, "qwen2", sliding_window=16, use_sliding_window=True, max_window_layers=2) == read(12, "qwen2")


OLD = {"rope_parameters": ...}
REFUSED = {
    "window": ("mistral", {"sliding_window": 32}, r"sliding_window: 32 asks for attention in windows"),
    "silent window": (
        "mistral",
        {"sliding_window": ..., "max_position_embeddings": 32768},
        r"sliding_window: 4096 asks for attention in windows",
    ),
    "qwen window": (
        "qwen2",
        {"sliding_window": 32, "use_sliding_window": True, "max_window_layers": 1},
        r"sliding_window: 32 asks",
    ),
    "layers": ("llama", {"layer_types": ["full_attention", "chunked_attention"]}, r"layer_types: 'chunked_attention'"),
    "experts": ("llama", {"num_local_experts": 8}, r"num_local_experts: 8 asks for a mixture of experts"),
    "mixtral": ("llama", {"model_type": "mixtral"}, r"model_type: 'mixtral' is not .*gpt_neox, llama, mistral, qwen2"),
    "rope": ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, r"rope_type: 'dynamic' is not supported"),
    "longrope": ("llama", {"rope_parameters": {"rope_type": "longrope"}}, r"rope_type: 'longrope' is not supported"),
    "nested rope": ("llama", {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, r"for a kind of layer"),
    "rope factor": ("llama", {**OLD, "rope_scaling": {"type": "linear"}}, r"rope_scaling has factor"),
    "rope number": (
        "llama",
        {**OLD, "rope_scaling": {"type": "linear", "factor": "2"}},
        r"factor: '2' must be a number",
    ),
    "two ropes": ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, r"default and .* linear contradict"),
    "two bases": ("llama", {"rope_theta": 5.0}, r"contradict each other"),
    "partial rope": ("llama", {"partial_rotary_factor": 0.5}, r"partial_rotary_factor: 0\.5 asks for rotary positions"),
    "act": ("llama", {"hidden_act": "gelu"}, r"hidden_act: 'gelu' is not supported"),
    "mlp bias": ("llama", {"mlp_bias": True}, r"mlp_bias: True asks for biases in the MLP"),
    "mistral bias": ("mistral", {"attention_bias": True}, r"attention_bias: True asks for biases"),
    "quantised": ("llama", {"quantization_config": {"bits": 4}}, r"quantization_config: .* asks for quantised weights"),
    "softcap": ("llama", {"final_logit_softcapping": 30.0}, r"final_logit_softcapping: 30\.0 asks for capped logits"),
    "groups": ("llama", {"num_key_value_heads": 3}, r"config\.json: model\.kv_heads: 3 does not divide"),
    "tied": ("llama", {"tie_word_embeddings": "yes"}, r"tie_word_embeddings: 'yes' must be true or false"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_model_here_has_is_named(tmp_path, name):
    case, change, line = REFUSED[name]
    folder = folder_of(tmp_path, case, **change)
    with pytest.raises(ConfigError, match=line) as e:
        convert.read(folder)
    assert "\n" not in str(e.value) and str(folder / "config.json") in str(e.value)


def test_a_tied_model_may_bring_its_head_along(tmp_path):
    """An equal one is the embedding once more; another one is a contradiction."""
    folder = folder_of(tmp_path, "qwen2")
    _, params = convert.read(folder)
    assert "head" not in params
    edit(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    assert jax.tree.all(jax.tree.map(np.array_equal, convert.read(folder)[1], params))
    edit(folder, lambda t: t.update({"lm_head.weight": t["lm_head.weight"] + 1}))
    with pytest.raises(RunError, match=r"'lm_head\.weight' differs from 'model\.embed_tokens\.weight'"):
        convert.read(folder)


def test_names_of_old_files_and_of_the_bare_decoder(tmp_path):
    """Without the prefix, and with the frequencies that old versions stored."""
    folder = folder_of(tmp_path)
    _, params = convert.read(folder)

    def older(tensors):
        for name in [n for n in tensors if n.startswith("model.")]:
            tensors[name.removeprefix("model.")] = tensors.pop(name)
        for i in range(2):
            tensors[f"layers.{i}.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)

    edit(folder, older)
    assert jax.tree.all(jax.tree.map(np.array_equal, convert.read(folder)[1], params))


@pytest.mark.parametrize(
    ("harm", "line"),
    [
        (
            lambda t: t.update({f"model.layers.{i}.self_attn.q_proj.bias": np.zeros(32, np.float32) for i in (0, 1)}),
            r"'model\.layers\.0\.self_attn\.q_proj\.bias' is none of the 21 .*nor are model\.layers\.1\.self",
        ),
        (lambda t: t.pop("lm_head.weight"), r"'lm_head\.weight' is missing"),
        (
            lambda t: t.update({"model.layers.0.self_attn.k_proj.weight": np.zeros((32, 32), np.float32)}),
            r"k_proj\.weight' has shape \[32, 32\], its config\.json makes it \[16, 32\]",
        ),
    ],
    ids=["bias", "head", "groups"],
)
def test_tensors_that_are_not_of_the_model(tmp_path, harm, line):
    folder = folder_of(tmp_path)
    edit(folder, harm)
    with pytest.raises(RunError, match=line):
        convert.read(folder)


@pytest.mark.parametrize("name", cases.CASES)
def test_read_and_written_is_byte_for_byte_the_same(tmp_path, name):
    folder = folder_of(tmp_path, name)
    spec, params = convert.read(folder)
    convert.write(tmp_path / "out", spec, params, max_shard_bytes=30_000)
    assert convert.read_spec(tmp_path / "out") == spec
    back = {k: v for f in (tmp_path / "out").glob("*.safetensors") for k, v in load_file(f).items()}
    before = load_file(folder / "model.safetensors")
    assert back.keys() == before.keys() and all(back[k].tobytes() == before[k].tobytes() for k in before)
    kind = json.loads((tmp_path / "out" / "config.json").read_text())["model_type"]
    assert kind == {"mistral": "llama"}.get(cases.CASES[name]["model_type"], cases.CASES[name]["model_type"])


def test_a_combination_that_hugging_face_does_not_have(tmp_path):
    spec, params = convert.read(folder_of(tmp_path))
    with pytest.raises(ConfigError, match=r"norm_placement='after' with qk_norm='none'.*is no architecture"):
        convert.write(tmp_path / "out", dataclasses.replace(spec, norm_placement="after"), params)
    assert not (tmp_path / "out").exists()
