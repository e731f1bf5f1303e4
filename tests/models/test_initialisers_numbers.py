"""Initialisers that select, average, rescale and draw: their numbers, by the rules of the papers."""

import math
from dataclasses import replace

import initialiser_cases as cases
import jax
import numpy as np
import pytest

from cpt.errors import ConfigError
from cpt.models import base
from cpt.models.growing import grow
from cpt.models.initialisers.weight_selection import selected
from cpt.models.rope import PLAIN, frequencies
from cpt.models.spec import LlamaSpec

NEOX, LLAMA = cases.NEOX, cases.LLAMA


def test_units_are_selected_evenly():
    assert selected(10, 4).tolist() == [0, 3, 6, 9]
    assert selected(8, 4).tolist() == [0, 2, 4, 6]
    assert selected(5, 5).tolist() == [0, 1, 2, 3, 4]
    assert selected(7, 1).tolist() == [0]


def test_weight_selection_takes_the_same_units_everywhere():
    source = replace(NEOX, layers=4, rotary_fraction=0.5)
    target = replace(source, layers=2, width=16, heads=2, ff=20)  # heads of 8 channels stay whole
    params = cases.made_up(source)
    small = grow("weight_selection", [(source, params)], target)
    embed, mlp, heads = np.arange(0, 32, 2), selected(128, 20), [0, 2]
    theirs, ours = params["layers"]["1"], small["layers"]["1"]
    assert np.array_equal(small["embed"]["embedding"], params["embed"]["embedding"][:, embed])
    assert np.array_equal(small["head"]["kernel"], params["head"]["kernel"][embed])
    assert np.array_equal(ours["mlp"]["up"]["kernel"], theirs["mlp"]["up"]["kernel"][np.ix_(embed, mlp)])
    assert np.array_equal(ours["attention"]["qkv"]["bias"], theirs["attention"]["qkv"]["bias"][heads])
    assert np.array_equal(ours["ln_mlp"]["scale"], theirs["ln_mlp"]["scale"][embed])
    last = grow("weight_selection", [(source, params)], target, {"layers": "uniform"})["layers"]["1"]
    assert np.array_equal(last["ln_mlp"]["scale"], params["layers"]["2"]["ln_mlp"]["scale"][embed])


def test_selected_queries_stay_with_their_keys():
    source = LlamaSpec(layers=1, width=48, heads=12, kv_heads=4, ff=8, vocab_size=5, context=8)
    params = cases.made_up(source)
    target = replace(source, width=24, heads=4, kv_heads=2, head_dim=4)
    attention = grow("weight_selection", [(source, params)], target)["layers"]["0"]["attention"]
    theirs = params["layers"]["0"]["attention"]
    # Keys 0 and 2 of 4; of the queries 0..2 and 6..8 that share them, the first and the last.
    assert np.array_equal(attention["k"]["kernel"], theirs["k"]["kernel"][::2][:, [0, 2]])
    assert np.array_equal(attention["q"]["kernel"], theirs["q"]["kernel"][::2][:, [0, 2, 6, 8]])


def test_selected_channels_keep_their_pairs_and_frequencies():
    source = LlamaSpec(layers=1, width=16, heads=1, ff=8, vocab_size=5, context=8, kv_heads=1)
    params = cases.made_up(source)
    small = grow("weight_selection", [(source, params)], replace(source, head_dim=8))
    q, theirs = (tree["layers"]["0"]["attention"]["q"]["kernel"] for tree in (small, params))
    chosen = [0, 2, 4, 6, 8, 10, 12, 14]
    assert np.array_equal(q, theirs[..., chosen])
    # Of 8 pairs (i, i + 8) the ones with i = 0, 2, 4, 6, which turn as the 4 pairs of the small head do.
    assert np.allclose(frequencies(PLAIN, 16, 1e4)[chosen[:4]], frequencies(PLAIN, 8, 1e4))


def test_fusing_averages():
    trees = [cases.made_up(NEOX, seed) for seed in range(3)]
    given = [(NEOX, tree) for tree in trees]
    flat = [jax.tree.leaves(tree) for tree in trees]
    cases_of = {
        "mean": ({}, lambda a, b, c: (a + b + c) / 3),
        "weights": ({"weights": [2, 1, 1]}, lambda a, b, c: a / 2 + b / 4 + c / 4),
        "step": ({"step": 0.5}, lambda a, b, c: a + 0.5 * ((b + c) / 2 - a)),
        "weighted step": ({"step": 2.0, "weights": (3, 1)}, lambda a, b, c: a + 2 * (0.75 * b + 0.25 * c - a)),
    }
    for options, by_hand in cases_of.values():
        fused = jax.tree.leaves(grow("fusing", given, NEOX, options))
        assert all(np.allclose(x, by_hand(*abc), atol=1e-6) for x, *abc in zip(fused, *flat, strict=True))
        assert all(x.dtype == np.float32 for x in fused)


@pytest.mark.parametrize("weights", [[1, 2], [1, 1, -1], [0, 0, 0], "abc", [1, 1, math.nan]])
def test_weights_that_do_not_fit_are_named(weights):
    given = [(NEOX, cases.made_up(NEOX, seed)) for seed in range(3)]
    with pytest.raises(ConfigError, match=r"options\.weights: .* are not 3 numbers of at least 0"):
        grow("fusing", given, NEOX, {"weights": weights})
    other = replace(NEOX, ff=64)
    with pytest.raises(ConfigError, match=r"model\.ff: is 64 in the source, 128 here, and 'fusing' keeps it"):
        grow("fusing", [*given, (other, cases.made_up(other))], NEOX)


@pytest.mark.parametrize("spec", [NEOX, cases.SPECS["tied, one key"]])
def test_tvr_rescales_only_what_is_too_wide(spec):
    """Standard deviations of 1.19 and 1.21 times the target are on either side of the threshold."""
    params, std = cases.made_up(spec), 0.03
    scaled = {"up": 1.19, "down": 1.21}
    for name, times in scaled.items():
        linear = params["layers"]["1"]["mlp"][name]
        linear["kernel"] *= times * std / linear["kernel"].std()
    result = grow("tvr", [(spec, params)], spec, {"std": std})
    before, after = params["layers"]["1"]["mlp"], result["layers"]["1"]["mlp"]
    assert all(np.array_equal(after["up"][k], before["up"][k]) for k in before["up"])
    assert after["down"]["kernel"].std() == pytest.approx(std, rel=1e-4)
    assert after["down"]["kernel"].mean() == pytest.approx(before["down"]["kernel"].mean(), abs=1e-7)
    assert np.corrcoef(after["down"]["kernel"].ravel(), before["down"]["kernel"].ravel())[0, 1] > 0.99999
    out = result["layers"]["0"]["attention"]["out"]  # std 0.15: with a bias in both families
    assert out["kernel"].std() == pytest.approx(std, rel=1e-4) and np.all(out["bias"] == 0)
    for name in ("embed", "ln_final"):
        assert all(
            np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (params[name], result[name])), strict=True)
        )
    assert np.array_equal(result["layers"]["0"]["ln_mlp"]["scale"], params["layers"]["0"]["ln_mlp"]["scale"])


def test_tvr_by_layer_and_threshold():
    params = cases.made_up(NEOX)
    result = grow("tvr", [(NEOX, params)], NEOX, {"std": 0.1, "per_layer": True})
    for i in range(2):
        assert result["layers"][str(i)]["mlp"]["up"]["kernel"].std() == pytest.approx(0.1 / math.sqrt(i + 1), rel=1e-4)
    same = grow("tvr", [(NEOX, params)], NEOX, {"std": 0.1, "threshold": 2.0})
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(params), strict=True))


SMALL = math.sqrt(2 / (5 * 96))
DRAWN = {
    "small_init": ({}, lambda i, out: SMALL),
    "wang_init": ({}, lambda i, out: 2 / (3 * math.sqrt(96)) if out else SMALL),
    "lir": ({"std": 0.05}, lambda i, out: 0.05 / math.sqrt(1 if i is None else i + 1)),
    "spike_no_more": ({}, lambda i, out: SMALL / math.sqrt(6) if out else SMALL),
}


@pytest.mark.parametrize("family", ["neox", "llama"])
@pytest.mark.parametrize("kind", DRAWN)
def test_fresh_parameters_have_the_deviations_of_the_paper(kind, family):
    spec = replace(cases.SPECS[family], layers=3, width=96, ff=256, **({"head_dim": 24} if family == "llama" else {}))
    options, std = DRAWN[kind]
    # A model that is drawn with one deviation for all, which has no part in the result.
    params, noise = cases.made_up(replace(spec, init_std=0.3)), np.random.default_rng(1)
    for path, w in jax.tree_util.tree_flatten_with_path(params)[0]:
        name = path[-1].key
        w[...] = noise.normal(0, 0.3, w.shape) if name in ("kernel", "embedding") else name == "scale"
    result = grow(kind, [(replace(spec, init_std=0.3), params)], spec, options)
    for path, w in jax.tree_util.tree_flatten_with_path(result)[0]:
        keys = [entry.key for entry in path]
        if keys[-1] not in ("kernel", "embedding"):
            assert np.all(w == (keys[-1] == "scale"))
            continue
        expected = std(int(keys[1]) if keys[0] == "layers" else None, keys[-2] in ("out", "down"))
        if kind == "spike_no_more" and keys[-1] == "embedding":
            expected = 1.0
        assert w.std() == pytest.approx(expected, rel=0.04), keys


def test_wang_init_is_what_a_run_has_anyway():
    spec = replace(NEOX, layers=1)
    fresh = base.build(spec).init(jax.random.key(1))
    result = grow("wang_init", [(spec, fresh)], spec)
    assert all(np.allclose(a, b, rtol=1e-6) for a, b in zip(*map(jax.tree.leaves, (fresh, result)), strict=True))
