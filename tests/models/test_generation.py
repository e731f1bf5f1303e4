"""Decoding with kept keys and values, against the full forward; drawing, against its distribution."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cpt.data.tokenizers.byte import ByteTokenizer
from cpt.errors import ConfigError
from cpt.evaluators.scored_windows import HarnessModel, Stop, model_follow, model_scores
from cpt.models.base import Model, build
from cpt.models.cache import Cache
from cpt.models.generation import Sampling, can_generate, choose, generate, padded
from cpt.models.rope import RopeSpec
from cpt.models.spec import LlamaSpec, ModelSpec

ROOT = Path(__file__).resolve().parents[2]
CONTEXT, VOCAB = 40, 61
LLAMA = partial(LlamaSpec, layers=2, width=24, heads=4, head_dim=10, ff=40, vocab_size=VOCAB, context=CONTEXT)
ROPE = dict(factor=4.0, original_context=16)
SPECS = {
    "pythia": ModelSpec(layers=2, width=32, heads=4, vocab_size=VOCAB, context=CONTEXT),
    "sequential": ModelSpec(
        layers=2, width=32, heads=4, vocab_size=VOCAB, context=CONTEXT, parallel_residual=False, rotary_fraction=1.0
    ),
    "grouped, llama3": LLAMA(kv_heads=2, rope=RopeSpec(kind="llama3", **ROPE), tied=True),
    "one head of keys, linear, qwen3": LLAMA(kv_heads=1, rope=RopeSpec(kind="linear", factor=4.0), qk_norm="head"),
    "yarn, olmo2": LLAMA(
        kv_heads=4, rope=RopeSpec(kind="yarn", **ROPE), qk_norm="width", norm_placement="after", bias="attention"
    ),
}
PROMPTS, WANTED = (3, 17, 1, 33), (20, 23, 39, 7)  # two of them to the end of the context


def loud(spec, seed=0):
    """A model whose every parameter matters: all are noise."""
    model, rng = build(spec), np.random.default_rng(seed)

    def noise(path, leaf):
        # Loud biases would make one token the likeliest everywhere.
        std, mean = {"bias": (0.02, 0.0), "scale": (0.2, 1.0)}.get(path[-1].key, (0.4, 0.0))
        return jnp.asarray(mean + std * rng.standard_normal(leaf.shape), jnp.float32)

    return model, jax.tree_util.tree_map_with_path(noise, model.abstract())


def prompts(seed=1, vocab=VOCAB):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab, n).tolist() for n in PROMPTS]


@partial(jax.jit, static_argnums=0)
def logits(model, params, tokens_BxL):
    return model.apply(params, tokens_BxL) @ model.head(params)


@pytest.mark.parametrize("name", SPECS)
def test_greedy_is_the_argmax_of_the_full_forward_at_every_position(name):
    model, params = loud(SPECS[name])
    given = prompts()
    out_TxR = np.stack(list(generate(model, params, given, WANTED)))
    assert out_TxR.shape == (max(WANTED), len(given))
    for row, (prompt, wanted) in enumerate(zip(given, WANTED, strict=True)):
        ids = np.array([[*prompt, *out_TxR[:wanted, row]]])
        full_LxV = np.asarray(logits(model, params, np.pad(ids, ((0, 0), (0, CONTEXT - ids.shape[1]))))[0])
        at = slice(len(prompt) - 1, len(prompt) - 1 + wanted)
        # Two ways to the same numbers may part where the best two are as good as equal.
        chosen = full_LxV[at][np.arange(wanted), out_TxR[:wanted, row]]
        np.testing.assert_allclose(chosen, full_LxV[at].max(-1), atol=1e-4)
        assert (full_LxV[at].argmax(-1) == out_TxR[:wanted, row]).mean() > 0.95
    assert len({tuple(column) for column in out_TxR.T.tolist()}) == len(given)


@pytest.mark.parametrize("name", ["pythia", "yarn, olmo2"])
def test_hidden_states_are_those_of_the_whole_row(name):
    """Read at once, or in pieces; and of a row whose first piece ended with padding."""
    model, params = loud(SPECS[name])
    decode = jax.jit(model.decode)
    tokens_BxL = np.random.default_rng(2).integers(0, VOCAB, (2, 21))
    expected = np.asarray(jax.jit(model.apply)(params, tokens_BxL))
    cache, got = Cache.empty(2, 32), []
    for piece in np.split(tokens_BxL, 3, axis=1):
        hidden, cache = decode(params, piece, cache)
        cache.used_B = cache.used_B + 7
        got.append(hidden)
    np.testing.assert_allclose(np.concatenate(got, axis=1), expected, atol=1e-5)
    assert [k.shape for k in cache.keys] == [(2, model.spec.kv_heads, 32, model.spec.head_dim)] * 2
    padded_row = np.stack([tokens_BxL[0, :7], [*tokens_BxL[1, :5], 0, 0]])
    _, cache = decode(params, padded_row, Cache.empty(2, 32))
    cache.used_B = jnp.array([7, 5])
    hidden, _ = decode(params, np.stack([tokens_BxL[0, 7:14], tokens_BxL[1, 5:12]]), cache)
    np.testing.assert_allclose(hidden, [expected[0, 7:14], expected[1, 5:12]], atol=1e-5)


def chi_square(counts, p):
    expected = p * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.3, 0.8)])
def test_draws_follow_the_distribution(temperature, top_p):
    """20,000 rows of one distribution over 12 tokens; the 99.9 % point of chi-square with 11 degrees is 31.3."""
    logits_V, n = np.random.default_rng(3).standard_normal(12), 20_000
    p = np.exp(logits_V / temperature) / np.exp(logits_V / temperature).sum()
    order = np.argsort(-p)
    kept = order[: np.searchsorted(np.cumsum(p[order]), top_p) + 1] if top_p < 1 else order
    q = np.where(np.isin(np.arange(12), kept), p, 0) / p[kept].sum()
    rows_RxV = jnp.asarray(np.tile(logits_V, (n, 1)), jnp.float32)
    drawn = np.asarray(choose(rows_RxV, temperature, top_p, np.uint32(5), jnp.zeros(n, jnp.int32)))
    counts = np.bincount(drawn, minlength=12)
    assert set(np.flatnonzero(counts)) <= set(kept) and (len(kept) < 12) == (top_p < 1)
    assert chi_square(counts[kept], q[kept]) < 31.3
    if temperature == 1.0:
        assert chi_square(counts[kept], np.full(12, 1 / 12)) > 31.3


def test_a_draw_depends_on_seed_row_and_place_alone():
    model, params = loud(ModelSpec(layers=1, width=32, heads=4, vocab_size=VOCAB, context=CONTEXT))
    (prompt, *_) = prompts()

    def texts(rows, seed, tokens=12):
        sampling = Sampling(temperature=1.0, seed=seed)
        return np.stack(list(generate(model, params, [prompt] * rows, [tokens] * rows, sampling))).T.tolist()

    three = texts(3, 0)
    assert texts(3, 0) == three and [t[:5] for t in three] == texts(3, 0, 5)
    assert texts(1, 0) == three[:1] and len({tuple(t) for t in [*three, *texts(3, 1)]}) == 6


def test_the_likeliest_token_is_always_among_those_drawn_from():
    rows_RxV = jnp.asarray(np.random.default_rng(6).standard_normal((50, 12)), jnp.float32)
    drawn = choose(rows_RxV, 1.0, 1e-6, np.uint32(0), jnp.arange(50))
    np.testing.assert_array_equal(drawn, rows_RxV.argmax(-1))


def test_what_does_not_fit_or_cannot_be_is_one_line():
    model, params = loud(SPECS["pythia"])
    for prompt, tokens, line in (
        ([1] * 30, 11, r"tokens: 11 after a prompt of 30 do not fit in the model's context of 40; ask for at most 10"),
        ([1] * 41, 1, r"do not fit in the model's context of 40; shorten the prompt"),
        ([], 1, r"prompt: no token in it"),
    ):
        with pytest.raises(ConfigError, match=line):
            generate(model, params, [[1], prompt], [1, tokens])
    for fields, line in (
        (dict(temperature=-1), "temperature: -1 must"),
        (dict(temperature=float("nan")), "temperature: nan must"),
        (dict(top_p=0), "top_p: 0 must"),
        (dict(top_p=1.5), "top_p: 1.5 must"),
        (dict(seed=-1), "seed: -1 must"),
    ):
        with pytest.raises(ConfigError, match=line):
            Sampling(**fields)
    assert [padded(n, 100) for n in (1, 32, 33, 64, 65, 100)] == [32, 32, 64, 64, 100, 100]

    class own:
        """A family of a user's own, which keeps nothing."""

    with pytest.raises(ConfigError, match=r"'gpt_neox' has no method `decode`"):
        generate(Model(model.spec, own), params, [[1]], [1])
    assert model_follow(Model(model.spec, own), params) is None


def test_the_harness_gets_the_same_continuations_with_and_without():
    model, params = loud(ModelSpec(layers=1, width=32, heads=4, vocab_size=260, context=CONTEXT), seed=4)
    asked = dict(scores=model_scores(model, params), tokenizer=ByteTokenizer(), context=CONTEXT, rows=3)
    calls = []
    follow = model_follow(model, params)

    def counted(prompts, tokens):
        calls.append(len(prompts))
        return follow(prompts, tokens)

    given = [*prompts(5, 256), [7] * 60, [9], [1, 2]]
    stops = [Stop(9), Stop(12, ("a", "e")), Stop(0), Stop(5), Stop(30), Stop(1000), Stop(3)]
    plain = HarnessModel(**asked).continuations(given, stops)
    assert HarnessModel(**asked, follow=counted).continuations(given, stops) == plain
    assert calls == [3, 3, 3] and plain[2] == "" and len(set(plain)) > 4


ON_FOUR = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from cpt.models.base import build
from cpt.models.generation import generate
from cpt.models.spec import LlamaSpec
from cpt.training.sharding import BATCH, make_mesh, parameter_shardings
from cpt.config import MeshSpec
model = build(LlamaSpec(layers=2, width=32, heads=4, kv_heads=2, ff=48, vocab_size=64, context=40))
rng = np.random.default_rng(0)
params = jax.tree.map(lambda x: 0.4 * rng.standard_normal(x.shape, np.float32), model.abstract())
prompts, wanted = [[1, 2, 3], [4], [5] * 20, [6, 7]], [20, 9, 20, 15]
one = np.stack(list(generate(model, params, prompts, wanted)))
mesh = make_mesh(MeshSpec(fsdp=2, tensor=2), 4)
spread = jax.device_put(params, parameter_shardings(mesh, model.logical_axes(), model.abstract()))
four = np.stack(list(generate(model.on(mesh), spread, prompts, wanted, sharding=NamedSharding(mesh, BATCH))))
print(jax.device_count(), (one == four).mean())
"""


@pytest.mark.slow
def test_rows_and_parameters_spread_over_devices_give_the_same():
    flags = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", ON_FOUR], env={**os.environ, **flags}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and done.stdout == "4 1.0\n", done.stdout + done.stderr[-2000:]


def test_an_attention_of_ones_own_is_not_looked_up_in_a_cache():
    """It may see other tokens than those that were kept; whoever continues a text then reads it from its beginning."""
    spec = ModelSpec(layers=1, width=16, heads=2, vocab_size=32, context=16)
    assert can_generate(build(spec))
    assert not can_generate(build(replace(spec, attention="cpt.models.attention.reference:reference")))
