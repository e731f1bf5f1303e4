"""Digests, seals and the order of candidates; falling back is tested on whole runs in test_resume.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt.training import checkpoint
from cpt.training.checkpoint import Checkpoints, DamagedCheckpoint, read_meta, restore
from cpt.training.digests import digest, sealed
from cpt.training.spec import CheckpointSpec
from cpt.training.state import State


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.int32, np.uint8])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 3), (2, 3, 4)])
def test_every_single_bit_flip_changes_the_digest(dtype, shape):
    x = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    x = np.asarray(x, dtype).reshape(shape)
    clean, raw = _digest(x), bytearray(x.tobytes())
    for bit in range(8 * len(raw)):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << (bit % 8)
        y = np.frombuffer(bytes(flipped), dtype).reshape(shape)
        assert _digest(y) != clean, f"bit {bit}"


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 5), st.integers(0, 5))
def test_swapping_two_elements_changes_the_digest(i, j):
    x = np.arange(6, dtype=np.float32) + 0.5
    y = x.copy()
    y[[i, j]] = y[[j, i]]
    assert (_digest(x) == _digest(y)) == (i == j)


def _digest(x) -> tuple[int, int]:
    return tuple(int(d) for d in digest(jnp.asarray(x)))


def test_seal_notices_any_changed_entry():
    meta = sealed({"step": 3, "ledger": {"exact": True}})
    assert sealed(meta) == meta
    assert sealed({**meta, "step": 4})["seal"] != meta["seal"]


def tree(scale: float = 1.0) -> State:
    return State({"a": {"kernel": jnp.arange(6.0).reshape(2, 3) * scale}}, {"count": jnp.int32(4)})


def test_save_and_restore_kinds(tmp_path):
    checkpoints = Checkpoints(tmp_path, CheckpointSpec(keep_rolling=2))
    for step in (1, 2, 3, 4):
        checkpoints.save("rolling", step, tree(step), {"plan_hash": "x"})
    checkpoints.save("anchor", 3, tree(3), {})
    checkpoints.save("grid", 4, tree(4), {})
    checkpoints.close()
    assert [str(s) for s in checkpoints.finished()] == ["rolling/4", "anchor/3", "rolling/3"]
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree())
    saved, state, meta = checkpoints.restore_latest(abstract, print)
    assert saved.step == 4 and meta["plan_hash"] == "x"
    np.testing.assert_array_equal(state.params["a"]["kernel"], tree(4).params["a"]["kernel"])
    grid = checkpoints.finished(("grid",))[0]
    params_only, _ = restore(grid, abstract, params_only=True)
    assert params_only.opt_state is None
    np.testing.assert_array_equal(params_only.params["a"]["kernel"], tree(4).params["a"]["kernel"])


def test_wrong_shape_and_missing_meta_are_damage(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save("anchor", 1, tree(), {})
    checkpoints.close()
    (saved,) = checkpoints.finished()
    wrong = State(
        {"a": {"kernel": jax.ShapeDtypeStruct((9, 9), jnp.float32)}}, {"count": jax.ShapeDtypeStruct((), jnp.int32)}
    )
    with pytest.raises(DamagedCheckpoint, match="unreadable"):
        restore(saved, wrong)
    (saved.path / "meta" / "metadata").unlink()
    with pytest.raises(DamagedCheckpoint, match="meta"):
        read_meta(saved)


def test_what_a_kill_left_half_written_is_not_a_checkpoint(tmp_path):
    half = tmp_path / "rolling" / "7.orbax-checkpoint-tmp-1"
    half.mkdir(parents=True)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.finished() == []
    checkpoints.clean()
    assert not half.exists()


def test_no_copy_of_the_state_outlives_its_save(tmp_path):
    alive = lambda: len([x for x in jax.live_arrays() if x.shape == (2, 3)])  # noqa: E731
    checkpoints, before = Checkpoints(tmp_path), alive()  # other tests may have left some
    state = tree()
    for step in range(3):
        checkpoints.save("rolling", step, state, {}, must=True)
        assert alive() <= before + 1
    checkpoints.close()


def test_what_nobody_changes_is_saved_without_a_copy_and_stays(tmp_path, monkeypatch):
    checkpoints, state = Checkpoints(tmp_path), tree()
    monkeypatch.setattr(checkpoint, "copied", lambda items: pytest.fail("copied"))
    checkpoints.save("grid", 3, state, {}, must=True, copy=False)
    checkpoints.close()
    (saved,) = checkpoints.finished(("grid",))
    restored, _ = restore(
        saved,
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state),
        params_only=True,
    )
    for now, then in zip(jax.tree.leaves(state.params), jax.tree.leaves(restored.params), strict=True):
        np.testing.assert_array_equal(now, then)  # `now` raises if it was deleted
