"""GPT-NeoX as Hugging Face stores it: Pythia, GPT-NeoX-20B, and whatever is trained here with `family="gpt_neox"`.

The head is `embed_out.weight` in the files of the Hub and `lm_head.weight` in newer ones; rotary settings are
`rotary_pct` and `rotary_emb_base`, newer `rope_parameters`. Both are read, and configs are written in both, so that
old and new readers find theirs. The config of Pythia says `gelu`, the exact one, though it was trained with the tanh
approximation; it is read as it says, `model.gelu="tanh"` gives the function that was trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cpt.models.convert._base import Keys, Layout, Tensor, matrix, vector
from cpt.models.convert._rope import rope_kind
from cpt.models.convert._settings import Settings
from cpt.models.spec import ModelSpec

ACTIVATIONS = {"gelu": "exact", "gelu_new": "tanh", "gelu_fast": "tanh", "gelu_pytorch_tanh": "tanh"}


def read_spec(config: dict[str, Any], file: Path) -> ModelSpec:
    """The spec that a `config.json` describes.

    Raises:
      ConfigError: a size is missing, or a setting is one that the model here does not have.
    """
    settings = Settings(config, file)
    width = settings.count("hidden_size")
    ff = settings.count("intermediate_size")
    rope = settings.section("rope_parameters") | settings.section("rope_scaling")
    rope_kind(settings, ("default",))
    settings.refuse(config.get("attention_bias", True), "attention_bias", (True,))
    act = config.get("hidden_act", "gelu")
    settings.refuse(act, "hidden_act", tuple(ACTIVATIONS))
    return settings.spec(
        ModelSpec,
        family="gpt_neox",
        layers=settings.count("num_hidden_layers"),
        width=width,
        heads=settings.count("num_attention_heads"),
        vocab_size=settings.count("vocab_size"),
        context=settings.count("max_position_embeddings"),
        ff=None if ff == 4 * width else ff,
        rotary_fraction=settings.agreed(
            0.25,
            {
                "rope_parameters.partial_rotary_factor": rope.get("partial_rotary_factor"),
                "rotary_pct": config.get("rotary_pct"),
                "partial_rotary_factor": config.get("partial_rotary_factor"),
            },
        ),
        rotary_base=settings.agreed(
            10000.0,
            {
                "rope_parameters.rope_theta": rope.get("rope_theta"),
                "rotary_emb_base": config.get("rotary_emb_base"),
                "rope_theta": config.get("rope_theta"),
            },
        ),
        norm_eps=settings.number("layer_norm_eps", 1e-5),
        parallel_residual=config.get("use_parallel_residual", True),
        gelu=ACTIVATIONS[act],
    )


def write_config(spec: ModelSpec) -> dict[str, Any]:
    """The `config.json` of `spec`, without what depends on a tokenizer or on how numbers are stored."""
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.width,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "intermediate_size": spec.ff_dim,
        "max_position_embeddings": spec.context,
        "hidden_act": {"tanh": "gelu_pytorch_tanh", "exact": "gelu"}[spec.gelu],
        "layer_norm_eps": spec.norm_eps,
        "use_parallel_residual": spec.parallel_residual,
        "rotary_pct": spec.rotary_fraction,
        "rotary_emb_base": spec.rotary_base,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": spec.rotary_base,
            "partial_rotary_factor": spec.rotary_fraction,
        },
        "attention_bias": True,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "initializer_range": spec.init_std or 0.02,
        "tie_word_embeddings": False,
        "use_cache": True,
    }


def tensors(spec: ModelSpec) -> list[Tensor]:
    """Every tensor of a directory and the parameter it is, in the order of the forward pass."""
    d, heads, head_dim, ff = spec.width, spec.heads, spec.head_dim, spec.ff_dim

    def norm(name: str, *path: str) -> list[Tensor]:
        return [vector(f"{name}.weight", (*path, "scale"), (d,)), vector(f"{name}.bias", (*path, "bias"), (d,))]

    def linear(name: str, path: Keys, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> list[Tensor]:
        return [
            matrix(f"{name}.weight", (*path, "kernel"), inputs, outputs),
            vector(f"{name}.bias", (*path, "bias"), outputs),
        ]

    def block(i: int) -> list[Tensor]:
        theirs, ours = f"gpt_neox.layers.{i}", ("layers", str(i))
        attention, mlp = (*ours, "attention"), (*ours, "mlp")
        return [
            *norm(f"{theirs}.input_layernorm", *ours, "ln_attn"),
            *norm(f"{theirs}.post_attention_layernorm", *ours, "ln_mlp"),
            # Rows of the fused projection are [heads, (q, k, v), head_dim], as they are here.
            *linear(f"{theirs}.attention.query_key_value", (*attention, "qkv"), (d,), (heads, 3, head_dim)),
            *linear(f"{theirs}.attention.dense", (*attention, "out"), (heads, head_dim), (d,)),
            *linear(f"{theirs}.mlp.dense_h_to_4h", (*mlp, "up"), (d,), (ff,)),
            *linear(f"{theirs}.mlp.dense_4h_to_h", (*mlp, "down"), (ff,), (d,)),
        ]

    return [
        vector("gpt_neox.embed_in.weight", ("embed", "embedding"), (spec.vocab_size, d)),
        *(tensor for i in range(spec.layers) for tensor in block(i)),
        *norm("gpt_neox.final_layer_norm", "ln_final"),
        matrix("embed_out.weight", ("head", "kernel"), (d,), (spec.vocab_size,)),
    ]


gpt_neox = Layout(
    model_types=("gpt_neox",),
    read_spec=read_spec,
    write_config=write_config,
    tensors=tensors,
    prefix="gpt_neox.",
    renamed={"lm_head.weight": "embed_out.weight"},
    tied=("gpt_neox.embed_in.weight", "embed_out.weight"),
    # Buffers of old files: the causal mask, its fill value, the rotary frequencies.
    ignored=("attention.bias", "attention.masked_bias", "rotary_emb.inv_freq"),
)
