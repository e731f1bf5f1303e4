"""The update: multipliers, accumulation, the non-finite guard, sums."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from cpt.config import OptimizerSpec, load
from cpt.identity import identity
from cpt.models.base import build
from cpt.models.layout import AXES
from cpt.models.spec import ModelSpec
from cpt.objectives.cross_entropy import cross_entropy
from cpt.objectives.linear_cross_entropy import linear_cross_entropy
from cpt.optimizers.adamw import adamw
from cpt.optimizers.policy import apply_policy
from cpt.plan import resolve
from cpt.training.machine import make_machine
from cpt.training.sharding import device_mesh
from cpt.training.state import State
from cpt.training.step import make_train_step

MODEL = build(ModelSpec(layers=1, width=16, heads=2, vocab_size=31, context=8))
TX = adamw(OptimizerSpec())
ONES_K = jnp.ones(2, jnp.float32)


@pytest.fixture
def state() -> State:
    params = MODEL.init(jax.random.key(0))
    return State(params, TX.init(params))


@pytest.fixture
def batch() -> dict[str, jax.Array]:
    windows_BxM = np.random.default_rng(0).integers(0, 31, (8, 9)).astype(np.int32)
    return {
        "tokens_BxL": jnp.asarray(windows_BxM[:, :-1]),
        "targets_BxL": jnp.asarray(windows_BxM[:, 1:]),
        "weights_BxL": jnp.ones((8, 8), jnp.float32),
        "source_B": jnp.asarray([0, 1, 0, 0, 1, 0, 0, 0], jnp.int32),
    }


def update(state, batch, lr=1e-2, multipliers_K=ONES_K, accumulate=1):
    return jax.jit(make_train_step(MODEL, TX, accumulate))(state, batch, jnp.float32(lr), multipliers_K)


def same(a, b) -> bool:
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


def test_unit_multipliers_are_plain_cross_entropy_bit_for_bit(state, batch):
    """Against a mean that knows of no sources and multipliers: same loss, same parameters, every bit."""

    def plain(params, batch):
        hidden_BxLxD, weights_BxL = MODEL.apply(params, batch["tokens_BxL"]), batch["weights_BxL"]
        head_DxV = MODEL.head(params)
        return linear_cross_entropy(hidden_BxLxD, head_DxV, batch["targets_BxL"], weights_BxL, weights_BxL.sum())[0]

    def plain_update(state, batch):
        loss, grads = jax.value_and_grad(plain)(state.params, batch)
        updates, opt_state = TX.update(grads, state.opt_state, state.params)
        return State(jax.tree.map(lambda p, u: p - jnp.float32(1e-2) * u, state.params, updates), opt_state), loss

    want, loss = jax.jit(plain_update)(state, batch)
    got, sums = update(state, batch)
    assert float(sums.objective) == float(loss)
    assert same(got, want)


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_gradients_are_those_of_full_logits(state, batch, z_loss):
    """Against JAX's own derivative of the objective as it is written, with sources of weight 0.7 and 2 and padding."""
    batch = {**batch, "weights_BxL": batch["weights_BxL"].at[2, 5:].set(0)}
    multipliers_K = jnp.asarray([0.7, 2.0])

    def objective(params):
        hidden_BxLxD, head_DxV = MODEL.apply(params, batch["tokens_BxL"]), MODEL.head(params)
        nll_BxL = cross_entropy(hidden_BxLxD, head_DxV, batch["targets_BxL"])
        penalty_BxL = z_loss * jax.nn.logsumexp(hidden_BxLxD @ head_DxV, axis=-1) ** 2
        weights_BxL = batch["weights_BxL"] * multipliers_K[batch["source_B"]][:, None]
        return jnp.sum((nll_BxL + penalty_BxL) * weights_BxL) / batch["weights_BxL"].sum()

    value, grads = jax.jit(jax.value_and_grad(objective))(state.params)
    # With plain descent, what is added to the parameters is the gradient.
    descent = optax.identity()
    step = jax.jit(make_train_step(MODEL, descent, z_loss=z_loss))
    new, sums = step(State(state.params, descent.init(state.params)), batch, jnp.float32(1.0), multipliers_K)
    assert float(sums.objective) == pytest.approx(float(value), rel=1e-6)
    assert float(sums.grad_norm) == pytest.approx(float(optax.tree.norm(grads)), rel=1e-5)
    moved = jax.tree.map(lambda a, b: a - b, state.params, new.params)
    close = jax.tree.map(lambda x, y: jnp.allclose(x, y, rtol=1e-4, atol=1e-6), moved, grads)
    assert jax.tree.all(close)


def test_sums_per_column_and_weighted_objective(state, batch):
    _, sums = update(state, batch, multipliers_K=jnp.asarray([0.5, 3.0]))
    assert sums.tokens_K.tolist() == [48, 16]
    nats_K = np.asarray(sums.nats_K, np.float64)
    want = (0.5 * nats_K[0] + 3.0 * nats_K[1]) / (48 + 16)
    assert float(sums.objective) == pytest.approx(want, rel=1e-6)


def test_a_column_of_weight_zero_does_not_move_the_parameters(state, batch):
    """Weight 0 on a quarter of the batch gives the update of a batch without it: weights .75 and 0, shares .75, .25."""
    multipliers_K = jnp.asarray([1.0 / 0.75, 0.0])
    masked = {**batch, "weights_BxL": jnp.where((batch["source_B"] == 0)[:, None], 1.0, 0.0) * jnp.ones((8, 8))}
    a, _ = update(state, batch, multipliers_K=multipliers_K)
    b, _ = update(state, masked)
    assert jax.tree.all(jax.tree.map(lambda x, y: jnp.allclose(x, y, atol=1e-7), a.params, b.params))
    assert not same(a.params, update(state, batch)[0].params)


def test_a_rare_source_counts_for_its_weight_over_many_batches(state, batch):
    """One row in 40 comes from a source of weight 1/2: on average over 5 batches it is half of the objective.

    Normalised by what fell into each batch, it would be far from it: 4 of them know nothing of the source.
    """
    shares, weights = np.array([39 / 40, 1 / 40]), np.array([0.5, 0.5])
    multipliers_K = jnp.asarray(weights / shares / weights.sum(), jnp.float32)
    without = {**batch, "source_B": jnp.zeros(8, jnp.int32)}
    rows_of_two_in = {**batch, "source_B": jnp.asarray([0, 0, 0, 0, 0, 0, 0, 1], jnp.int32)}
    batches = [*[without] * 4, rows_of_two_in]  # 40 rows, one of the rare source
    objectives, nats_K, tokens_K = [], np.zeros(2), np.zeros(2)
    for b in batches:
        _, sums = update(state, b, multipliers_K=multipliers_K)
        objectives.append(float(sums.objective))
        nats_K, tokens_K = nats_K + np.asarray(sums.nats_K, np.float64), tokens_K + np.asarray(sums.tokens_K)
    assert np.mean(objectives) == pytest.approx((weights * nats_K / tokens_K).sum(), rel=1e-6)


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_accumulation_is_the_same_update(state, batch, accumulate):
    multipliers_K = jnp.asarray([0.7, 2.0])
    whole, sums = update(state, batch, multipliers_K=multipliers_K)
    parts, sums_parts = update(state, batch, multipliers_K=multipliers_K, accumulate=accumulate)
    assert float(sums_parts.objective) == pytest.approx(float(sums.objective), rel=1e-5)
    assert float(sums_parts.grad_norm) == pytest.approx(float(sums.grad_norm), rel=1e-5)
    assert sums_parts.tokens_K.tolist() == sums.tokens_K.tolist()
    assert jax.tree.all(jax.tree.map(lambda x, y: jnp.allclose(x, y, atol=1e-5), whole.opt_state, parts.opt_state))


def test_a_step_that_is_not_finite_leaves_no_trace(state, batch):
    broken = state._replace(
        params={**state.params, "head": {"kernel": state.params["head"]["kernel"].at[0, 0].set(jnp.nan)}}
    )
    new, sums = update(broken, batch)
    assert not bool(sums.finite)
    assert same(new.opt_state, broken.opt_state)
    np.testing.assert_array_equal(new.params["embed"]["embedding"], broken.params["embed"]["embedding"])


def test_learning_rate_zero_moves_moments_only(state, batch):
    new, _ = update(state, batch, lr=0.0)
    assert same(new.params, state.params)
    assert not same(new.opt_state, state.opt_state)


def test_decay_spares_biases_and_norms(state):
    zero = jax.tree.map(jnp.zeros_like, state.params)
    updates, _ = TX.update(zero, state.opt_state, state.params)
    moved = {
        jax.tree_util.keystr(path, simple=True, separator="/"): bool(jnp.any(u != 0))
        for path, u in jax.tree_util.tree_leaves_with_path(updates)
    }
    assert moved["embed/embedding"] and moved["head/kernel"]
    assert not any(m for name, m in moved.items() if name.endswith(("bias", "scale")))


@pytest.mark.parametrize(
    ("policy", "count", "moments"),
    [
        ("keep", 1, True),
        ("lr0_warm", 1, True),
        ("reset", 0, False),
        ("reset_moments", 1, False),
        ("reset_count", 0, True),
    ],
)
def test_policies_at_a_phase_edge(state, batch, policy, count, moments):
    trained, _ = update(state, batch)
    after = apply_policy(policy, TX, trained.params, trained.opt_state)
    adam = next(
        s for s in jax.tree.leaves(after, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState)) if hasattr(s, "mu")
    )
    assert int(adam.count) == count
    assert bool(jnp.any(adam.nu["head"]["kernel"] != 0)) == moments


def test_z_loss_is_one_line_of_a_config(tmp_path):
    """It reaches the update, where `objective` has it and `loss` has not; a run without it has the hash it had."""
    config = toy.get_config(str(tmp_path))
    plain = resolve(load(config))
    config.objective.z_loss = 0.1
    pulled = resolve(load(config))
    assert identity(plain.spec, defaults=False).get("objective") is None and pulled.hash != plain.hash
    tokens_BxL = np.arange(8 * 32, dtype=np.int32).reshape(8, 32)
    batch = {"tokens_BxL": tokens_BxL, "targets_BxL": tokens_BxL, "weights_BxL": np.ones((8, 32), np.float32)}
    batch["source_B"] = np.zeros(8, np.int32)
    found = []
    for plan in (plain, pulled):
        machine = make_machine(plan, device_mesh({a: 1 for a in AXES}, jax.devices()[:1]))
        params = machine.model.init(jax.random.key(0))
        hidden_BxLxD = machine.model.apply(params, tokens_BxL)
        penalty = float(jnp.mean(jax.nn.logsumexp(hidden_BxLxD @ machine.model.head(params), axis=-1) ** 2))
        _, sums = machine.update(State(params, machine.tx.init(params)), batch, *machine.inputs(0, plan.lr(0), None))
        found.append((float(sums.objective), float(sums.nats_K.sum() / sums.tokens_K.sum())))
    (objective, loss), (with_term, same_loss) = found
    assert loss == same_loss == pytest.approx(objective, rel=1e-6)
    assert with_term == pytest.approx(objective + 0.1 * penalty, rel=1e-6) and penalty > 1
