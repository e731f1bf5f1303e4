"""What a decoder must do whatever its weights: see no future, keep documents apart, start near log V, shard."""

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

from cpt.errors import ConfigError
from cpt.models.base import build
from cpt.models.spec import ModelSpec, parameter_count
from cpt.objectives.cross_entropy import cross_entropy

SPEC = ModelSpec(layers=2, width=32, heads=4, vocab_size=64, context=24, rotary_fraction=0.5)


def tokens(seed: int, batch: int, length: int, vocab: int = 64) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(0, vocab, (batch, length)))


def loud(spec: ModelSpec = SPEC, seed: int = 0):
    """A model whose every parameter matters: all are noise, norm scales and biases included."""
    model = build(spec)
    rng = np.random.default_rng(seed)
    return model, jax.tree.map(lambda x: jnp.asarray(0.25 * rng.standard_normal(x.shape, np.float32)), model.abstract())


@partial(jax.jit, static_argnums=0)
def hidden_states(model, params, tokens_BxL, segments_BxL=None):
    return model.apply(params, tokens_BxL, segments_BxL)


@partial(jax.jit, static_argnums=0)
def mean_nll(model, params, tokens_BxL, segments_BxL=None):
    hidden = model.apply(params, tokens_BxL[:, :-1], segments_BxL)
    return cross_entropy(hidden, model.head(params), tokens_BxL[:, 1:]).mean()


def test_tree_of_parameters():
    model = build(SPEC)
    params = model.init(jax.random.key(0))
    flat = {"/".join(k.key for k in path): x for path, x in jax.tree_util.tree_leaves_with_path(params)}
    block = {
        "ln_attn/scale": (32,),
        "ln_attn/bias": (32,),
        "attention/qkv/kernel": (32, 4, 3, 8),
        "attention/qkv/bias": (4, 3, 8),
        "attention/out/kernel": (4, 8, 32),
        "attention/out/bias": (32,),
        "ln_mlp/scale": (32,),
        "ln_mlp/bias": (32,),
        "mlp/up/kernel": (32, 128),
        "mlp/up/bias": (128,),
        "mlp/down/kernel": (128, 32),
        "mlp/down/bias": (32,),
    }
    shapes = {f"layers/{i}/{name}": shape for i in range(2) for name, shape in block.items()}
    shapes |= {"embed/embedding": (64, 32), "ln_final/scale": (32,), "ln_final/bias": (32,), "head/kernel": (32, 64)}
    assert {name: x.shape for name, x in flat.items()} == shapes
    assert all(isinstance(x, jax.Array) and x.dtype == jnp.float32 for x in flat.values())
    assert sum(x.size for x in flat.values()) == parameter_count(SPEC)
    assert model.head(params) is params["head"]["kernel"]


def test_abstract_and_logical_axes_mirror_init():
    model = build(SPEC)
    shapes, abstract = jax.eval_shape(model.init, jax.random.key(0)), model.abstract()
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(lambda x: (x.shape, x.dtype), abstract)
    axes = model.logical_axes()
    sizes = {"vocab": 64, "embed": 32, "heads": 4, "head_dim": 8, "mlp": 128, None: 3}
    jax.tree.map(lambda x, names: _assert_sizes(x.shape, [sizes[n] for n in names]), abstract, axes)
    assert axes["layers"]["1"]["attention"]["qkv"]["kernel"] == ("embed", "heads", None, "head_dim")
    assert axes["embed"]["embedding"] == ("vocab", "embed") and axes["head"]["kernel"] == ("embed", "vocab")


def _assert_sizes(shape, sizes):
    assert list(shape) == sizes


@pytest.mark.parametrize(("layers", "width", "heads"), [(6, 128, 4), (24, 1024, 16)])
def test_counts_of_the_real_tree_at_pythia_sizes(layers, width, heads):
    spec = ModelSpec(layers=layers, width=width, heads=heads, vocab_size=50304, context=2048)
    model = build(spec)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) == parameter_count(spec)
    assert jax.tree.structure(shapes) == jax.tree.structure(model.abstract())


def test_initial_standard_deviations_are_those_of_gpt_neox():
    """Pythia-14m: small-init .0559, Wang .02946."""
    spec = ModelSpec(layers=6, width=128, heads=4, vocab_size=512, context=8)
    params = build(spec).init(jax.random.key(0))
    for i in range(6):
        block = params["layers"][str(i)]
        for inward in (block["attention"]["qkv"], block["mlp"]["up"]):
            assert inward["kernel"].std() == pytest.approx(0.0559, rel=0.03)
        for outward in (block["attention"]["out"], block["mlp"]["down"]):
            assert outward["kernel"].std() == pytest.approx(0.02946, rel=0.03)
        assert not any(x.any() for x in (block["attention"]["qkv"]["bias"], block["ln_attn"]["bias"]))
        assert (block["ln_mlp"]["scale"] == 1).all()
    assert params["embed"]["embedding"].std() == pytest.approx(0.0559, rel=0.03)
    assert params["head"]["kernel"].std() == pytest.approx(0.0559, rel=0.03)
    blocks = [params["layers"][str(i)]["mlp"]["up"]["kernel"] for i in range(2)]
    assert not np.allclose(blocks[0], blocks[1])


def test_one_standard_deviation_for_everything():
    params = build(dataclasses.replace(SPEC, width=128, layers=6, vocab_size=512, init_std=0.02)).init(
        jax.random.key(0)
    )
    block = params["layers"]["0"]
    for kernel in (block["attention"]["out"]["kernel"], block["mlp"]["up"]["kernel"], params["head"]["kernel"]):
        assert kernel.std() == pytest.approx(0.02, rel=0.03)


def test_init_is_a_function_of_its_key():
    model = build(dataclasses.replace(SPEC, layers=1))
    eager, jitted = model.init(jax.random.key(3)), jax.jit(model.init)(jax.random.key(3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), eager, jitted)
    other = model.init(jax.random.key(4))
    assert not np.allclose(eager["head"]["kernel"], other["head"]["kernel"])


def test_no_token_sees_the_future():
    model, params = loud()
    before = tokens(0, 2, 20)
    t = 11
    after = before.at[:, t].set((before[:, t] + 1) % 64)
    a, b = hidden_states(model, params, before), hidden_states(model, params, after)
    assert (a[:, :t] == b[:, :t]).all()
    assert (jnp.abs(a[:, t:] - b[:, t:]).max(axis=(0, 2)) > 1e-4).all()  # and everything later does see it


def test_packed_documents_are_as_if_alone():
    """Positions run through the row; rotary makes only distances count, so a document does not know where it starts."""
    model, params = loud(dataclasses.replace(SPEC, rotary_fraction=1.0))
    row = tokens(1, 1, 24)
    segments = jnp.array([[0] * 9 + [1] * 10 + [2] * 5])
    packed = hidden_states(model, params, row, segments)
    for start, stop in ((0, 9), (9, 19), (19, 24)):
        alone = hidden_states(model, params, row[:, start:stop])
        np.testing.assert_allclose(packed[:, start:stop], alone, atol=1e-5)
    assert float(jnp.abs(packed - hidden_states(model, params, row))[:, 9:].max()) > 1e-2  # unmasked they do differ


@pytest.mark.parametrize(
    "change", [{"parallel_residual": False}, {"gelu": "exact"}, {"rotary_fraction": 0.0}, {"rotary_base": 100.0}]
)
def test_every_option_changes_the_function(change):
    model, params = loud()
    other = build(dataclasses.replace(SPEC, **change))
    row = tokens(2, 2, 24)
    assert float(jnp.abs(hidden_states(model, params, row) - hidden_states(other, params, row)).max()) > 1e-5


def test_fresh_model_knows_nothing():
    """Loss of uniform guessing plus half the variance of the logits, sqrt(2/5)^2 / 2 = 0.2 nats under small-init."""
    model = build(dataclasses.replace(SPEC, width=128, vocab_size=1000))
    loss = float(mean_nll(model, model.init(jax.random.key(0)), tokens(3, 16, 25, 1000)))
    assert loss == pytest.approx(math.log(1000) + 0.2, abs=0.1)


def test_gradients_reach_every_parameter():
    row, segments = tokens(4, 2, 25), jnp.broadcast_to(jnp.arange(24) // 7, (2, 24))
    model, params = loud(dataclasses.replace(SPEC, layers=1))
    for grad in jax.tree.leaves(jax.grad(mean_nll, argnums=1)(model, params, row, segments)):
        assert jnp.isfinite(grad).all() and jnp.abs(grad).max() > 0


def test_bfloat16_computes_in_bfloat16_from_float32_parameters():
    model, params = loud()
    half = build(dataclasses.replace(SPEC, compute_dtype="bfloat16"))
    row = tokens(5, 2, 24)
    hidden, exact = hidden_states(half, params, row), hidden_states(model, params, row)
    assert hidden.dtype == jnp.bfloat16 and exact.dtype == jnp.float32
    assert 1e-4 < float(jnp.abs(hidden - exact).mean()) < 0.05 * float(jnp.abs(exact).mean())
    found = products(half.apply, params, row)
    assert len(found) == 2 * 6  # four dense products and two of attention in each block
    assert all(v.aval.dtype == jnp.bfloat16 for e in found for v in e.invars)
    grads = jax.grad(mean_nll, argnums=1)(half, params, tokens(5, 2, 25))
    assert all(g.dtype == jnp.float32 and jnp.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_rows_beyond_the_context_are_refused():
    model, params = loud()
    with pytest.raises(ConfigError, match=r"model\.context: rows of 25 tokens do not fit in 24"):
        model.apply(params, tokens(6, 1, 25))


def test_an_id_beyond_the_vocabulary_is_loud():
    model, params = loud()
    row = tokens(6, 2, 8).at[1, 3].set(64)
    hidden = hidden_states(model, params, row)
    assert jnp.isfinite(hidden[0]).all() and jnp.isnan(hidden[1, 3]).all()


SHARDED = """
import dataclasses, re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from cpt.models.base import build
from cpt.models.spec import ModelSpec
from cpt.objectives.cross_entropy import cross_entropy

model = build(ModelSpec(layers=2, width=32, heads=4, vocab_size=64, context=24))
mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
rules = {"embed": "fsdp", "vocab": "tensor", "heads": "tensor", "mlp": "tensor", "head_dim": None, None: None}
shardings = jax.tree.map(lambda _, axes: NamedSharding(mesh, P(*(rules[a] for a in axes))), model.abstract(),
                         model.logical_axes())
rows = NamedSharding(mesh, P(("data", "fsdp")))
batch = jnp.asarray(np.random.default_rng(0).integers(0, 64, (8, 25)))

def step(params, batch):
    def loss(params):
        hidden = model.apply(params, batch[:, :-1])
        return cross_entropy(hidden, model.head(params), batch[:, 1:], rows_per_chunk=48).mean()
    value, grads = jax.value_and_grad(loss)(params)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value

params = model.init(jax.random.key(0))
alone, loss_alone = jax.jit(step)(params, batch)
sharded = jax.device_put(params, shardings)
run = jax.jit(step, donate_argnums=0, in_shardings=(shardings, rows), out_shardings=(shardings, None))
spread, loss_spread = run(sharded, jax.device_put(batch, rows))
np.testing.assert_allclose(loss_spread, loss_alone, rtol=1e-6)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), alone, spread)
kernel = spread["layers"]["0"]["attention"]["qkv"]["kernel"]
assert len(kernel.addressable_shards) == 8 and kernel.addressable_shards[0].data.shape == (16, 2, 3, 8)
assert all(x.is_deleted() for x in jax.tree.leaves(sharded)), "not donated"
made = jax.jit(model.init, out_shardings=shardings)(jax.random.key(0))
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), made, params)
print("equal on", jax.device_count(), "devices")
"""


@pytest.mark.slow
def test_a_sharded_donated_step_equals_one_device():
    """In a process of its own: the number of CPU devices is fixed when JAX starts."""
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED], env={**os.environ, **flags}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "equal on 8 devices" in done.stdout
