"""Forty ways to spoil the newest checkpoint: each is noticed, none is trained on."""

import random
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cpt.training.checkpoint import Checkpoints, restore
from cpt.training.digests import LISTING, DamagedCheckpoint, check_files, list_files
from cpt.training.preservation import directory_of
from cpt.training.state import State
from cpt.training.storage import stored_arrays

SAVED_SIZES = (64, 96)


def state(seed: int) -> State:
    rng = np.random.default_rng(seed)
    params = {"embed": {"kernel": jnp.asarray(rng.random(SAVED_SIZES, np.float32))}, "bias": jnp.zeros(300)}
    return State(params, {"mu": jax.tree.map(jnp.square, params), "count": jnp.int32(seed)})


ABSTRACT = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(1))


@pytest.fixture(scope="module", params=["rolling", "anchor"])
def kind(request) -> str:
    """Rolling checkpoints have a format of our own, anchors that of Orbax."""
    return request.param


@pytest.fixture(scope="module")
def run(tmp_path_factory, kind) -> Path:
    """Two checkpoints; the newest is to be spoiled."""
    checkpoints = Checkpoints(tmp_path_factory.mktemp("damage"))
    for step in (1, 2):
        checkpoints.save(kind, step, state(step), {"plan_hash": "x"}, must=True)
    checkpoints.close()
    return Path(checkpoints.directory)


def flip(path: Path, rng: random.Random) -> None:
    raw = bytearray(path.read_bytes())
    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    path.write_bytes(raw)


def cut_off(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def delete(path: Path, rng: random.Random) -> None:
    path.unlink()


def spoil(checkpoint: Path, rng: random.Random, how) -> str:
    """Damage one of the files, the larger the likelier, but each is hit at times."""
    files = sorted(p for p in checkpoint.rglob("*") if p.is_file() and p.stat().st_size)
    (path,) = rng.choices(files, [p.stat().st_size + 500 for p in files])
    how(path, rng)
    return str(path.relative_to(checkpoint))


def test_forty_damages_are_noticed_and_none_is_trained_on(run, kind, tmp_path):
    rng, hit = random.Random(0), set()
    for case in range(40):
        copy = Path(shutil.copytree(run, tmp_path / str(case)))
        how = (flip, cut_off, delete)[case % 3]
        where = spoil(copy / kind / "2", rng, how)
        hit.add(where.split("/")[0])
        said: list[str] = []
        saved, found, _ = Checkpoints(copy).restore_latest(ABSTRACT, said.append)
        assert saved.step == 1, f"{how.__name__} of {where} was not noticed"
        assert len(said) == 1 and f"{kind}/2 is damaged (" in said[0]
        np.testing.assert_array_equal(found.params["embed"]["kernel"], state(1).params["embed"]["kernel"])
        assert (copy / "damaged" / f"{kind}-2").is_dir()
        shutil.rmtree(copy)
    assert hit >= ({"arrays", "meta"} if kind == "rolling" else {"params", "opt_state"})


def test_digests_alone_notice_what_the_listing_does_not_hold(run, kind, tmp_path):
    """A listing that was made anew after the damage, as after bad memory: flips in the arrays are still noticed."""
    rng, noticed = random.Random(1), 0
    for case in range(8):
        copy = directory_of(shutil.copytree(run, tmp_path / str(case)))
        newest = copy / kind / "2"
        data = [p for p in Path(newest).rglob("*") if p.parent.name in ("d", "arrays") and p.stat().st_size > 9000]
        flip(rng.choice(data), rng)
        list_files(newest, final=True)
        saved, _, _ = Checkpoints(copy).restore_latest(ABSTRACT, lambda line: None)
        noticed += saved.step == 1
    assert noticed == 8


def test_a_process_killed_right_after_the_rename_left_a_sound_checkpoint(tmp_path):
    """The listing made before Orbax stamped its own file leaves that file's sum open; the one after has it."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save("anchor", 2, state(2), {}, must=True)
    checkpoints.close()
    copy = directory_of(tmp_path / "anchor" / "2")
    list_files(copy, final=False)
    check_files(copy)
    flip(Path(copy) / "_CHECKPOINT_METADATA", random.Random(0))
    check_files(copy)
    list_files(copy, final=True)
    check_files(copy)
    flip(Path(copy) / "_CHECKPOINT_METADATA", random.Random(0))
    with pytest.raises(DamagedCheckpoint, match="_CHECKPOINT_METADATA: its sha256"):
        check_files(copy)
    (copy / LISTING).unlink()
    with pytest.raises(DamagedCheckpoint, match=r"files\.json: missing"):
        check_files(copy)


def test_a_checkpoint_without_a_listing_is_read_by_its_digests(run, tmp_path, monkeypatch):
    """As those of before the listing are: their facts do not say when they were saved."""
    from cpt.training import storage

    saved = Checkpoints(shutil.copytree(run, tmp_path / "run")).finished()[0]
    (saved.path / LISTING).unlink()
    with pytest.raises(DamagedCheckpoint):
        restore(saved, ABSTRACT)
    read = storage.read_meta
    monkeypatch.setattr(storage, "read_meta", lambda s: {k: v for k, v in read(s).items() if k != "saved"})
    assert restore(saved, ABSTRACT)[0].opt_state["count"] == 2


def test_what_lies_on_disk_can_be_read_without_its_model(run):
    saved = Checkpoints(run).finished()[0]
    tree = stored_arrays(saved, "params")
    assert tree["embed"]["kernel"].shape == SAVED_SIZES and tree["bias"].dtype == jnp.float32
