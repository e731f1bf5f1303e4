"""Rows for new tokens: the published numbers of each method, and what has to hold whatever the numbers are."""

import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linprog
from scipy.stats import ortho_group
from vocabularies import NEW_TEXT, OLD_TEXT, Words, byte_level, matrices, vectors

from cpt.data.tokenizers._base import load
from cpt.data.tokenizers.extending import extended
from cpt.models import base
from cpt.models.spec import LlamaSpec, ModelSpec
from cpt.models.vocabulary import VocabularySpec, prepare
from cpt.models.vocabulary._auxiliary import read_vectors
from cpt.models.vocabulary._weights import nearest_softmax, sparsemax
from cpt.models.vocabulary.gaussian import moments
from cpt.registry import available

METHODS = ["convex_hull", "focus", "gaussian", "mean", "univariate_gaussian", "wechsel"]
OLD, EXTENDED = (
    Words("the", "cat", "sat", None, "mat"),
    Words("the", "cat", "sat", None, "mat", "Hund", "Katze", "Haus"),
)
SMALL = {"convex_hull": {"rank": 8, "pairs_per_step": 4}}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The fields that name files, for every method."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(5)
    words = {word: rng.normal(size=4).round(3).tolist() for word in ("the", "cat", "mat", "Hund", "Katze")}
    (folder / "text.txt").write_text("the Hund sat\nKatze Haus the Hund\n" * 4)
    return dict(auxiliary=vectors(folder / "a.vec", words), text=str(folder / "text.txt"))


def changed(method, old, new, old_rows, fields=None, size=None, said=None, **more):
    """The new matrices of a method."""
    fields = {"options": SMALL.get(method, {}), **(fields or {}), **more}
    sizes = len(next(iter(old_rows.values()))), size or new.vocab_size
    return prepare(
        VocabularySpec(method=method, **fields), old, new, sizes, ([] if said is None else said).append
    ).rows(old_rows)


def test_the_room():
    assert list(available("cpt.models.vocabulary")) == METHODS


# ---- published numbers ----
def test_sparsemax_and_nearest_softmax_give_the_published_weights():
    assert sparsemax(np.array([[0.9, 0.8, 0.1]]))[0] == pytest.approx([0.55, 0.45, 0], abs=1e-15)
    weights = nearest_softmax(np.array([[0.9, 0.8, 0.1]]), 10, 0.1)[0]
    assert weights == pytest.approx([0.730879, 0.268875, 0.000245], abs=5e-7)


def with_cosines(*cosines):
    """Vectors that have these cosines with (1, 0, 0, ...), of different lengths."""
    rows = np.diag(np.sqrt(1 - np.square(cosines)))
    return [[float(c), *map(float, row)] for c, row in zip(cosines, rows, strict=True)]


def test_focus_mixes_the_rows_of_similar_tokens_that_overlap(tmp_path):
    """Cosines .9, .8, .1 with three tokens that both have: .55 and .45 of the first two, in both matrices."""
    old, new = Words("a", "b", "c", "gone"), Words("x", "c", "a", "b", "bare")
    file = vectors(tmp_path / "v.vec", dict(zip("abc", with_cosines(0.9, 0.8, 0.1), strict=True), x=[5, 0, 0, 0]))
    rows = matrices(5)
    out = changed("focus", old, new, rows, auxiliary=file)
    for name, old_VxD in rows.items():
        assert out[name][1] == pytest.approx(0.55 * old_VxD[1] + 0.45 * old_VxD[2], rel=1e-5)
        assert np.array_equal(out[name][[0, 2, 3, 4]], old_VxD[[0, 3, 1, 2]])
    assert np.abs(out["input"][5] - rows["input"].mean(0)).max() > 0.1  # no vector: drawn


def test_wechsel_mixes_the_nearest_old_tokens(tmp_path):
    old, new = Words("a", "b", "c", "far"), Words("x", "a")
    near = dict(zip(("a", "b", "c"), with_cosines(0.9, 0.8, 0.1), strict=True))
    file = vectors(tmp_path / "v.vec", {**near, "far": [-1, 0, 0, 0], "x": [2, 0, 0, 0]})
    rows = matrices(5)
    weights = np.array([0.730879, 0.268875, 0.000245])
    out = changed("wechsel", old, new, rows, auxiliary=file, options={"neighbours": 3})
    for name, old_VxD in rows.items():
        assert out[name][1] == pytest.approx(weights @ old_VxD[1:4], abs=1e-5)
        assert np.array_equal(out[name][2], old_VxD[1])
    paper = changed("wechsel", old, new, rows, auxiliary=file, copy="special", options={"neighbours": 1})
    # By the paper's own rule only special tokens are copied; here the nearest of "a" is "a" and of "x" too.
    assert paper["input"] == pytest.approx(rows["input"][[0, 1, 1]])
    hot = changed("wechsel", old, new, rows, auxiliary=file, options={"neighbours": 4, "temperature": 1e6})
    assert hot["input"][1] == pytest.approx(rows["input"][1:].mean(0), abs=1e-5)


def test_wechsel_rotates_the_old_vectors_by_the_dictionary(tmp_path):
    rng = np.random.default_rng(1)
    words = {f"w{i}": rng.normal(size=5) for i in range(9)}
    turn = ortho_group.rvs(5, random_state=2)
    a = vectors(tmp_path / "new.vec", {k: v.tolist() for k, v in {**words, "x": rng.normal(size=5)}.items()})
    b = vectors(tmp_path / "old.vec", {k.title(): (turn @ v).tolist() for k, v in words.items()})
    (tmp_path / "pairs").write_text("".join(f"{w.upper()}\t{w}\n" for w in words) + "no\tsuch\n")
    old, new, rows = Words(*map(str.title, words)), Words("x", "w0"), matrices(10)
    said = []
    out = changed("wechsel", old, new, rows, said=said, auxiliary=a, auxiliary_of_old=b, dictionary=f"{tmp_path}/pairs")
    assert "rotated by 9 pairs" in "".join(said)
    same = changed("wechsel", Words(*words), new, rows, auxiliary=a)
    assert out["input"][1] == pytest.approx(same["input"][1], abs=1e-4)
    apart = changed("wechsel", old, new, rows, said=said, auxiliary=a, auxiliary_of_old=b)
    assert "taken to be aligned" in "".join(said)
    assert np.abs(apart["input"][1] - same["input"][1]).max() > 0.05


def test_words_make_tokens_by_their_counts(tmp_path):
    """A token's vector is the mean of the words it is in, weighted by counts; a .vec has 1 / rank."""

    class Letters(Words):
        def encode_batch(self, texts):
            return [np.array([self.words.index(c) + 1 for c in t if c in self.words], np.int32) for t in texts]

    np.savez(tmp_path / "v.npz", words=["ab", "aa", "b"], vectors=np.eye(3), counts=[1, 3, 5])
    vectors_VxA, has_V = read_vectors(str(tmp_path / "v.npz"), "f").of_tokens(Letters("a", "b", "c", " "))
    assert has_V.tolist() == [False, True, True, False, True]
    assert vectors_VxA[4] == pytest.approx([1 / 9, 3 / 9, 5 / 9])  # the blank that may stand in front of each
    assert vectors_VxA[1] == pytest.approx([1 / 4, 3 / 4, 0]) and vectors_VxA[2] == pytest.approx([1 / 6, 0, 5 / 6])
    by_rank = read_vectors(vectors(tmp_path / "v.vec", {"ab": [1, 0], "aa": [0, 1]}), "f")
    assert by_rank.of_tokens(Letters("a"))[0][1] == pytest.approx([2 / 3, 1 / 3])
    (tmp_path / "h.vec").write_text("2 2\nab 1 0 \nnew york 0 1\nab 7 7\n")  # a header, a blank at an end and in a word
    headed = read_vectors(str(tmp_path / "h.vec"), "f")
    assert headed.words == ["ab", "new york"] and headed.vectors_NxA.tolist() == [[1, 0], [0, 1]]


def test_gaussian_draws_with_the_biased_covariance_times_1e_5():
    rows_KxD = np.array([[0.0, 0], [2, 0], [0, 4], [2, 8]])
    mean_D, sigma_DxD = moments(rows_KxD)
    assert mean_D.tolist() == [1, 3] and sigma_DxD.tolist() == [[1, 1], [1, 11]]
    old, new = Words("a", "b", "c"), Words(*(f"n{i}" for i in range(40_000)))
    out = changed("gaussian", old, new, {"input": rows_KxD.astype(np.float32)})["input"][1:].astype(np.float64)
    error_D = (out - mean_D).mean(0) / np.sqrt(1e-5 * np.diag(sigma_DxD) / len(out))
    assert np.abs(error_D).max() < 4
    assert np.cov(out.T) / 1e-5 == pytest.approx(sigma_DxD, rel=0.05)
    wide = changed("gaussian", old, new, {"input": rows_KxD.astype(np.float32)}, options={"scale": 1})["input"][1:]
    assert np.cov(wide.T) == pytest.approx(sigma_DxD, rel=0.05)
    single = changed("univariate_gaussian", old, new, {"input": rows_KxD.astype(np.float32)})["input"][1:]
    assert np.cov(single.T) == pytest.approx(np.diag([1, 11]), rel=0.05, abs=0.08)
    assert single.mean(0) == pytest.approx(mean_D, abs=0.08)


# ---- what holds for all numbers ----
@settings(max_examples=60)
@given(arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 300)), elements=st.floats(-2, 2)))
def test_sparsemax_is_the_projection_onto_the_simplex(scores_NxK):
    """Weights are max(z - tau, 0) for one tau in each row, and sum to 1: only the projection is."""
    for scores_K, weights_K in zip(scores_NxK, sparsemax(scores_NxK), strict=True):
        assert weights_K.min() >= 0 and weights_K.sum() == pytest.approx(1, abs=1e-9)
        support = weights_K > 0
        tau = (scores_K - weights_K)[support]
        assert np.ptp(tau) < 1e-9 and (scores_K[~support] <= tau.max() + 1e-9).all()


def test_sparsemax_is_sparse_for_cosines():
    vectors_NxA = np.random.default_rng(0).normal(size=(2000, 50))
    vectors_NxA /= np.linalg.norm(vectors_NxA, axis=1, keepdims=True)
    weights = sparsemax(vectors_NxA[:20] @ vectors_NxA[20:].T)
    assert ((weights > 0).sum(1) < 100).all() and weights.sum(1) == pytest.approx(np.ones(20))
    flat = sparsemax(np.zeros((1, 500)))  # a support beyond what is sorted at first
    assert flat == pytest.approx(np.full((1, 500), 1 / 500))


@pytest.mark.parametrize("method", METHODS)
def test_an_extension_keeps_every_old_row_and_is_the_same_again(method, files):
    rows, said = matrices(7), []
    out = changed(method, OLD, EXTENDED, rows, files, size=12, said=said)
    again = changed(method, OLD, EXTENDED, rows, files, size=12)
    other = changed(method, OLD, EXTENDED, rows, files, size=12, seed=1)
    assert "5 tokens become 8; 5 keep their row, 3 get one" in said[0]
    assert "2 of 7 before, 4 of 12 now" in said[0]
    for name, old_VxD in rows.items():
        kept = [0, 1, 2, 3, 5]
        assert out[name].shape == (12, 6) and out[name].dtype == np.float32
        assert out[name][kept].tobytes() == old_VxD[kept].tobytes()
        assert out[name].tobytes() == again[name].tobytes()
        assert (out[name].tobytes() == other[name].tobytes()) == (method == "mean")
        # Ids that stand for nothing, 4 and those above 8: the mean of the tokens, not of the padding.
        assert out[name][[4, 9, 11]] == pytest.approx(np.tile(old_VxD[kept].mean(0), (3, 1)), abs=1e-6)
    assert not np.array_equal(out["input"][6:9], out["output"][6:9])


@pytest.mark.parametrize("method", METHODS)
def test_padding_has_no_part_in_new_rows(method, files):
    rows = matrices(7)
    clean = changed(method, OLD, EXTENDED, rows, files)
    for old_VxD in rows.values():
        old_VxD[[4, 6]] = 1e6
    dirty = changed(method, OLD, EXTENDED, rows, files)
    assert all(np.array_equal(clean[name], dirty[name]) for name in rows)


@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec(layers=1, width=16, heads=2, vocab_size=7, context=8),
        LlamaSpec(layers=1, width=16, heads=2, vocab_size=7, context=8),
        LlamaSpec(layers=1, width=16, heads=2, vocab_size=7, context=8, tied=True),
    ],
)
def test_a_model_takes_the_new_rows_into_its_own_shapes(spec):
    """Of an untied model embedding and head, of a tied one the embedding; the rest is passed on, not copied."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), base.build(spec).abstract())
    new = prepare(VocabularySpec(method="gaussian"), OLD, EXTENDED, (7, 9), lambda _: None).parameters(params)
    wanted = base.build(replace(spec, vocab_size=9)).abstract()
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(lambda x: (x.shape, x.dtype), wanted)
    assert all(a is b for a, b in zip(*map(jax.tree.leaves, (new["layers"], params["layers"])), strict=True))
    assert np.array_equal(new["embed"]["embedding"][:4], params["embed"]["embedding"][:4])
    if not spec.tied:
        assert np.array_equal(new["head"]["kernel"][:, :4], params["head"]["kernel"][:, :4])
        assert new["head"]["kernel"][:, 4] == pytest.approx(params["head"]["kernel"][:, [0, 1, 2, 3, 5]].mean(1))


def test_embedding_and_head_are_drawn_apart():
    """Also where their old rows are the same."""
    old_VxD = matrices(7)["input"]
    out = changed("univariate_gaussian", OLD, EXTENDED, {"input": old_VxD, "output": old_VxD})
    assert np.abs(out["input"][6:] - out["output"][6:]).min() > 1e-4


# ---- the convex hull ----
def in_hull(point_D, rows_KxD) -> bool:
    """Whether weights of at least 0 that sum to 1 make the point of the rows, up to rounding."""
    bounds = np.vstack([rows_KxD.T, np.ones(len(rows_KxD))]), np.append(point_D, 1)
    a, b = bounds[0], bounds[1]
    return linprog(np.ones(a.shape[1]), A_ub=np.vstack([a, -a]), b_ub=np.append(b, -b) + 1e-5).status == 0


@pytest.mark.parametrize("names", [("input",), ("input", "output")])
def test_convex_hull_learns_inside_the_hull(files, names):
    rows, said = matrices(7, 4, 0, *names), []
    options = {"rank": 8, "pairs_per_step": 4, "epochs": 8, "learning_rate": 0.2}
    out = changed("convex_hull", OLD, EXTENDED, rows, files, said=said, options=options)
    drawn = changed("convex_hull", OLD, EXTENDED, rows, options={"rank": 8, "epochs": 0})
    far = changed("univariate_gaussian", OLD, EXTENDED, rows)
    for name, old_VxD in rows.items():
        hull = old_VxD[[0, 1, 2, 3, 5]].astype(np.float64)
        assert all(in_hull(row, hull) for row in np.vstack([out[name][6:], drawn[name][6:]]).astype(np.float64))
        assert not all(in_hull(row, hull) for row in far[name][6:])
        assert np.abs(out[name][6:] - drawn[name][6:]).max() > 1e-3
    nats = [float(line.split()[3]) for line in said if "epoch" in line]
    assert len(nats) == 8 and nats[-1] < nats[0] - 0.01
    assert "40 pairs of 28 tokens" in said[1]


def test_greedy_outputs_on_old_text_stay_after_an_extension_inside_the_hull(tmp_path):
    """16 tokens after each of many prompts: a new token's logit is never above all of the old ones'."""
    old = byte_level(OLD_TEXT, 270)
    file = tmp_path / "text.txt"
    file.write_text("\n".join(NEW_TEXT))
    joined = extended_of(old, byte_level(NEW_TEXT, 285), tmp_path)
    spec = ModelSpec(layers=1, width=16, heads=2, vocab_size=old.vocab_size, context=24)
    rng = np.random.default_rng(3)
    shapes = base.build(spec).abstract()
    params = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), shapes)
    params["embed"]["embedding"] *= 30  # so that the text decides, and not the biases
    params["ln_final"] = {"scale": np.ones(16, np.float32), "bias": np.zeros(16, np.float32)}
    prompts = rng.integers(0, old.vocab_size, (32, 8))
    before = greedy(base.build(spec), params, prompts)
    sizes = old.vocab_size, joined.vocab_size + 5
    grown = base.build(replace(spec, vocab_size=sizes[1]))
    same = {}
    for method, options in (("convex_hull", {"rank": 16}), ("mean", {}), ("univariate_gaussian", {})):
        fields = VocabularySpec(method=method, text=str(file), options=options)
        new = prepare(fields, old, joined, sizes, lambda _: None).parameters(params)
        same[method] = np.array_equal(before, greedy(grown, new, prompts))
    assert len(np.unique(before[:, 8:])) > 20
    assert same == {"convex_hull": True, "mean": True, "univariate_gaussian": False}


def extended_of(old, new, folder):
    for name, tokenizer in (("old", old), ("new", new)):
        tokenizer.save(folder / f"{name}.json")
    (folder / "joined.json").write_text(json.dumps(extended(folder / "old.json", folder / "new.json")))
    return load(folder / "joined.json")


@partial(jax.jit, static_argnums=0)
def generated(model, params, tokens_BxL):
    """The rows with everything from their ninth token on written anew, by the largest logit."""

    def step(at, tokens_BxL):
        hidden_BxD = model.apply(params, tokens_BxL)[:, at - 1]
        return tokens_BxL.at[:, at].set(jnp.argmax(hidden_BxD @ model.head(params), -1).astype(tokens_BxL.dtype))

    return jax.lax.fori_loop(8, tokens_BxL.shape[1], step, tokens_BxL)


def greedy(model, params, prompts):
    return np.asarray(generated(model, params, np.pad(prompts, ((0, 0), (0, 16))).astype(np.int32)))
