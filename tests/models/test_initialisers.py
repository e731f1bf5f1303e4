"""Initialisers that grow a model: the function, or the blocks, that they promise to keep; and what they refuse."""

import re
from dataclasses import replace

import initialiser_cases as cases
import jax
import numpy as np
import pytest

from cpt.errors import ConfigError
from cpt.models import base
from cpt.models.growing import grow
from cpt.models.spec import LlamaSpec, ModelSpec

HEADS_8 = dict(width=64, heads=8)
WIDER = {
    "neox": dict(HEADS_8),
    "neox sequential": dict(HEADS_8, ff=240),
    "llama": dict(HEADS_8, kv_heads=4, ff=96),
    "tied, one key": dict(HEADS_8, kv_heads=1, head_dim=8, ff=48),
    "qwen": dict(width=96, heads=4, kv_heads=4, head_dim=8, ff=96),
    "olmo 2": dict(HEADS_8, kv_heads=8, ff=96),
}
# Widths, heads, keys and MLP channels that do not divide; 72 = 2 x 32 + 8, so that norms see 8/9 of the variance.
EPSILON = 0.09
ODD = dict(width=72, norm_eps=EPSILON * 64 / 72)
LEMON = {
    "neox": dict(ODD, heads=9, ff=200, layers=5),
    "neox sequential": dict(ODD, heads=9, ff=81, layers=3),
    "llama": dict(ODD, heads=10, kv_heads=5, head_dim=8, ff=70, layers=3),
    "tied, one key": dict(ODD, heads=5, kv_heads=1, head_dim=8, ff=50, layers=2),
    "qwen": dict(ODD, heads=14, kv_heads=7, head_dim=8, ff=49, layers=4),
    "olmo 2": dict(ODD, heads=8, kv_heads=4, head_dim=8, ff=49, layers=3),
}
ZERO = {"zero": ("lemon", {}), "pro": ("llama_pro", {}), "tli": ("tli", {"init": "copy_previous_zero_output"})}


def grown(kind, source, options=None, seed=0, **sizes):
    """(spec and parameters of the source, spec and parameters of the result)."""
    params, target = cases.made_up(source, seed), replace(source, **sizes)
    return (source, params), (target, grow(kind, [(source, params)], target, options))


def difference(before, after):
    a, b = cases.logits(*before), cases.logits(*after)
    assert np.ptp(a) > 1  # logits of a model that does something
    return np.abs(a - b).max()


@pytest.mark.parametrize("name", cases.SPECS)
def test_hypercloning_keeps_the_logits(name):
    before, after = grown("hypercloning", cases.SPECS[name], **WIDER[name])
    assert difference(before, after) < 1e-5
    noisy = grow("hypercloning", [before], after[0], {"snr_db": 5.0, "seed": 3})
    assert difference(before, (after[0], noisy)) < 1e-5
    # Noise of -5 dB on the clones of units, but in no sum over them.
    a, b = (tree["layers"]["1"]["mlp"]["up"]["kernel"] for tree in (after[1], noisy))
    assert np.square(a - b).mean() / np.square(a).mean() == pytest.approx(10**-0.5, rel=0.15)


def test_a_hypercloned_matrix_is_tiled_and_divided():
    (_, small), (_, large) = grown("hypercloning", cases.NEOX, **HEADS_8, ff=384)
    of = lambda tree, *keys: tree["layers"]["0"]["mlp"][keys[0]][keys[1]]  # noqa: E731
    assert np.allclose(of(large, "up", "kernel"), np.tile(of(small, "up", "kernel"), (2, 3)) / 2)
    assert np.allclose(of(large, "down", "kernel"), np.tile(of(small, "down", "kernel"), (3, 2)) / 3)
    assert np.array_equal(of(large, "down", "bias"), np.tile(of(small, "down", "bias"), 2))
    assert np.array_equal(large["embed"]["embedding"], np.tile(small["embed"]["embedding"], (1, 2)))
    qkv, wide = (tree["layers"]["0"]["attention"]["qkv"]["kernel"] for tree in (small, large))
    assert wide.shape == (64, 8, 3, 8) and np.allclose(wide, np.tile(qkv, (2, 2, 1, 1)) / 2)


@pytest.mark.parametrize("name", cases.SPECS)
def test_lemon_keeps_the_logits_at_sizes_that_do_not_divide(name):
    # An epsilon that counts, in the norms of queries and keys too.
    before, after = grown("lemon", replace(cases.SPECS[name], norm_eps=EPSILON), **LEMON[name])
    assert difference(before, after) < 1e-5


@pytest.mark.parametrize("name", ["neox", "llama", "qwen"])
def test_lemon_blocks_whose_halves_cancel_keep_the_logits(name):
    before, after = grown("lemon", cases.SPECS[name], {"blocks": "cancel"}, layers=5)
    assert difference(before, after) < 1e-5
    new = after[1]["layers"]["1"]
    down = new["mlp"]["down"]["kernel"]
    assert np.abs(down).max() > 0.1 and np.array_equal(down[: len(down) // 2], -down[len(down) // 2 :])


def test_lemon_cancels_within_a_group_where_keys_cannot_be_paired():
    before, after = grown("lemon", cases.SPECS["tied, one key"], {"blocks": "cancel"}, layers=4)
    assert difference(before, after) < 1e-5
    out = after[1]["layers"]["3"]["attention"]["out"]["kernel"]
    assert np.abs(out).max() > 0.1 and np.array_equal(out[:2], -out[2:])


def test_copies_that_lemon_makes_get_different_gradients():
    """Which is what its unequal shares are for; those of hypercloning are the same for ever."""
    source, target = cases.NEOX, replace(cases.NEOX, ff=256)
    params, model = cases.made_up(source), base.build(target)

    def loss(tree):
        return (model.apply(tree, cases.TOKENS) @ model.head(tree))[..., 0].var()

    gradient = cases.quick(jax.grad(loss), model.abstract())
    for kind, unequal in (("hypercloning", False), ("lemon", True)):
        up = gradient(grow(kind, [(source, params)], target))["layers"]["0"]["mlp"]["up"]["kernel"]
        assert (np.abs(up[:, :128] - up[:, 128:]).max() > 1e-2 * np.abs(up).max()) == unequal


@pytest.mark.parametrize("how", ZERO)
@pytest.mark.parametrize("name", cases.SPECS)
def test_blocks_without_output_keep_the_logits(name, how):
    kind, options = ZERO[how]
    before, after = grown(kind, cases.SPECS[name], options, layers=4)
    assert difference(before, after) <= (1e-5 if kind == "lemon" else 0)
    attention = after[1]["layers"]["1"]["attention"]
    assert np.abs(attention["out"]["kernel"]).max() == 0 or name == "olmo 2"


ORDERS = {
    "g_stack": (3, 9, {}, [0, 1, 2, 0, 1, 2, 0, 1, 2]),
    "solar": (4, 6, {}, [0, 1, 2, 1, 2, 3]),
    "solar twice": (2, 4, {}, [0, 1, 0, 1]),
    "llama_pro": (4, 6, {}, [0, 1, "1", 2, 3, "3"]),
    "llama_pro in pairs": (4, 6, {"copies": 2}, [0, 1, 2, 3, "2", "3"]),
    "tli": (4, 6, {}, [0, 1, 1, 2, 3, 3]),
    "tli after every block": (2, 4, {"init": "copy_previous"}, [0, 0, 1, 1]),
    "tli zero": (4, 6, {"init": "copy_previous_zero_output"}, [0, 1, "1", 2, 3, "3"]),
    "tli mean": (4, 6, {"init": "mean_of_neighbours"}, [0, 1, 1.5, 2, 3, 3]),
    "lemon": (2, 5, {}, [0, "0", 1, "1", "1"]),
}


@pytest.mark.parametrize("family", [ModelSpec, LlamaSpec])
@pytest.mark.parametrize("name", ORDERS)
def test_blocks_are_in_the_order_of_the_paper(name, family):
    """Each block of the source holds its own number; one in quotes is a copy that ends in zeros."""
    layers, deeper, options, order = ORDERS[name]
    source = family(layers=layers, width=4, heads=2, vocab_size=7, context=8, **({"ff": 8}))
    params = cases.made_up(source)
    for i, block in params["layers"].items():
        params["layers"][i] = jax.tree.map(lambda x, i=i: np.full_like(x, 1 + int(i)), block)
    result = grow(name.split()[0], [(source, params)], replace(source, layers=deeper), options)
    for i, number in enumerate(order):
        block = result["layers"][str(i)]
        assert np.all(block["mlp"]["up"]["kernel"] == 1 + float(number)), (i, number)
        output = 0 if isinstance(number, str) else 1 + number
        assert np.allclose(block["mlp"]["down"]["kernel"], output, rtol=1e-6)
    assert len(result["layers"]) == len(order)
    assert np.array_equal(result["embed"]["embedding"], params["embed"]["embedding"])


NEOX, LLAMA = cases.NEOX, cases.LLAMA
REFUSED = [
    ("hypercloning", NEOX, dict(width=48, heads=6), {}, r"model\.width: 48 is no .*'s 32,.*nearest: 32, 64$"),
    ("hypercloning", NEOX, dict(ff=200), {}, r"model\.ff: 200 is no whole multiple of the source's 128"),
    ("hypercloning", NEOX, dict(width=64), {}, r"model\.heads: heads have 16 channels here and 8 in the source"),
    ("hypercloning", NEOX, dict(layers=4), {}, r"model\.layers: is 2 in the source, 4 here.*set model\.layers to 2"),
    ("hypercloning", NEOX, {}, {"snr": 3}, r"options\.snr: no such option.*did you mean 'snr_db'"),
    ("hypercloning", NEOX, {}, {"snr_db": "x"}, r"options\.snr_db: 'x' is not a number"),
    ("hypercloning", LLAMA, dict(heads=8, kv_heads=2, vocab_size=62), {}, r"model\.vocab_size: is 61"),
    ("lemon", NEOX, dict(width=40, heads=5), {}, r"model\.norm_eps: 1e-05 here.*32 to 40.*set model\.norm_eps=8e-06"),
    ("lemon", NEOX, dict(ff=100), {}, r"model\.ff: 100 is below 128"),
    ("lemon", LLAMA, dict(heads=9, kv_heads=9, head_dim=8, ff=48, layers=1), {}, r"model\.layers: 1 is below 2"),
    ("lemon", LLAMA, dict(heads=5, kv_heads=1, head_dim=8), {}, r"model\.kv_heads: 1 is below 2"),
    ("lemon", replace(LLAMA, heads=12, head_dim=4), dict(kv_heads=3), {}, r"4 query heads share.* 6"),
    ("lemon", replace(LLAMA, kv_heads=1), dict(heads=4, kv_heads=2), {"blocks": "zro"}, r"did you mean 'zero'"),
    ("lemon", replace(LLAMA, kv_heads=1), dict(heads=6, kv_heads=3), {}, None),
    ("lemon", replace(LLAMA, kv_heads=1), dict(heads=4, kv_heads=2), {}, None),
    ("lemon", replace(LLAMA, kv_heads=1), dict(heads=2), {}, r"model\.heads: 2 is below 4"),
    ("lemon", cases.SPECS["olmo 2"], dict(heads=6, kv_heads=6), {}, r"model\.heads: 6 is no whole multiple of 4"),
    ("lemon", cases.SPECS["olmo 2"], dict(layers=3), {"blocks": "cancel"}, r"norm_placement='after'.*use 'zero'"),
    ("lemon", NEOX, dict(ff=129, layers=3), {"blocks": "cancel"}, r"model\.ff: 129 channels cannot cancel in pairs"),
    ("lemon", NEOX, {}, {"seed": -1}, r"options\.seed: -1 is not a whole number of at least 0"),
    ("g_stack", NEOX, dict(layers=5), {}, r"model\.layers: 5 is no whole multiple of the source's 2.*nearest: 4, 6$"),
    ("g_stack", NEOX, dict(layers=4), {"g": 2}, r"options\.g: no such option of 'g_stack'  \(it has none\)"),
    ("solar", NEOX, dict(layers=3), {}, r"model\.layers: 3 cannot be made of two parts of the source's 2"),
    ("solar", NEOX, dict(layers=6), {}, r"an even number above 2 and not above 4"),
    ("llama_pro", NEOX, dict(layers=5), {}, r"model\.layers: 5 are not the source's 2 with 1 more"),
    ("llama_pro", NEOX, dict(layers=4), {"copies": 0}, r"options\.copies: 0 is not a whole number of at least 1"),
    ("tli", NEOX, dict(layers=5), {}, r"model\.layers: 5 are not the source's 2 with one more after every K"),
    ("tli", NEOX, dict(layers=3), {"init": "copy_prev"}, r"no 'copy_prev'.*did you mean 'copy_previous'"),
    ("weight_selection", NEOX, dict(width=64, heads=8), {}, r"model\.width: 64 is above 32"),
    ("weight_selection", LLAMA, dict(heads=8, kv_heads=4), {}, r"model\.heads: 8 is above 4"),
    ("weight_selection", LLAMA, dict(kv_heads=1), {}, r"model\.heads / model\.kv_heads: 4 is above 2"),
    ("weight_selection", NEOX, dict(rotary_fraction=0.75), {}, r"rotary_fraction: of 8 channels per head 6 rotate"),
    ("weight_selection", NEOX, {}, {"layers": "last"}, r"options\.layers: no 'last'"),
    ("tvr", NEOX, {}, {"std": 0}, r"options\.std: 0 is not a number above 0"),
    ("tvr", NEOX, {}, {"per_layer": 1}, r"options\.per_layer: 1 must be True or False"),
    ("fusing", NEOX, {}, {}, r"init\.transform\.models: 'fusing' needs at least one more"),
    ("lir", NEOX, {}, {"std": -1.0}, r"options\.std: -1\.0 is not a number above 0"),
    ("spike_no_more", replace(LLAMA, tied=True), {}, {}, r"model\.tied: .*sqrt\(32\)"),
    ("hyperclone", NEOX, {}, {}, r"init\.transform\.kind: no 'hyperclone'.*did you mean 'hypercloning'"),
    ("llama_pro", NEOX, dict(layers=4, parallel_residual=False), {}, r"parallel_residual: is True in the source"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_what_a_method_cannot_make_is_one_line(case):
    kind, source, sizes, options, says = REFUSED[case]
    if says is None:
        before, after = grown(kind, source, options, **sizes)
        assert difference(before, after) < 1e-5
        return
    with pytest.raises(ConfigError) as error:
        grown(kind, source, options, **sizes)
    assert re.search(says, str(error.value)), str(error.value)
    assert "\n" not in str(error.value)


def test_another_family_and_further_models_are_named():
    params = cases.made_up(NEOX)
    with pytest.raises(ConfigError, match=r"model\.family: is 'gpt_neox' in the source, 'llama' here"):
        grow("g_stack", [(NEOX, params)], LLAMA)
    with pytest.raises(ConfigError, match=r"init\.transform\.models: 'g_stack' starts from one model"):
        grow("g_stack", [(NEOX, params)] * 2, NEOX)


def shrinks(source, target, options):
    """A method of one's own that makes the wrong shape."""
    return lambda path: source(path)[:1]


def test_a_method_of_ones_own_is_found_and_checked():
    with pytest.raises(ConfigError, match=r"makes embed\.embedding of shape \[1, 32\], model\.\* \[61, 32\]"):
        grow(f"{__name__}:shrinks", [(NEOX, cases.made_up(NEOX))], NEOX)
