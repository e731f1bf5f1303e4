"""The same function as `transformers.GPTNeoXForCausalLM`, an independent implementation, on copied weights."""

import jax.numpy as jnp
import numpy as np
import pytest

from cpt.models.base import build
from cpt.models.spec import ModelSpec

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LAYERS, WIDTH, HEADS, VOCAB, LENGTH = 3, 48, 4, 97, 40


def reference(gelu: str, parallel: bool):
    """A randomly filled torch model; every parameter is noise, so that a swapped or forgotten one shows."""
    config = transformers.GPTNeoXConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        hidden_act={"tanh": "gelu_pytorch_tanh", "exact": "gelu"}[gelu],
        max_position_embeddings=64,
        use_parallel_residual=parallel,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    model = transformers.GPTNeoXForCausalLM(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn_like(p) * 0.15 + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return model


def copied(model) -> dict:
    """The parameters of `model` in our tree."""
    hf = {k.removeprefix("gpt_neox."): v.detach().numpy() for k, v in model.state_dict().items()}
    head_dim = WIDTH // HEADS

    def norm(name):
        return {"scale": hf[f"{name}.weight"], "bias": hf[f"{name}.bias"]}

    def linear(name, kernel=None, bias=None):
        weight = hf[f"{name}.weight"].T
        return {"kernel": weight.reshape(kernel or weight.shape), "bias": hf[f"{name}.bias"].reshape(bias or -1)}

    def block(i):
        at = f"layers.{i}"
        qkv = linear(f"{at}.attention.query_key_value", (WIDTH, HEADS, 3, head_dim), (HEADS, 3, head_dim))
        out = linear(f"{at}.attention.dense", (HEADS, head_dim, WIDTH))
        mlp = {"up": linear(f"{at}.mlp.dense_h_to_4h"), "down": linear(f"{at}.mlp.dense_4h_to_h")}
        norms = {"ln_attn": norm(f"{at}.input_layernorm"), "ln_mlp": norm(f"{at}.post_attention_layernorm")}
        return {**norms, "attention": {"qkv": qkv, "out": out}, "mlp": mlp}

    return {
        "embed": {"embedding": hf["embed_in.weight"]},
        "layers": {str(i): block(i) for i in range(LAYERS)},
        "ln_final": norm("final_layer_norm"),
        "head": {"kernel": model.get_output_embeddings().weight.detach().numpy().T},
    }


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("gelu", ["tanh", "exact"])
def test_logits_equal_those_of_transformers(gelu, parallel):
    theirs = reference(gelu, parallel)
    spec = ModelSpec(
        layers=LAYERS,
        width=WIDTH,
        heads=HEADS,
        vocab_size=VOCAB,
        context=64,
        rotary_fraction=0.5,
        gelu=gelu,
        parallel_residual=parallel,
    )
    ours = build(spec)
    params = copied(theirs)
    tokens = np.random.default_rng(0).integers(0, VOCAB, (2, LENGTH))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits.numpy()
    got = np.asarray(ours.apply(params, jnp.asarray(tokens)) @ ours.head(params))
    print(
        f"{gelu} parallel={parallel}: largest logit {abs(expected).max():.2f}, off by {abs(got - expected).max():.2e}"
    )
    np.testing.assert_allclose(got, expected, atol=1e-4)
