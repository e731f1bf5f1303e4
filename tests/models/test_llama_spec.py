"""Sizes and costs of published Llamas, scaled rotary frequencies, and the contradictions a spec refuses."""

import dataclasses
import json
import math

import numpy as np
import pytest

from cpt import config as c
from cpt.errors import ConfigError
from cpt.models.rope import RopeSpec, frequencies
from cpt.models.spec import DecoderSpec, LlamaSpec, ModelSpec, flops_per_token, parameter_count
from cpt.sections import parse, to_dict

SMALL = LlamaSpec(layers=2, width=32, heads=4, vocab_size=50, context=16)

# Parameters as the model cards and safetensors indices of the Hub give them.
PUBLISHED = {
    "Llama-2-7B": (dict(layers=32, width=4096, heads=32, ff=11008, vocab_size=32000, context=4096), 6_738_415_616),
    "Llama-3-8B": (
        dict(layers=32, width=4096, heads=32, kv_heads=8, ff=14336, vocab_size=128256, context=8192),
        8_030_261_248,
    ),
    "Qwen2.5-0.5B": (
        dict(layers=24, width=896, heads=14, kv_heads=2, ff=4864, vocab_size=151936, context=32768)
        | dict(bias="qkv", tied=True),
        494_032_768,
    ),
    "Qwen3-0.6B": (
        dict(layers=28, width=1024, heads=16, kv_heads=8, head_dim=128, ff=3072, vocab_size=151936, context=40960)
        | dict(qk_norm="head", tied=True),
        596_049_920,
    ),
    "OLMo-2-7B": (
        dict(layers=32, width=4096, heads=32, ff=11008, vocab_size=100352, context=4096)
        | dict(qk_norm="width", norm_placement="after"),
        7_298_617_344,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name):
    fields, expected = PUBLISHED[name]
    assert parameter_count(LlamaSpec(**fields)) == expected


def test_what_is_not_given_follows_from_the_rest():
    """Llama 7B: a head for each head, 128 channels, 8/3 width rounded up to a multiple of 256."""
    spec = LlamaSpec(layers=32, width=4096, heads=32, vocab_size=32000, context=2048)
    assert (spec.kv_heads, spec.head_dim, spec.ff) == (32, 128, 11008)
    assert spec == LlamaSpec(**vars(spec)) and hash(spec) == hash(LlamaSpec(**vars(spec)))


def test_flops_count_shared_heads_and_three_matrices():
    spec = LlamaSpec(layers=3, width=8, heads=4, kv_heads=2, head_dim=6, ff=10, vocab_size=7, context=8, tied=True)
    # forward matmuls of one token: q 2*8*24, k and v 2*8*12 each, out 2*24*8, three of the MLP 2*8*10, logits 2*8*7
    block = 2 * 8 * 24 + 2 * 2 * 8 * 12 + 2 * 24 * 8 + 3 * 2 * 8 * 10
    # two attention products over all 24 query channels, and a token of a row of 8 sees 4.5 on average
    assert flops_per_token(spec, 8) == 3 * (3 * (block + 2 * 2 * 24 * 4.5) + 2 * 8 * 7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_heads": 3}, "model.kv_heads: 3 does not divide model.heads = 4"),
        ({"kv_heads": 0}, "model.kv_heads: 0 must be a whole number"),
        ({"head_dim": 7}, "model.head_dim: 7 is odd"),
        ({"head_dim": None, "width": 33}, "model.heads: 4 does not divide model.width = 33"),
        ({"norm_placement": "befor"}, "model.norm_placement: no 'befor'; did you mean 'before'?"),
        ({"qk_norm": "heads"}, "model.qk_norm: no 'heads'; did you mean 'head'?"),
        ({"bias": "q"}, "model.bias: no 'q'"),
        ({"tied": 1}, "model.tied: 1 must be True or False"),
        ({"norm_eps": 0.0}, "model.norm_eps: 0.0 must be positive"),
        ({"compute_dtype": "bf16"}, "did you mean 'bfloat16'?"),
    ],
)
def test_contradictions_are_refused_in_one_line(change, message):
    with pytest.raises(ConfigError) as error:
        dataclasses.replace(SMALL, **change)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "dynamic"}, "model.rope.kind: no 'dynamic'"),
        ({"factor": 2.0}, "model.rope.factor: has no effect with model.rope.kind='default'"),
        ({"kind": "linear", "factor": 0.5}, "model.rope.factor: 0.5 must be at least 1"),
        ({"kind": "linear", "factor": 2.0, "beta_fast": 8.0}, "model.rope.beta_fast: has no effect"),
        ({"kind": "yarn", "factor": 2.0}, "model.rope.original_context: required by model.rope.kind='yarn'"),
        (
            {"kind": "llama3", "original_context": 16, "low_freq_factor": 4.0},
            "model.rope.high_freq_factor: 4.0 must be above model.rope.low_freq_factor = 4.0",
        ),
    ],
)
def test_scalings_that_contradict_themselves(fields, message):
    with pytest.raises(ConfigError) as error:
        RopeSpec(**fields)
    assert message in str(error.value)


def test_frequencies_of_llama_3_1():
    """Its head: 128 channels, base 500,000, factor 8 over 8,192 tokens. What turns 4 times or more over them stays."""
    rope = RopeSpec("llama3", 8.0, 8192, low_freq_factor=1.0, high_freq_factor=4.0)
    plain, got = frequencies(RopeSpec(), 128, 5e5), frequencies(rope, 128, 5e5)
    turns = 8192 * plain / (2 * math.pi)
    np.testing.assert_allclose(got[turns >= 4], plain[turns >= 4], rtol=1e-12)
    np.testing.assert_allclose(got[turns <= 1], plain[turns <= 1] / 8, rtol=1e-12)
    between = (turns > 1) & (turns < 4)
    assert between.sum() == 6 and (np.diff(got) < 0).all()
    kept = (turns[between] - 1) / 3
    np.testing.assert_allclose(got[between], plain[between] * (kept + (1 - kept) / 8), rtol=1e-12)


def test_yarn_keeps_fast_channels_and_stretches_slow_ones():
    """By hand: 64 channels, base 10,000, 4 times 2,048 tokens. Pair i turns 32 times at i = 8.06, once at i = 20.1."""
    rope = RopeSpec("yarn", 4.0, 2048)
    plain, got = frequencies(RopeSpec(), 64, 1e4), frequencies(rope, 64, 1e4)
    np.testing.assert_allclose(got[:9], plain[:9], rtol=1e-12)
    np.testing.assert_allclose(got[21:], plain[21:] / 4, rtol=1e-12)
    np.testing.assert_allclose(got[14], plain[14] * ((7 / 13) + (6 / 13) / 4), rtol=1e-12)
    assert rope.scale == pytest.approx(0.1 * math.log(4) + 1)
    assert dataclasses.replace(rope, attention_factor=0.5).scale == 0.5 and RopeSpec("linear", 4.0).scale == 1.0
    np.testing.assert_allclose(frequencies(RopeSpec("linear", 4.0), 64, 1e4), plain / 4)


def test_a_section_is_of_the_family_that_it_names():
    written = c.llama(layers=2, width=32, heads=4, vocab_size=50, context=16, rope=c.rope(kind="linear", factor=2.0))
    written.kv_heads, written.rope.factor = 2, 4.0  # as the command line would
    spec = parse(DecoderSpec, written.to_dict(), "model")
    assert spec == dataclasses.replace(SMALL, kv_heads=2, rope=RopeSpec("linear", 4.0))
    assert parse(DecoderSpec, json.loads(json.dumps(to_dict(spec))), "model") == spec
    neox = c.model(layers=2, width=32, heads=4, vocab_size=50, context=16)
    assert type(parse(DecoderSpec, neox.to_dict(), "model")) is ModelSpec
    for raw, message in (
        (to_dict(spec) | {"rotary_fraction": 0.5}, r"model\.rotary_fraction: no such field.*kv_heads"),
        (to_dict(spec) | {"rope": {"kinds": "yarn"}}, r"model\.rope\.kinds: no such field; did you mean 'kind'"),
        (to_dict(spec) | {"family": "lama"}, r"model\.family: no 'lama' in cpt\.models; did you mean 'llama'"),
        (to_dict(SMALL) | {"family": "gpt_neox"}, r"model\.kv_heads: no such field.*rotary_fraction"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse(DecoderSpec, raw, "model")
    with pytest.raises(ConfigError, match=r"LlamaSpec\.gelu: no such field"):
        c.llama(gelu="tanh")
