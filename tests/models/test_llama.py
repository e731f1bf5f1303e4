"""What a Llama must do whatever its weights, and its equations written out once more in NumPy, float64."""

import dataclasses
import math
import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import products

from cpt.evaluators.probes.parameters import distances
from cpt.models.attention import attend
from cpt.models.base import build
from cpt.models.rope import RopeSpec
from cpt.models.spec import LlamaSpec, parameter_count
from cpt.objectives.cross_entropy import cross_entropy

SPEC = LlamaSpec(layers=2, width=24, heads=4, kv_heads=2, head_dim=10, ff=40, vocab_size=64, context=24, norm_eps=0.1)
OLMO2 = dict(qk_norm="width", norm_placement="after", bias="attention", kv_heads=4)
QWEN3 = dict(qk_norm="head", bias="qkv", tied=True, kv_heads=1)


def spec_of(**change):
    return dataclasses.replace(SPEC, **change)


def tokens(seed, batch, length):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 64, (batch, length)))


def loud(spec, seed=0):
    """A model whose every parameter matters: all are noise, norm scales and biases included."""
    model, rng = build(spec), np.random.default_rng(seed)
    return model, jax.tree.map(lambda x: jnp.asarray(0.4 * rng.standard_normal(x.shape, np.float32)), model.abstract())


@partial(jax.jit, static_argnums=0)
def hidden_states(model, params, tokens_BxL, segments_BxL=None):
    return model.apply(params, tokens_BxL, segments_BxL)


@partial(jax.jit, static_argnums=0)
def gradient(model, params, tokens_BxL, segments_BxL=None):
    def loss(params):
        hidden = model.apply(params, tokens_BxL[:, :-1], segments_BxL)
        return cross_entropy(hidden, model.head(params), tokens_BxL[:, 1:]).mean()

    return jax.grad(loss)(params)


def rms(x, scale, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale


def turn(x_LxK, base):
    half = x_LxK.shape[1] // 2
    pair = (x_LxK[:, :half] + 1j * x_LxK[:, half:]) * np.exp(
        1j * np.arange(len(x_LxK))[:, None] * base ** (-np.arange(half) / half)
    )
    return np.concatenate([pair.real, pair.imag], axis=1)


def attention(x_LxD, p, spec):
    """One query head at a time; head h reads the keys and values of head h * kv_heads / heads."""

    def projected(name):
        y = np.einsum("ld,dhk->lhk", x_LxD, p[name]["kernel"]) + p[name].get("bias", 0.0)
        if name == "v" or spec.qk_norm == "none":
            return y
        scale = p[f"norm_{name}"]["scale"]
        if spec.qk_norm == "head":
            return rms(y, scale, spec.norm_eps)
        return rms(y.reshape(len(y), -1), scale.reshape(-1), spec.norm_eps).reshape(y.shape)

    q, k, v = (projected(name) for name in "qkv")
    mixed = np.zeros((len(x_LxD), spec.heads, spec.head_dim))
    for h in range(spec.heads):
        g = h * spec.kv_heads // spec.heads
        logits = turn(q[:, h], spec.rotary_base) @ turn(k[:, g], spec.rotary_base).T / math.sqrt(spec.head_dim)
        weights = np.tril(np.exp(logits))
        mixed[:, h] = weights / weights.sum(1, keepdims=True) @ v[:, g]
    return np.einsum("lhk,hkd->ld", mixed, p["out"]["kernel"]) + p["out"].get("bias", 0.0)


def mlp(x_LxD, p):
    gate = x_LxD @ p["gate"]["kernel"]
    return (gate / (1 + np.exp(-gate)) * (x_LxD @ p["up"]["kernel"])) @ p["down"]["kernel"]


def decoder(tokens_L, params, spec):
    x = params["embed"]["embedding"][tokens_L]
    for i in range(spec.layers):
        p = params["layers"][str(i)]
        attn, ff = (partial(rms, scale=p[n]["scale"], eps=spec.norm_eps) for n in ("ln_attn", "ln_mlp"))
        if spec.norm_placement == "before":
            x = x + attention(attn(x), p["attention"], spec)
            x = x + mlp(ff(x), p["mlp"])
        else:
            x = x + attn(attention(x, p["attention"], spec))
            x = x + ff(mlp(x, p["mlp"]))
    return rms(x, params["ln_final"]["scale"], spec.norm_eps)


@pytest.mark.parametrize("change", [{}, OLMO2, QWEN3], ids=["llama", "olmo2", "qwen3"])
def test_decoder_is_its_equations(change):
    spec = spec_of(rotary_base=50.0, **change)
    model, params = loud(spec)
    rows = tokens(0, 2, 16)
    double = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    expected = np.stack([decoder(np.asarray(row), double, spec) for row in rows])
    np.testing.assert_allclose(hidden_states(model, params, rows), expected, atol=5e-5)
    head = double["embed"]["embedding"].T if spec.tied else double["head"]["kernel"]
    np.testing.assert_allclose(model.head(params), head, rtol=1e-6)


def test_tree_of_parameters():
    model = build(spec_of(**QWEN3))
    params = jax.eval_shape(model.init, jax.random.key(0))
    flat = {"/".join(k.key for k in path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(params)}
    block = {"ln_attn/scale": (24,), "ln_mlp/scale": (24,), "attention/out/kernel": (4, 10, 24)}
    block |= {"attention/q/kernel": (24, 4, 10), "attention/q/bias": (4, 10), "attention/norm_q/scale": (10,)}
    block |= {"attention/k/kernel": (24, 1, 10), "attention/k/bias": (1, 10), "attention/norm_k/scale": (10,)}
    block |= {"attention/v/kernel": (24, 1, 10), "attention/v/bias": (1, 10)}
    block |= {"mlp/gate/kernel": (24, 40), "mlp/up/kernel": (24, 40), "mlp/down/kernel": (40, 24)}
    shapes = {f"layers/{i}/{name}": shape for i in range(2) for name, shape in block.items()}
    assert flat == shapes | {"embed/embedding": (64, 24), "ln_final/scale": (24,)}
    axes = model.logical_axes()["layers"]["0"]["attention"]
    assert axes["q"]["kernel"] == ("embed", "heads", "head_dim") and axes["q"]["bias"] == ("heads", "head_dim")
    assert axes["k"]["kernel"] == axes["v"]["kernel"] == ("embed", "kv_heads", "head_dim")
    assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda x: x.shape, model.abstract())


@pytest.mark.parametrize("change", [{}, OLMO2, QWEN3, {"qk_norm": "width"}, {"tied": True, "bias": "qkv"}])
def test_counts_of_the_real_tree(change):
    spec = spec_of(**change)
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(build(spec).abstract())) == parameter_count(spec)


def test_shared_keys_are_those_of_a_row_of_query_heads():
    """With packed documents as well: as if each key head were copied for its queries."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((2, h, 21, 4)), jnp.float32) for h in (6, 2, 2))
    segments = jnp.asarray([[0] * 9 + [1] * 12, [0] * 21])
    for args in ((None,), (segments,)):
        copied = attend(q, jnp.repeat(k, 3, axis=1), jnp.repeat(v, 3, axis=1), *args)
        np.testing.assert_allclose(attend(q, k, v, *args), copied, atol=1e-6)


def test_no_token_sees_the_future_or_another_document():
    model, params = loud(spec_of(**QWEN3))
    before, t = tokens(1, 2, 20), 11
    after = before.at[:, t].set((before[:, t] + 1) % 64)
    a, b = hidden_states(model, params, before), hidden_states(model, params, after)
    assert (a[:, :t] == b[:, :t]).all() and (jnp.abs(a[:, t:] - b[:, t:]).max(axis=(0, 2)) > 1e-5).all()
    row, segments = tokens(1, 1, 24), jnp.array([[0] * 9 + [1] * 15])
    packed = hidden_states(model, params, row, segments)
    np.testing.assert_allclose(packed[:, 9:], hidden_states(model, params, row[:, 9:]), atol=1e-5)
    assert float(jnp.abs(packed - hidden_states(model, params, row))[:, 9:].max()) > 1e-2


@pytest.mark.parametrize(
    "change",
    [{"rotary_base": 100.0}, {"norm_placement": "after"}, {"rope": RopeSpec("linear", 2.0)}, {"norm_eps": 0.2}],
)
def test_every_option_changes_the_function(change):
    model, params = loud(SPEC)
    other, row = build(spec_of(**change)), tokens(2, 2, 24)
    assert float(jnp.abs(hidden_states(model, params, row) - hidden_states(other, params, row)).max()) > 1e-4


def test_gradients_reach_every_parameter():
    row, segments = tokens(4, 2, 25), jnp.broadcast_to(jnp.arange(24) // 7, (2, 24))
    model, params = loud(spec_of(layers=1, **QWEN3))
    for path, grad in jax.tree_util.tree_leaves_with_path(gradient(model, params, row, segments)):
        # What is added to every key alike adds the same to all logits of a query, so that the softmax takes it away;
        # not here, where a norm follows.
        assert jnp.isfinite(grad).all() and jnp.abs(grad).max() > 1e-7, path


def test_bfloat16_computes_in_bfloat16_from_float32_parameters():
    model, params = loud(spec_of(**OLMO2))
    half, row = build(spec_of(compute_dtype="bfloat16", **OLMO2)), tokens(5, 2, 24)
    hidden, exact = hidden_states(half, params, row), hidden_states(model, params, row)
    assert hidden.dtype == jnp.bfloat16 and exact.dtype == jnp.float32
    assert 1e-4 < float(jnp.abs(hidden - exact).mean()) < 0.1 * float(jnp.abs(exact).mean())
    found = products(half.apply, params, row)
    assert len(found) == 2 * 9  # seven dense products and two of attention in each block
    assert all(v.aval.dtype == jnp.bfloat16 for e in found for v in e.invars)


def test_a_fresh_model_knows_nothing():
    model = build(spec_of(width=128, head_dim=32, norm_eps=1e-5))
    params = model.init(jax.random.key(0))
    assert params["layers"]["0"]["attention"]["q"]["kernel"].std() == pytest.approx(math.sqrt(2 / (5 * 128)), rel=0.05)
    assert params["layers"]["0"]["mlp"]["down"]["kernel"].std() == pytest.approx(2 / (2 * math.sqrt(128)), rel=0.05)
    hidden = hidden_states(model, params, tokens(3, 16, 24))
    loss = float(cross_entropy(hidden, model.head(params), tokens(4, 16, 24)).mean())
    assert loss == pytest.approx(math.log(64) + 0.2, abs=0.1)


@pytest.mark.parametrize("change", [{}, OLMO2], ids=["before", "after"])
def test_attention_inputs_are_what_the_kernels_multiply(change):
    spec = spec_of(**change)
    model, params = loud(spec)
    row = tokens(6, 1, 12)
    first, kernels = model.attention_inputs(params, row)[0][0], model.attention_kernels(params)
    p = params["layers"]["0"]
    x = np.asarray(params["embed"]["embedding"])[np.asarray(row[0])]
    x = rms(x, np.asarray(p["ln_attn"]["scale"]), spec.norm_eps) if spec.norm_placement == "before" else x
    np.testing.assert_allclose(first, x, atol=1e-5)
    assert [w.shape for w in kernels] == [(24, (spec.heads + 2 * spec.kv_heads) * 10)] * 2
    values = (first @ kernels[0])[:, -spec.kv_heads * 10 :]
    np.testing.assert_allclose(
        values, np.einsum("ld,dhk->lhk", x, p["attention"]["v"]["kernel"]).reshape(12, -1), atol=1e-4
    )


def test_how_far_a_tied_head_moved_is_how_far_the_embedding_did():
    _, params = loud(spec_of(tied=True))
    moved = params | {"embed": jax.tree.map(lambda x: 1.5 * x, params["embed"])}
    values = distances(moved, params, 1)
    assert float(values["relative_head"]) == float(values["relative_embed"]) == pytest.approx(0.5)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from cpt.models.base import build
from cpt.models.spec import LlamaSpec
from cpt.objectives.cross_entropy import cross_entropy
from cpt.training.sharding import parameter_shardings

mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
rows = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
batch = jnp.asarray(np.random.default_rng(0).integers(0, 64, (8, 25)))
segments = jnp.broadcast_to(jnp.arange(24) // 9, (8, 24))

for kv_heads, tied, qk_norm in ((2, True, "width"), (1, False, "head")):
    spec = LlamaSpec(layers=2, width=32, heads=4, kv_heads=kv_heads, ff=48, vocab_size=64, context=24, tied=tied,
                     qk_norm=qk_norm, bias="qkv")
    model = build(spec)

    def step(params, batch):
        def loss(params):
            hidden = model.apply(params, batch[:, :-1], segments)
            return cross_entropy(hidden, model.head(params), batch[:, 1:], rows_per_chunk=48).mean()
        value, grads = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value

    shardings = parameter_shardings(mesh, model.logical_axes(), model.abstract())
    params = jax.jit(model.init)(jax.random.key(0))
    alone, loss_alone = jax.jit(step)(params, batch)
    run = jax.jit(step, in_shardings=(shardings, rows), out_shardings=(shardings, None))
    spread, loss_spread = run(jax.device_put(params, shardings), jax.device_put(batch, rows))
    np.testing.assert_allclose(loss_spread, loss_alone, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), alone, spread)
    attention = spread["layers"]["0"]["attention"]
    shapes = {n: attention[n]["kernel"].addressable_shards[0].data.shape for n in "qk"}
    assert shapes == {"q": (16, 2, 8), "k": (16, 1, 8)}, shapes
print("equal on", jax.device_count(), "devices")
"""


@pytest.mark.slow
def test_a_sharded_step_equals_one_device():
    """Also where the tensor axis divides the query heads and not those of keys and values: these stay whole."""
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED], env={**os.environ, **flags}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "equal on 8 devices" in done.stdout
