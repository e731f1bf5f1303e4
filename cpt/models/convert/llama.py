"""The Llama family as Hugging Face stores it: `llama`, `mistral`, `qwen2`, `qwen3` and `olmo2`.

Rotary settings are `rope_theta` and `rope_scaling` in files of transformers 4, `rope_parameters` in newer ones. Both
are read, and configs are written in both, so that old and new readers find theirs. A Mistral is written as the Llama
that it is once its window is gone; the others keep their names, which say what they have beside a Llama.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cpt.errors import ConfigError
from cpt.models.convert._base import Layout, Tensor, matrix, vector
from cpt.models.convert._rope import read_rope, write_rope
from cpt.models.convert._settings import Settings
from cpt.models.llama_spec import LlamaSpec

ACTIVATIONS = ("silu", "swish")
# What a config of each architecture means where it is silent.
SILENT_KV_HEADS = {"mistral": 8, "qwen2": 32, "qwen3": 32}
SILENT_EPS = {"olmo2": 1e-5}
SILENT_HEAD_DIM = {"qwen3": 128}
SILENT_WINDOW = {"mistral": 4096}
# Settings that change the function, with the values at which they do not.
FEATURES = {
    "mlp_bias": ("biases in the MLP", (False,)),
    "num_experts": ("a mixture of experts", (0, 1)),
    "num_local_experts": ("a mixture of experts", (0, 1)),
    "n_routed_experts": ("a mixture of experts", (0,)),
    "quantization_config": ("quantised weights", ()),
    "use_mrope": ("rotary positions in several dimensions", (False,)),
    "partial_rotary_factor": ("rotary positions on a part of each head", (1,)),
    "attn_logit_softcapping": ("capped attention logits", ()),
    "final_logit_softcapping": ("capped logits", ()),
    "clip_qkv": ("clipped queries, keys and values", ()),
    "attention_multiplier": ("another scale of the attention logits", ()),
    "residual_multiplier": ("scaled residuals", (1,)),
    "embedding_multiplier": ("a scaled embedding", (1,)),
    "scale_emb": ("a scaled embedding", (1,)),
    "scale_depth": ("scaled residuals", ()),
    "logits_scaling": ("scaled logits", (1,)),
    "logit_scale": ("scaled logits", (1,)),
    "no_rope_layers": ("layers without positions", ([],)),
}


def read_spec(config: dict[str, Any], file: Path) -> LlamaSpec:
    """The spec that a `config.json` describes.

    Raises:
      ConfigError: a size is missing, or a setting is one that the model here does not have.
    """
    settings, kind = Settings(config, file), config["model_type"]
    for name, (what, neutral) in FEATURES.items():
        if config.get(name) is not None and config[name] not in neutral:
            settings.unsupported(name, config[name], what)
    settings.refuse(config.get("hidden_act", "silu"), "hidden_act", ACTIVATIONS)
    layers, heads = settings.count("num_hidden_layers"), settings.count("num_attention_heads")
    context = settings.count("max_position_embeddings")
    _check_windows(settings, config, kind, layers, context)
    base, rope = read_rope(settings, config, context)
    return settings.spec(
        LlamaSpec,
        layers=layers,
        width=settings.count("hidden_size"),
        heads=heads,
        kv_heads=_size(settings, config, "num_key_value_heads", SILENT_KV_HEADS.get(kind)),
        head_dim=_size(settings, config, "head_dim", SILENT_HEAD_DIM.get(kind)),
        ff=settings.count("intermediate_size"),
        vocab_size=settings.count("vocab_size"),
        context=context,
        rotary_base=base,
        rope=rope,
        norm_eps=settings.number("rms_norm_eps", SILENT_EPS.get(kind, 1e-6)),
        norm_placement="after" if kind == "olmo2" else "before",
        qk_norm={"qwen3": "head", "olmo2": "width"}.get(kind, "none"),
        bias=_bias(settings, kind),
        tied=settings.flag("tie_word_embeddings"),
    )


def _size(settings: Settings, config: dict[str, Any], name: str, silent: int | None) -> int | None:
    return silent if config.get(name) is None else settings.count(name)


def _bias(settings: Settings, kind: str) -> str:
    if kind == "qwen2":
        return "qkv"
    given = settings.flag("attention_bias")
    if given and kind == "mistral":
        settings.unsupported("attention_bias", given, "biases that transformers gives no mistral")
    return "attention" if given else "none"


def _check_windows(settings: Settings, config: dict[str, Any], kind: str, layers: int, context: int) -> None:
    """Raises ConfigError where a token of some layer would not see all tokens before it."""
    other = [t for t in config.get("layer_types") or [] if t != "full_attention"]
    window = config.get("sliding_window", SILENT_WINDOW.get(kind))
    if kind in ("qwen2", "qwen3") and "layer_types" not in config:
        unused = not settings.flag("use_sliding_window") or config.get("max_window_layers", 28) >= layers
        window = None if unused else window
    elif kind in ("qwen2", "qwen3"):
        window = window if other else None
    elif other:
        settings.unsupported("layer_types", other[0], "another kind of attention")
    if window is not None and window < context:
        settings.unsupported(
            "sliding_window",
            window,
            f"attention in windows (rows of up to {window} tokens would be the same with it "
            f"null and max_position_embeddings {window})",
        )


def write_config(spec: LlamaSpec) -> dict[str, Any]:
    """The `config.json` of `spec`, without what depends on a tokenizer or on how numbers are stored.

    Raises:
      ConfigError: no architecture of Hugging Face has this combination.
    """
    kind, name = _architecture(spec)
    return {
        "architectures": [f"{name}ForCausalLM"],
        "model_type": kind,
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.width,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "intermediate_size": spec.ff,
        "max_position_embeddings": spec.context,
        "hidden_act": "silu",
        "rms_norm_eps": spec.norm_eps,
        **write_rope(spec.rope, spec.rotary_base),
        "attention_bias": spec.bias != "none",
        "attention_dropout": 0.0,
        **({"mlp_bias": False} if kind == "llama" else {}),
        **({"use_sliding_window": False, "sliding_window": None} if kind.startswith("qwen") else {}),
        "initializer_range": spec.init_std or 0.02,
        "tie_word_embeddings": spec.tied,
        "pad_token_id": None,  # OLMo 2 has one by default, whose embedding would get no gradient
        "use_cache": True,
    }


def _architecture(spec: LlamaSpec) -> tuple[str, str]:
    """`model_type` and the name of its classes."""
    has = (spec.norm_placement, spec.qk_norm)
    if has == ("after", "width") and spec.bias != "qkv":
        return "olmo2", "Olmo2"
    if has == ("before", "head") and spec.bias != "qkv":
        return "qwen3", "Qwen3"
    if has == ("before", "none"):
        return ("qwen2", "Qwen2") if spec.bias == "qkv" else ("llama", "Llama")
    raise ConfigError(
        f"model: norm_placement='{spec.norm_placement}' with qk_norm='{spec.qk_norm}' and bias='{spec.bias}' is no "
        "architecture of Hugging Face; before/none is Llama or Qwen2, before/head is Qwen3, after/width is OLMo 2"
    )


def tensors(spec: LlamaSpec) -> list[Tensor]:
    """Every tensor of a directory and the parameter it is, in the order of the forward pass."""
    d, heads, kv_heads, head_dim = spec.width, spec.heads, spec.kv_heads, spec.head_dim
    norms = {"before": ("input_layernorm", "post_attention_layernorm")}
    norms["after"] = ("post_attention_layernorm", "post_feedforward_layernorm")

    def block(i: int) -> list[Tensor]:
        theirs, ours = f"model.layers.{i}", ("layers", str(i))
        attention, mlp = (*ours, "attention"), (*ours, "mlp")
        out = [
            vector(f"{theirs}.{name}.weight", (*ours, norm, "scale"), (d,))
            for name, norm in zip(norms[spec.norm_placement], ("ln_attn", "ln_mlp"), strict=True)
        ]
        for name, n in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            at = f"{theirs}.self_attn.{name}"
            out.append(matrix(f"{at}_proj.weight", (*attention, name, "kernel"), (d,), (n, head_dim)))
            if spec.bias != "none":
                out.append(vector(f"{at}_proj.bias", (*attention, name, "bias"), (n, head_dim)))
            if spec.qk_norm != "none" and name != "v":
                shape = (n, head_dim) if spec.qk_norm == "width" else (head_dim,)
                out.append(vector(f"{at}_norm.weight", (*attention, f"norm_{name}", "scale"), shape))
        out.append(matrix(f"{theirs}.self_attn.o_proj.weight", (*attention, "out", "kernel"), (heads, head_dim), (d,)))
        if spec.bias == "attention":
            out.append(vector(f"{theirs}.self_attn.o_proj.bias", (*attention, "out", "bias"), (d,)))
        for name, inputs, outputs in (("gate", d, spec.ff), ("up", d, spec.ff), ("down", spec.ff, d)):
            out.append(matrix(f"{theirs}.mlp.{name}_proj.weight", (*mlp, name, "kernel"), (inputs,), (outputs,)))
        return out

    return [
        vector("model.embed_tokens.weight", ("embed", "embedding"), (spec.vocab_size, d)),
        *(tensor for i in range(spec.layers) for tensor in block(i)),
        vector("model.norm.weight", ("ln_final", "scale"), (d,)),
        *([] if spec.tied else [matrix("lm_head.weight", ("head", "kernel"), (d,), (spec.vocab_size,))]),
    ]


llama = Layout(
    model_types=("llama", "mistral", "qwen2", "qwen3", "olmo2"),
    read_spec=read_spec,
    write_config=write_config,
    tensors=tensors,
    prefix="model.",
    renamed={},
    tied=("model.embed_tokens.weight", "lm_head.weight"),
    ignored=("rotary_emb.inv_freq",),  # of old files
)
