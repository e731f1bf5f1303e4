"""How layers are run, whatever is in them: what is kept for the backward pass, in a row or in a loop, cast once."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cpt.models._spec import REMATS
from cpt.models.base import build
from cpt.models.spec import BY_HAND_FROM, LlamaSpec, ModelSpec
from cpt.objectives.cross_entropy import cross_entropy

SPECS = {
    "gpt_neox": ModelSpec(layers=2, width=32, heads=4, vocab_size=64, context=24, rotary_fraction=0.5),
    "llama": LlamaSpec(layers=2, width=32, heads=4, kv_heads=2, ff=64, vocab_size=64, context=24, qk_norm="head"),
    "tied": LlamaSpec(layers=2, width=32, heads=4, ff=64, vocab_size=64, context=24, tied=True),
}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 64, (2, 25)))
SEGMENTS = jnp.broadcast_to(jnp.arange(24) // 7, (2, 24))


def noise(spec):
    """Parameters that all matter, norm scales and biases included."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(0.25 * rng.standard_normal(x.shape, np.float32)), build(spec).abstract())


@partial(jax.jit, static_argnums=0)
def loss_and_gradients(model, params):
    def loss(params):
        hidden_BxLxD = model.apply(params, TOKENS[:, :-1], SEGMENTS)
        return cross_entropy(hidden_BxLxD, model.head(params), TOKENS[:, 1:]).mean()

    return jax.value_and_grad(loss)(params)


def residual_bytes(spec) -> int:
    """What the layers keep for the backward pass, their parameters not counted."""
    model, params = build(spec), noise(spec)
    _, back = jax.vjp(lambda p: model.apply(p, TOKENS[:, :-1]), params)
    own = {leaf.shape for leaf in jax.tree.leaves(params)}
    return sum(x.nbytes for x in jax.tree.leaves(back) if x.shape not in own)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("remat", REMATS)
@pytest.mark.parametrize("family", SPECS)
def test_loss_and_gradients_do_not_depend_on_how_layers_are_run(family, remat, scan):
    spec = SPECS[family]
    params = noise(spec)
    loss, grads = loss_and_gradients(build(spec), params)
    other = dataclasses.replace(spec, remat=remat, scan_layers=scan)
    other_loss, other_grads = loss_and_gradients(build(other), params)
    assert float(other_loss) == pytest.approx(float(loss), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), other_grads, grads)


@pytest.mark.parametrize("family", SPECS)
def test_what_is_computed_again_is_not_kept(family):
    kept = {remat: residual_bytes(dataclasses.replace(SPECS[family], remat=remat)) for remat in REMATS}
    assert kept["none"] > 1.5 * max(kept["names"], kept["dots"])
    assert min(kept["names"], kept["dots"]) > 1.5 * kept["full"]
    rows, width = 2 * 24, 32
    blocks_in = 2 * rows * width * 4
    assert blocks_in < kept["full"] < 2 * blocks_in  # the inputs of two blocks, tokens, and what the final norm keeps
    assert kept["offload"] <= kept["full"]


@pytest.mark.parametrize("length", [24, BY_HAND_FROM])
def test_names_keeps_what_products_gave(length):
    """Each once, whichever backward pass attention has."""
    spec = dataclasses.replace(SPECS["gpt_neox"], remat="names", context=length)
    tokens = jnp.zeros((2, length), jnp.int32)
    _, back = jax.vjp(lambda p: build(spec).apply(p, tokens), noise(spec))
    shapes, rows = [x.shape for x in jax.tree.leaves(back)], 2 * length
    kept = (rows, 4, 3, 8), (rows, 128), (2, 4, length, 8)
    assert [shapes.count(shape) for shape in kept] == [spec.layers] * 3


@pytest.mark.parametrize("family", SPECS)
def test_the_loop_holds_one_block(family):
    def products(scan: bool) -> int:
        spec = dataclasses.replace(SPECS[family], scan_layers=scan)
        program = jax.jit(build(spec).apply).lower(build(spec).abstract(), TOKENS[:, :-1]).as_text()
        return program.count("stablehlo.dot_general")

    assert products(False) == 2 * products(True) > 0


def test_many_layers_are_run_in_a_loop_unless_said_otherwise():
    def loops(**fields) -> bool:
        model = build(dataclasses.replace(SPECS["gpt_neox"], width=8, heads=1, vocab_size=8, **fields))
        return "scan" in str(jax.make_jaxpr(model.apply)(model.abstract(), TOKENS[:, :-1]))

    assert not loops(layers=32) and loops(layers=33) and not loops(layers=33, scan_layers=False)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("family", SPECS)
def test_casting_once_gives_the_bits_of_casting_at_every_product(family, scan):
    spec = dataclasses.replace(SPECS[family], compute_dtype="bfloat16", scan_layers=scan)
    model, params = build(spec), noise(spec)
    narrow = model.narrow(params)
    apply = jax.jit(model.apply)
    np.testing.assert_array_equal(apply(narrow, TOKENS[:, :-1]), apply(params, TOKENS[:, :-1]))
    dtypes = {"/".join(k.key for k in path): x.dtype for path, x in jax.tree_util.tree_leaves_with_path(narrow)}
    for name, dtype in dtypes.items():
        in_a_layer = name.endswith("kernel") and not name.startswith("head")
        assert dtype == (jnp.bfloat16 if in_a_layer else jnp.float32), name


def test_in_float32_nothing_is_cast():
    params = noise(SPECS["llama"])
    narrow = build(SPECS["llama"]).narrow(params)
    assert jax.tree.all(jax.tree.map(lambda a, b: a.dtype == b.dtype, narrow, params))
