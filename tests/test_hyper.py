"""beta2 and weight decay that change with the phase: where they change, and what Adam does with it."""

import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from rich.console import Console

from cpt import config as c
from cpt.config import load
from cpt.data.preparing import open_sources
from cpt.errors import ConfigError
from cpt.optimizers.adamw import adamw, scale_by_varying_adam
from cpt.optimizers.building import build
from cpt.plan import resolve
from cpt.schedules.hyper import FollowSpec
from cpt.training import loop, workdir
from cpt.training.checkpoint import Checkpoints
from cpt.training.feed import Data


def config_of(root):
    config = toy.get_config(str(root))
    for name in ("first", "second"):
        config.phases[name].steps = 10
        config.phases[name].lr = c.lr(kind="wsd", peak=1e-2, warmup=c.duration(steps=2), decay=c.duration(steps=4))
    config.phases.second.b2.cooldown = 0.99
    config.phases.second.weight_decay.value, config.phases.second.weight_decay.to = 0.2, 0.0
    return config


def test_where_they_change(toy_root):
    plan = resolve(load(config_of(toy_root)))
    assert plan.varies
    assert [plan.hyper(t)["b2"] for t in range(20)] == [0.95] * 16 + [0.99] * 4
    decay = [plan.hyper(t)["weight_decay"] for t in range(20)]
    assert decay[:10] == [0.1] * 10 and decay[10:] == pytest.approx(np.linspace(0.2, 0, 11)[:10])
    assert not resolve(load(toy.get_config(str(toy_root)))).varies


def test_without_a_decay_there_is_no_cooldown():
    from cpt.schedules.composer import compose
    from cpt.schedules.segments import Hold, Ramp

    follow = FollowSpec(cooldown=0.999)
    assert {follow.at(t, compose([Ramp(1.0, 3), Hold(5)]), 0.95) for t in range(8)} == {0.95}


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("b2.cooldown", 1.0, r"phases\.second\.b2\.cooldown: must lie in \[0, 1\), got 1"),
        ("weight_decay.to", -0.1, r"phases\.second\.weight_decay\.to: must lie in \[0, inf\), got -0\.1"),
    ],
)
def test_impossible_values(toy_root, path, value, says):
    config = config_of(toy_root)
    section, name = path.split(".")
    config.phases.second[section][name] = value
    with pytest.raises(ConfigError, match=says):
        resolve(load(config))


def test_another_optimizer_must_know_how(toy_root, monkeypatch):
    import sys
    import types

    monkeypatch.setitem(sys.modules, "my_opt", types.SimpleNamespace(sgd=lambda spec: optax.identity()))
    config = config_of(toy_root)
    config.optimizer.kind = "my_opt:sgd"
    with pytest.raises(ConfigError, match=r"optimizer\.kind: 'my_opt:sgd' has no b2 and weight_decay"):
        build(resolve(load(config)))


# ---- Adam ----
PARAMS = {"dense": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)}}


def gradients(t):
    return jax.tree.map(lambda p: jnp.sin(p * 1.7 + t) + 0.1 * t, PARAMS)


def test_constant_values_are_optax(toy_root):
    spec = load(toy.get_config(str(toy_root))).optimizer
    ours, theirs = adamw(spec, varies=True), adamw(spec)
    a, b = ours.init(PARAMS), theirs.init(PARAMS)
    for t in range(30):
        u, a = ours.update(
            gradients(t), a, PARAMS, b2=jnp.float32(spec.b2), weight_decay=jnp.float32(spec.weight_decay)
        )
        v, b = theirs.update(gradients(t), b, PARAMS)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6), u, v)


def test_a_rise_of_beta2_does_not_rescale_updates():
    """Constant gradients: the normalised update is 1 at every step, whatever beta2 does (b2**t would say 1.26)."""
    tx = scale_by_varying_adam(0.9, 1e-12)
    one = {"x": jnp.ones(3)}
    state = tx.init(one)
    for t in range(1100):
        u, state = tx.update(one, state, None, b2=jnp.float32(0.95 if t < 1000 else 0.999))
        if t % 50 == 0 or 998 < t < 1010:
            np.testing.assert_allclose(u["x"], 1.0, rtol=1e-4)


def test_resetting_the_count_resets_what_is_missing_of_the_second_moment():
    from cpt.optimizers.policy import apply_policy

    tx = scale_by_varying_adam(0.9, 1e-8)
    state = tx.init(PARAMS)
    for t in range(5):
        _, state = tx.update(gradients(t), state, None, b2=jnp.float32(0.95))
    count = apply_policy("reset_count", tx, PARAMS, state)
    assert (int(count.count), float(count.b2_product)) == (0, 1.0)
    jax.tree.map(np.testing.assert_array_equal, count.nu, state.nu)
    moments = apply_policy("reset_moments", tx, PARAMS, state)
    assert int(moments.count) == 5 and float(moments.b2_product) == float(state.b2_product)
    assert not any(np.any(x) for x in jax.tree.leaves(moments.nu))


# ---- in a run ----
def train(config, into):
    plan = resolve(load(config))
    sources, tokenizer = open_sources(plan.spec.sources, plan.spec.tokenizer, Path(plan.spec.stores), lambda _: None)
    workdir.prepare_workdir(into)
    loop.train(plan, Data(sources, tokenizer), into, Console(file=io.StringIO()))


def losses(run):
    import json

    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_with_a_beta2_for_its_cooldown(toy_root, tmp_path):
    plain = config_of(toy_root)
    plain.phases.second.b2.cooldown = None
    train(config_of(toy_root), tmp_path / "raised")
    train(plain, tmp_path / "plain")
    a, b = losses(tmp_path / "raised"), losses(tmp_path / "plain")
    assert a[:17] == b[:17] and a[17:] != b[17:]  # update 16 is the first of the cooldown, row 18 the first to tell
    # What was saved goes on: the newest checkpoint removed, the run ends the same.
    for saved in Checkpoints(tmp_path / "raised" / "checkpoints").finished()[:1]:
        saved.path.rename(tmp_path / "away")
    train(config_of(toy_root), tmp_path / "raised")
    assert losses(tmp_path / "raised") == a
    fixed = config_of(toy_root)
    fixed.phases.second.b2 = c.follow()
    fixed.phases.second.weight_decay = c.follow()
    with pytest.raises(
        ConfigError, match=r"phases\.\*\.b2 and weight_decay: the optimizer's state was made for values"
    ):
        workdir.check(tmp_path / "raised", resolve(load(fixed)), 20)
    early = config_of(toy_root)
    early.phases.second.b2.value = 0.9
    with pytest.raises(ConfigError, match=r"phases\.second\.b2: at step 10 it was 0\.95, the new plan says 0\.9"):
        workdir.check(tmp_path / "raised", resolve(load(early)), 20)
