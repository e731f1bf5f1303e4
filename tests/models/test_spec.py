"""Sizes and costs against the published tables, and the contradictions a spec refuses."""

import dataclasses

import pytest

from cpt.errors import ConfigError
from cpt.models.spec import ModelSpec, flops_per_token, parameter_count

# name: layers, width, heads, d_ff, parameters, non-embedding parameters (EleutherAI/pythia, README and models/*.yml)
PYTHIA = {
    "14m": (6, 128, 4, 512, 14_067_712, 1_189_888),
    "31m": (6, 256, 8, 1024, 30_494_720, 4_739_072),
    "70m": (6, 512, 8, 2048, 70_426_624, 18_915_328),
    "160m": (12, 768, 12, 3072, 162_322_944, 85_056_000),
    "410m": (24, 1024, 16, 4096, 405_334_016, 302_311_424),
    "1b": (16, 2048, 8, 8192, 1_011_781_632, 805_736_448),
    "1.4b": (24, 2048, 16, 8192, 1_414_647_808, 1_208_602_624),
}
# GFLOP per token at 2,048 tokens: whole square (PaLM), causal half
GFLOP = {
    "70m": (0.3433, 0.3055),
    "160m": (0.9679, 0.8547),
    "410m": (2.7250, 2.4231),
    "1b": (6.2553, 5.8528),
    "1.4b": (9.0739, 8.4702),
}


def pythia(name: str) -> ModelSpec:
    layers, width, heads, *_ = PYTHIA[name]
    return ModelSpec(layers=layers, width=width, heads=heads, vocab_size=50304, context=2048)


@pytest.mark.parametrize("name", PYTHIA)
def test_parameter_counts_of_pythia(name):
    *_, ff, total, body = PYTHIA[name]
    spec = pythia(name)
    assert spec.ff_dim == ff
    assert parameter_count(spec) == total
    assert parameter_count(spec, embedding=False) == body


@pytest.mark.parametrize("name", GFLOP)
def test_flops_per_token_of_pythia(name):
    palm, causal = GFLOP[name]
    assert flops_per_token(pythia(name), 2048, "palm") / 1e9 == pytest.approx(palm, abs=5.1e-5)
    assert flops_per_token(pythia(name), 2048) / 1e9 == pytest.approx(causal, abs=5.1e-5)


def test_flops_of_410m_to_every_printed_digit():
    assert f"{flops_per_token(pythia('410m'), 2048, 'palm') / 1e9:.4f}" == "2.7250"
    assert f"{flops_per_token(pythia('410m'), 2048, 'causal') / 1e9:.4f}" == "2.4231"


def test_flops_count_the_given_inner_dimension_and_length():
    spec = ModelSpec(layers=1, width=4, heads=1, ff=10, vocab_size=7, context=8, rotary_fraction=0.5)
    # forward matmuls of one token: qkv 2*4*12, out 2*4*4, up and down 2*4*10 each, logits 2*4*7; times 3 with backward
    matmuls = 3 * (2 * 4 * 12 + 2 * 4 * 4 + 2 * 2 * 4 * 10 + 2 * 4 * 7)
    # two attention products, 2*4 each per visible token, and a token of a row of 8 sees 4.5 on average
    assert flops_per_token(spec, 8) == matmuls + 3 * 2 * 2 * 4 * 4.5
    assert flops_per_token(spec, 8, "palm") == matmuls + 3 * 2 * 2 * 4 * 8


SMALL = ModelSpec(layers=2, width=32, heads=4, vocab_size=50, context=16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, "model.heads: 5 does not divide model.width = 32"),
        ({"layers": 0}, "model.layers: 0 must be"),
        ({"width": 32.0}, "model.width: 32.0 must be"),
        ({"layers": True}, "model.layers: True must be"),
        ({"ff": -1}, "model.ff: -1 must be"),
        ({"rotary_fraction": 0.4}, "model.rotary_fraction: 0.4 of 8 channels per head rotates 3"),
        ({"rotary_fraction": 1.5}, "model.rotary_fraction: 1.5 must be between 0 and 1"),
        ({"norm_eps": 0.0}, "model.norm_eps: 0.0 must be positive"),
        ({"init_std": -0.02}, "model.init_std: -0.02 must be positive"),
        ({"gelu": "tanhh"}, "model.gelu: no 'tanhh'; did you mean 'tanh'?"),
        ({"compute_dtype": "bf16"}, "did you mean 'bfloat16'?"),
        ({"remat": "some"}, "there are: none, names, dots, full, offload"),
        ({"parallel_residual": "no"}, "model.parallel_residual: 'no' must be True or False"),
    ],
)
def test_contradictions_are_refused_in_one_line(change, message):
    with pytest.raises(ConfigError) as error:
        dataclasses.replace(SMALL, **change)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_way_to_count_attention():
    with pytest.raises(ConfigError, match="did you mean 'causal'"):
        flops_per_token(SMALL, 16, "casual")


def test_rotary_may_be_absent_or_whole():
    assert dataclasses.replace(SMALL, rotary_fraction=0.0).rotary_dim == 0
    assert dataclasses.replace(SMALL, rotary_fraction=1.0).rotary_dim == 8
