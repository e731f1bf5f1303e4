"""Probes of the model itself: what their numbers are where the answer is known, whatever the model."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cpt.errors import ConfigError, RunError
from cpt.evaluators.losses import spread
from cpt.evaluators.probes._base import ProbeContext
from cpt.evaluators.probes._rows import Positions
from cpt.evaluators.probes.parameters import parameters
from cpt.evaluators.probes.rankme import covariance, effective_rank, rankme, spectral_slope
from cpt.evaluators.probes.spectral_alignment import concentration, spectral_alignment, top_direction
from cpt.models.base import Model, build
from cpt.models.spec import ModelSpec
from cpt.registry import available, find

WIDTH, LENGTH, VOCAB = 16, 12, 40
MODEL = build(ModelSpec(layers=4, width=WIDTH, heads=2, vocab_size=VOCAB, context=LENGTH))
KINDS = ("choice", "copy", "gradients", "parameters", "rankme", "spectral_alignment")


@pytest.fixture(scope="module")
def params():
    """Every parameter is noise, so that each of them matters."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape, np.float32)), MODEL.abstract())


def windows(rows=6, seed=0) -> dict[str, np.ndarray]:
    return {"old": np.random.default_rng(seed).integers(0, VOCAB, (rows, LENGTH + 1), np.int32)}


def context(where="evaluation.probes.p", model=MODEL, sets=None, **options) -> ProbeContext:
    return ProbeContext(model, options, where, windows() if sets is None else sets)


def orthogonal(n: int, k: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, k)))[0]


# ---- all of them ----
def test_every_probe_is_found_and_says_what_it_is():
    offered = available("cpt.evaluators.probes")
    assert set(KINDS) <= set(offered) and all(len(offered[k]) > 20 for k in KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_option_is_refused_when_the_probe_is_made(kind):
    with pytest.raises(ConfigError, match=r"^config error: evaluation\.probes\.p\.options\.sett: no such option"):
        find("cpt.evaluators.probes", kind, "x")(context(sett="old"))


@pytest.mark.parametrize("kind", ["rankme", "spectral_alignment", "copy"])
def test_a_probe_of_text_needs_a_set_that_there_is(kind):
    make = find("cpt.evaluators.probes", kind, "x")
    with pytest.raises(ConfigError, match=r"options\.set: no evaluation set 'odl'; did you mean 'old'\?"):
        make(context(set="odl"))
    with pytest.raises(ConfigError, match="there is no evaluation set"):
        make(context(sets={}))


# ---- positions ----
@pytest.mark.parametrize(("n", "rows_per_pass"), [(1, 4), (5, 2), (30, 4), (35, 5), (1000, 3)])
def test_positions_are_evenly_spread_over_the_rows_and_padding_is_none_of_them(n, rows_per_pass, params):
    tokens_RxL = np.arange(5 * 7).reshape(5, 7).astype(np.int32)
    positions = Positions(tokens_RxL, n, rows_per_pass)
    got = positions.gather(lambda tokens, segments: tokens[..., None], positions.put(params))
    assert np.asarray(got)[:, 0].tolist() == spread(min(n, 35), 35).tolist()
    assert positions.put(params)["columns"].shape[-1] == math.ceil(min(n, 35) / 5)  # of each row, no more than it has


def test_positions_of_masked_documents_see_their_document_only(params):
    row = np.array([[1, 2, 0, 3, 4, 0]], np.int32)
    seen = []
    positions = Positions(row, 6, 1, end_of_document=0)
    positions.gather(lambda tokens, segments: seen.append(segments) or segments[..., None], positions.put(params))
    got = positions.gather(lambda tokens, segments: segments[..., None], positions.put(params))
    assert np.asarray(got)[:, 0].tolist() == [0, 0, 0, 1, 1, 1]


# ---- rankme ----
def test_equally_strong_directions_count_as_many_as_they_are():
    for k in (1, 3, 16):
        states = orthogonal(50, k) @ orthogonal(16, k, 1).T
        assert float(effective_rank(jnp.asarray(7 * states, jnp.float32))) == pytest.approx(k, rel=1e-3)


def test_isotropic_data_have_nearly_full_rank_and_constant_data_rank_one():
    gauss = np.random.default_rng(0).standard_normal((20000, 8))
    assert float(effective_rank(jnp.asarray(gauss, jnp.float32))) == pytest.approx(8, rel=1e-3)
    assert float(effective_rank(jnp.ones((30, 8)))) == pytest.approx(1, abs=1e-3)


def test_rank_is_the_perplexity_of_the_singular_values():
    sigma = np.array([4.0, 2.0, 1.0, 1.0])
    states = orthogonal(9, 4) * sigma @ orthogonal(4, 4, 1).T
    assert float(effective_rank(jnp.asarray(states, jnp.float32))) == pytest.approx(2**1.75, rel=1e-5)  # bits of 1/2..


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("first", "last"), [(1, 40), (5, 20)])
def test_alpha_of_a_power_law_is_its_exponent(alpha, first, last):
    q = orthogonal(40, 40)
    matrix = (q * 3 * np.arange(1.0, 41) ** -alpha) @ q.T
    assert float(spectral_slope(jnp.asarray(matrix, jnp.float32), first, last)) == pytest.approx(alpha, rel=1e-3)


def test_alpha_reads_only_its_ranks_and_octaves_count_alike():
    eigenvalues = np.concatenate([[1e3, 1e3], np.arange(3.0, 9) ** -1.5, np.full(8, 1e-4)])
    assert float(spectral_slope(jnp.diag(eigenvalues), 3, 8)) == pytest.approx(1.5, rel=1e-3)
    i = np.arange(1, 65)
    bent = np.where(i <= 8, i**-1.0, 8.0**-1 * (i / 8) ** -3.0)  # half of the octaves fall with 1, half with 3
    assert float(spectral_slope(jnp.diag(bent), 1, 64)) == pytest.approx(2, abs=0.15)


def test_covariance_removes_the_mean():
    x = np.random.default_rng(0).standard_normal((30, 5)) + 100
    np.testing.assert_allclose(covariance(jnp.asarray(x, jnp.float32)), np.cov(x.T, bias=True), atol=1e-4)


def test_rankme_measures_the_states_of_the_set(params):
    sets = windows()
    values = rankme(context(sets=sets, tokens=60, ranks=[2, 8]))(params, 0)
    hidden = np.asarray(MODEL.apply(params, sets["old"][:, :-1])).reshape(-1, WIDTH)[spread(60, 72)].astype(np.float64)
    p = np.linalg.svd(hidden, compute_uv=False)
    p /= p.sum()
    assert float(values["rank"]) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-4)
    eigenvalues, i = np.linalg.eigvalsh(np.cov(hidden.T, bias=True))[::-1][1:8], np.arange(2, 9)
    slope = np.polyfit(np.log(i), np.log(eigenvalues), 1, w=np.sqrt(1 / i))[0]
    assert float(values["alpha"]) == pytest.approx(-slope, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tokens": 0}, r"options\.tokens: 0 must be a whole number of at least 3"),
        ({"ranks": [5, 5]}, r"options\.ranks: from 5 to 5 must increase and end by 16"),
        ({"ranks": [1, 17]}, r"options\.ranks: from 1 to 17 .* end by 16"),
        ({"tokens": 10, "ranks": [1, 10]}, r"end by 9"),
        ({"ranks": 5}, r"options\.ranks: 5 must be the first and the last rank"),
    ],
)
def test_options_of_rankme(options, says):
    with pytest.raises(ConfigError, match=says):
        rankme(context(**options))


# ---- parameters ----
def run_context(at: dict[int, dict], **options) -> ProbeContext:
    """Of a run of two phases, 0..10 and 10..30, that holds the checkpoints `at`."""
    phases = [SimpleNamespace(first_step=0, end=10), SimpleNamespace(first_step=10, end=30)]
    plan = SimpleNamespace(
        phases=phases,
        total_steps=30,
        phase_at=lambda step: phases[step >= 10],
        checkpoints_at=lambda step: ("anchor",) if step in (10, 30) else ("rolling",) * (step % 5 == 0),
        spec=SimpleNamespace(evaluation=SimpleNamespace(rows_per_pass=4), batch=SimpleNamespace(mask_documents=False)),
    )

    def params_at(step):
        params_at.asked.append(step)
        if step not in at:
            raise RunError(f"no checkpoint of step {step}")
        return at[step]

    params_at.asked = []
    return ProbeContext(MODEL, options, "evaluation.probes.p", windows(), None, plan, None, params_at)


def shifted(params, **by):
    """`params`, each parameter of the named groups (layers as `layer0`) grown by a factor of 1 + by."""
    return {
        part: {i: scaled(x, by.get(f"layer{i}", 0)) for i, x in tree.items()}
        if part == "layers"
        else scaled(tree, by.get(part, 0))
        for part, tree in params.items()
    }


def scaled(tree, by):
    return jax.tree.map(lambda x: (1 + by) * x, tree)


def norm(tree) -> float:
    return math.sqrt(sum(np.square(np.asarray(x, np.float64)).sum() for x in jax.tree.leaves(tree)))


def test_a_uniform_growth_is_its_own_relative_update(params):
    values = parameters(run_context({10: params}))(scaled(params, 0.25), 13)
    assert float(values.pop("distance")) == pytest.approx(0.25 * norm(params), rel=1e-5)
    assert {k: float(v) for k, v in values.items()} == pytest.approx(dict.fromkeys(values, 0.25), rel=1e-5)


def test_each_group_sees_only_its_own(params):
    by = {"layer0": 0.1, "layer1": 0.3, "layer3": 0.7, "embed": 0.5}
    values = parameters(run_context({10: params}, layers=2))(shifted(params, **by), 12)
    expected = {"relative_bottom": 0.2, "relative_top": 0.35, "relative_embed": 0.5, "relative_head": 0.0}
    assert {k: float(values[k]) for k in expected} == pytest.approx(expected, rel=1e-4)
    moved = [by["embed"] * norm(params["embed"])] + [
        by[f"layer{i}"] * norm(params["layers"][str(i)]) for i in (0, 1, 3)
    ]
    assert float(values["distance"]) == pytest.approx(math.hypot(*moved), rel=1e-5)
    assert float(values["relative"]) == pytest.approx(math.hypot(*moved) / norm(params), rel=1e-5)
    one = parameters(run_context({10: params}))(shifted(params, **by), 12)  # a quarter of 4 layers is 1
    assert [float(one[k]) for k in ("relative_bottom", "relative_top")] == pytest.approx([0.1, 0.7], rel=1e-4)


def test_the_reference_is_the_start_of_the_phase_or_the_step_that_was_named(params):
    at = {0: scaled(params, 1.0), 10: params}
    by_phase, named = run_context(at), run_context(at, of=10)
    assert float(parameters(by_phase)(params, 4)["relative"]) == pytest.approx(0.5)
    assert float(parameters(by_phase)(scaled(params, 0.5), 30)["relative"]) == pytest.approx(0.5)
    assert by_phase.params_at.asked == [0, 10]
    assert float(parameters(named)(scaled(params, 2.0), 30)["relative"]) == pytest.approx(2.0)
    assert math.isnan(parameters(named)(params, 9)["relative"])  # it does not know the future, not even afterwards
    assert named.params_at.asked == [10]


def test_nothing_is_restored_at_the_reference_and_nothing_is_remembered(params):
    made = run_context({10: params})
    probe = parameters(made)
    assert set(probe(params, 10).values()) == {0.0} and made.params_at.asked == []
    first, second = (float(probe(scaled(params, 0.5), 12)["distance"]) for _ in range(2))
    assert first == second and made.params_at.asked == [10, 10]
    kept = run_context({0: params, 10: scaled(params, 1.0)}, keep=True)
    probe = parameters(kept)
    near, far = [[float(probe(params, step)["relative"]) for _ in range(2)] for step in (3, 12)]
    assert near == [0, 0] and far == pytest.approx([0.5, 0.5]) and kept.params_at.asked == [0, 10]
    probe(params, 4)
    assert kept.params_at.asked == [0, 10, 0]  # one reference at a time takes memory


def test_without_a_checkpoint_of_the_reference_there_is_no_number(params):
    assert all(math.isnan(v) for v in parameters(run_context({}))(params, 5).values())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layers": 0}, r"options\.layers: 0 must be a whole number of at least 1"),
        ({"layers": 5}, r"options\.layers: 5 is more than the 4 layers"),
        ({"of": 11}, r"options\.of: the run keeps no checkpoint of step 11; take an end of a phase \(10, 30\)"),
        ({"of": 15}, r"options\.of: the run keeps no checkpoint of step 15"),  # a rolling one will be gone
        ({"of": 31}, r"options\.of"),
        ({"of": -1}, r"options\.of: -1 must be a whole number of at least 0"),
        ({"keep": 1}, r"options\.keep: 1 must be True or False"),
    ],
)
def test_options_of_parameters(options, says):
    with pytest.raises(ConfigError, match=says):
        parameters(run_context({}, **options))


def test_parameters_outside_a_run():
    with pytest.raises(ConfigError, match="compares steps of a run"):
        parameters(context())


# ---- spectral alignment ----
def test_power_iteration_finds_the_top_singular_vector():
    for seed in range(3):
        u, v = orthogonal(12, 8, seed), orthogonal(8, 8, seed + 9)
        kernel = (v * 2.0 ** -np.arange(8)) @ u.T  # [D, O], inputs on the left
        found = np.asarray(top_direction(jnp.asarray(kernel, jnp.float32), 32))
        assert abs(found @ v[:, 0]) == pytest.approx(1, abs=1e-5) and np.linalg.norm(found) == pytest.approx(1)
        assert abs(np.asarray(top_direction(jnp.asarray(kernel, jnp.float32), 1)) @ v[:, 0]) < 0.9999


def test_concentration_counts_the_sides():
    """Inputs along the direction and against it, with what lies across it, which must not matter."""
    v = orthogonal(8, 8)
    kernel = jnp.asarray(5 * v[:, :1] @ orthogonal(12, 1).T, jnp.float32)
    across = 10 * np.random.default_rng(0).standard_normal((40, 7)) @ v[:, 1:].T
    for positive in (40, 30, 20, 10, 0):
        side = np.where(np.arange(40) < positive, 1.0, -9.0)[:, None]  # how far out does not matter
        inputs = jnp.asarray(side * v[:, 0] + across, jnp.float32)
        assert float(concentration(inputs, kernel)) == pytest.approx(abs(2 * positive / 40 - 1), abs=1e-6)


def test_the_inputs_of_attention_are_those_that_its_projection_multiplies(params):
    """Each block rebuilt from them and from the stream gives the next, down to the final states."""
    tokens = jnp.asarray(windows()["old"][:, :-1])
    inputs = MODEL.attention_inputs(params, tokens)
    assert len(inputs) == 4 and all(x.shape == (*tokens.shape, WIDTH) for x in inputs)

    def normed(x, p):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * np.asarray(p["scale"]) + np.asarray(p["bias"])

    embedded = np.asarray(params["embed"]["embedding"])[np.asarray(tokens)]
    np.testing.assert_allclose(inputs[0], normed(embedded, params["layers"]["0"]["ln_attn"]), atol=1e-5)
    # A model cut off after k blocks, asked for its final states with the norm of block k, gives the inputs of block k.
    for k in (1, 3):
        cut = build(ModelSpec(layers=k, width=WIDTH, heads=2, vocab_size=VOCAB, context=LENGTH))
        fewer = params | {"layers": {str(i): params["layers"][str(i)] for i in range(k)}}
        fewer["ln_final"] = params["layers"][str(k)]["ln_attn"]
        np.testing.assert_allclose(inputs[k], cut.apply(fewer, tokens), atol=1e-5)


def test_alignment_of_a_model_is_that_of_its_blocks():
    sets, params = windows(), MODEL.init(jax.random.key(1))
    values = spectral_alignment(context(sets=sets, tokens=50, iterations=200))(params, 0)
    by_hand = []
    for i, x in enumerate(MODEL.attention_inputs(params, sets["old"][:, :-1])):
        kernel = np.asarray(params["layers"][str(i)]["attention"]["qkv"]["kernel"]).reshape(WIDTH, -1)
        v = np.linalg.svd(kernel)[0][:, 0]
        by_hand.append(abs(np.sign(np.asarray(x).reshape(-1, WIDTH)[spread(50, 72)] @ v).mean()))
    assert float(values["concentration"]) == pytest.approx(np.mean(by_hand), abs=1e-6)
    assert float(values["concentration_max"]) == pytest.approx(max(by_hand), abs=1e-6)
    assert 0 < min(by_hand) < max(by_hand) < 1


def test_a_warning_is_given_above_the_threshold():
    params = MODEL.init(jax.random.key(1))
    ill, warnings = params, []
    for i in range(4):  # block after block, all inputs on one side
        kernel = np.asarray(params["layers"][str(i)]["attention"]["qkv"]["kernel"]).reshape(WIDTH, -1)
        bias = jnp.asarray(100 * np.linalg.svd(kernel)[0][:, 0], jnp.float32)
        block = ill["layers"][str(i)]
        block = block | {"ln_attn": block["ln_attn"] | {"bias": bias}}
        ill = ill | {"layers": ill["layers"] | {str(i): block}}
        values = spectral_alignment(context())(ill, 0)
        assert float(values["concentration_max"]) == 1
        warnings.append(float(values["warning"]))
    assert warnings[0] == 0 and warnings[-1] == 1 and float(values["concentration"]) == 1
    low, high = (spectral_alignment(context(threshold=t))(params, 0) for t in (0.01, 0.99))
    assert [float(low["warning"]), float(high["warning"])] == [1, 0]
    broken = jax.tree.map(lambda x: x.at[...].set(jnp.nan), params)
    assert all(math.isnan(v) for v in spectral_alignment(context())(broken, 0).values())


@pytest.mark.parametrize("threshold", [0, 1, 1.5, True, "x"])
def test_a_threshold_lies_between_zero_and_one(threshold):
    with pytest.raises(ConfigError, match=r"options\.threshold"):
        spectral_alignment(context(threshold=threshold))


def test_a_family_that_does_not_tell_its_inputs_is_named():
    other = Model(MODEL.spec, lambda spec, rngs: None)
    with pytest.raises(ConfigError, match=r"model\.family 'gpt_neox' does not tell the inputs of its blocks"):
        spectral_alignment(context(model=other))
